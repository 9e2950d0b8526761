"""Reflection tells what there is: to administrators, and on loopback without authentication to everybody."""

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from server.app import SERVICES
from settings import DatabaseSettings, ServerSettings
from tests.security import ingress
from tests.security.issuer import Issuer, bearer

BY_VERSION = pytest.mark.parametrize("version", ["v1", "v1alpha"])


async def listed(
    channel: grpc.aio.Channel, version: str, metadata: tuple[tuple[str, str], ...] = ()
) -> set[str] | grpc.aio.AioRpcError:
    """Returns the names of the services, or the error."""
    stub = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    try:
        async for answer in stub(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata, timeout=10
        ):
            return {service.name for service in answer.list_services_response.service}
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("no answer")


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    trailers = dict(error.trailing_metadata() or ())
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)  # type: ignore[arg-type]
    return info


@BY_VERSION
async def test_reflection_wants_a_credential(channel: grpc.aio.Channel, version: str) -> None:
    error = await listed(channel, version)
    assert isinstance(error, grpc.aio.AioRpcError)
    assert (error.code(), info_of(error).reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


@BY_VERSION
@pytest.mark.parametrize("scope", ["orders:write orders:read", "orders:operate"])
async def test_reflection_wants_its_own_scope(
    channel: grpc.aio.Channel, issuer: Issuer, version: str, scope: str
) -> None:
    error = await listed(channel, version, bearer(issuer.token(scope=scope)))
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(info_of(error).metadata) == {"required_scope": "orders:admin"}


@BY_VERSION
async def test_administrators_see_the_services(channel: grpc.aio.Channel, issuer: Issuer, version: str) -> None:
    names = await listed(channel, version, bearer(issuer.token(scope="orders:admin")))
    assert isinstance(names, set)
    assert names >= set(SERVICES)


@BY_VERSION
async def test_on_loopback_without_authentication_it_is_open(database_settings: DatabaseSettings, version: str) -> None:
    async with ingress.serving(database_settings) as address, ingress.plain(address) as channel:
        names = await listed(channel, version)
    assert isinstance(names, set)
    assert names >= set(SERVICES)


@BY_VERSION
async def test_off_loopback_without_authentication_it_is_not(database_settings: DatabaseSettings, version: str) -> None:
    """`--insecure` trusts the network with orders; it still tells nobody what there is."""
    # 127.0.0.2 is loopback to the kernel and another machine's address to our rule.
    server = ServerSettings(listen="127.0.0.2:0", insecure=True)
    async with (
        ingress.serving(database_settings, server=server) as address,
        ingress.plain(address.replace("localhost", "127.0.0.2")) as channel,
    ):
        error = await listed(channel, version)
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer nonsense"),)])
async def test_health_answers_everybody(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await stub.Check(request, metadata=metadata, timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_no_other_service_is_there(channel: grpc.aio.Channel) -> None:
    """Not channelz, not the admin interface of gRPC: nothing that nobody asked for."""
    for path in (
        "/grpc.channelz.v1.Channelz/GetServers",
        "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
        "/orderflow.orders.v1.OrderService/DeleteOrder",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(path)(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
