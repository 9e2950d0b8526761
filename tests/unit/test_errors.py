"""Errors as callers see them: a code, an ErrorInfo, and never more than fits into the trailers."""

import grpc
import pytest
from google.rpc import error_details_pb2

from domain.validation import Violation, violations_of
from server import errors
from server.errors import CallError
from tests.builders import a_request, an_item

TRAILER_LIMIT = 8 * 1024
KINDS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
    error_details_pb2.PreconditionFailure,
)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def details(error: CallError) -> dict[str, object]:
    found: dict[str, object] = {}
    for packed in error.status().details:
        for kind in KINDS:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = detail = kind()
                packed.Unpack(detail)
    assert len(found) == len(error.status().details)
    return found


@pytest.mark.parametrize(
    ("error", "code", "reason", "outcome", "retry_seconds"),
    [
        (errors.undecodable(outcome=""), grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE", "", None),
        (errors.kafka_unavailable(), grpc.StatusCode.UNAVAILABLE, "KAFKA_UNAVAILABLE", "NOT_ACCEPTED", 1.0),
        (errors.outcome_unknown(), grpc.StatusCode.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN", "UNKNOWN", None),
        (errors.request_id_reused(), grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED", "NOT_ACCEPTED", None),
        (errors.too_many_unacknowledged(), EXHAUSTED, "TOO_MANY_UNACKNOWLEDGED", "NOT_ACCEPTED", 1.0),
        (errors.order_not_found(), grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", "", None),
        (errors.not_there_yet(), grpc.StatusCode.UNAVAILABLE, "NOT_THERE_YET", "", 0.5),
        (errors.store_unavailable(), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "", 1.0),
        (errors.unauthenticated(), grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "", None),
        (errors.undecodable(), grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE", "", None),
        (errors.internal(outcome="UNKNOWN"), grpc.StatusCode.INTERNAL, "INTERNAL", "UNKNOWN", None),
    ],
)
def test_every_error_tells_its_reason(
    error: CallError, code: grpc.StatusCode, reason: str, outcome: str, retry_seconds: float | None
) -> None:
    assert error.code is code
    assert error.status().code == code.value[0]
    assert error.status().message == error.message
    found = details(error)
    info = found.pop("ErrorInfo")
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("orderflow", reason)
    assert dict(info.metadata) == ({"outcome": outcome} if outcome else {})
    found.pop("PreconditionFailure", None)
    if retry_seconds is not None:
        retry = found.pop("RetryInfo")
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToMilliseconds() == retry_seconds * 1000
    assert not found


@pytest.mark.parametrize(
    ("error", "reason", "outcome", "limit", "retry_seconds"),
    [
        (errors.rate_limited(outcome="NOT_ACCEPTED", limit="9/second", retry_seconds=0.25), "RATE_LIMITED",
         "NOT_ACCEPTED", "rate: 9/second on each server", 0.25),
        (errors.rate_limited(outcome="", limit="9/second", retry_seconds=None), "RATE_LIMITED",
         "", "rate: 9/second on each server", None),
        (errors.too_many_calls(outcome="", limit=7), "TOO_MANY_CALLS",
         "", "calls under way: 7 on each server", 0.5),
        (errors.too_many_streams(outcome="", limit=7, of_caller=False), "TOO_MANY_STREAMS",
         "", "open streams: 7 on each server", 1.0),
        (errors.too_many_streams(outcome="", limit=7, of_caller=True), "TOO_MANY_STREAMS",
         "", "open streams: 7 of each caller on each server", 1.0),
    ],
)  # fmt: skip
def test_what_is_over_a_limit_is_told_the_limit(
    error: CallError, reason: str, outcome: str, limit: str, retry_seconds: float | None
) -> None:
    found = details(error)
    info, quota, retry = found.pop("ErrorInfo"), found.pop("QuotaFailure"), found.pop("RetryInfo", None)
    assert not found
    assert error.code is EXHAUSTED
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.metadata.get("outcome", "")) == (reason, outcome)
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    assert [each.description for each in quota.violations] == [limit]
    assert (retry is None) == (retry_seconds is None)
    if isinstance(retry, error_details_pb2.RetryInfo):
        assert retry.retry_delay.ToMilliseconds() == (retry_seconds or 0) * 1000


def test_a_request_id_that_was_used_names_the_precondition() -> None:
    failure = details(errors.request_id_reused())["PreconditionFailure"]
    assert isinstance(failure, error_details_pb2.PreconditionFailure)
    [violation] = failure.violations
    assert (violation.type, violation.subject) == ("REQUEST_ID", "request_id")


def test_a_repeat_never_says_that_nothing_was_accepted() -> None:
    assert errors.kafka_unavailable().as_repeat().outcome == "UNKNOWN"
    assert errors.outcome_unknown().as_repeat().outcome == "UNKNOWN"
    assert errors.order_not_found().as_repeat().outcome == ""


def test_a_violation_of_the_whole_request_has_no_field() -> None:
    error = errors.invalid([Violation("", "must be small")])
    assert error.message == "the request must be small"


def test_a_missing_scope_is_named() -> None:
    info = details(errors.insufficient_scope("orders:read", outcome="NOT_ACCEPTED"))["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"required_scope": "orders:read", "outcome": "NOT_ACCEPTED"}


def test_violations_are_all_told_if_they_are_few() -> None:
    violations = [Violation(f"field_{n}", f"must be {n}") for n in range(20)]
    error = errors.invalid(violations, outcome="NOT_ACCEPTED")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == "field_0 must be 0 (and 19 more)"
    bad = details(error)["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(each.field, each.description) for each in bad.field_violations] == [
        (each.field, each.description) for each in violations
    ]
    assert errors.invalid(violations[:1]).message == "field_0 must be 0"


def test_hundreds_of_violations_fit_into_the_trailers() -> None:
    request = a_request(
        request_id=" ", user_id="\x00", language="?", items=[an_item("?" * 64, -1, -1, "?" * 64)] * 100,
        muted_channels=[77], labels={"\x00" * 64: "\x00" * 300},
    )  # fmt: skip
    violations = violations_of(request)
    assert len(violations) > 500
    status = errors.invalid(violations, outcome="NOT_ACCEPTED").status()
    # grpc sends the message in a trailer of its own, and the details in base64.
    assert 4 * len(status.SerializeToString()) / 3 + len(status.message) < TRAILER_LIMIT
