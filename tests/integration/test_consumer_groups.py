"""The first start of a group: one process at a time, recorded only if it went well (semantics 18)."""

import asyncio

import pytest

from messaging import groups, topics
from settings import KafkaSettings
from storage.consumer_groups import ConsumerGroups
from storage.database import Database
from tests import engines
from tests.builders import a_group


async def test_a_group_is_remembered_by_topic(database: Database) -> None:
    registry, group = ConsumerGroups(database), a_group()
    async with registry.registration(group) as registration:
        assert not await registration.is_known("orders")
        await registration.remember("orders")
        assert await registration.is_known("orders")
    async with registry.registration(group) as registration:
        assert await registration.is_known("orders")
        assert not await registration.is_known("payments")
    async with registry.registration(a_group()) as registration:
        assert not await registration.is_known("orders")


async def test_what_fails_is_not_remembered(database: Database) -> None:
    registry, group = ConsumerGroups(database), a_group()

    async def fail() -> None:
        async with registry.registration(group) as registration:
            await registration.remember("orders")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with registry.registration(group) as registration:
        assert not await registration.is_known("orders")


async def test_two_at_once_register_one_after_the_other(database: Database) -> None:
    registry, group = ConsumerGroups(database), a_group()
    inside = 0
    first_times = []

    async def register() -> None:
        nonlocal inside
        async with registry.registration(group) as registration:
            inside += 1
            assert inside == 1
            if not await registration.is_known("orders"):
                first_times.append(1)
                await registration.remember("orders")
            inside -= 1

    await asyncio.gather(*(register() for _ in range(5)))
    assert first_times == [1]


async def test_groups_do_not_wait_for_each_other(database: Database) -> None:
    registry = ConsumerGroups(database)
    async with asyncio.timeout(3), registry.registration(a_group()), registry.registration(a_group()):
        pass


async def test_the_first_start_commits_the_beginning_and_the_next_changes_nothing(
    database: Database, kafka: KafkaSettings
) -> None:
    registry, group = ConsumerGroups(database), a_group()
    partitions = engines.partitions_of([topics.ORDERS, topics.PAYMENTS])

    async def ensure() -> None:
        await groups.ensure_known(
            registry, group=group, topics=(topics.ORDERS, topics.PAYMENTS), kafka=kafka, client_id="tests"
        )

    await asyncio.gather(ensure(), ensure())
    assert [await engines.committed(kafka, group, partition) for partition in partitions] == [(0, "")] * 6
    await engines.commit(kafka, group, {partitions[0]: 1}, metadata="kept")
    await ensure()
    assert await engines.committed(kafka, group, partitions[0]) == (1, "kept")


async def test_offsets_that_a_crash_left_behind_stay(database: Database, kafka: KafkaSettings) -> None:
    group = a_group()
    first, second, third = engines.partitions_of([topics.ORDERS])
    await engines.commit(kafka, group, {first: 7}, metadata="left")
    await groups.ensure_known(
        ConsumerGroups(database), group=group, topics=(topics.ORDERS,), kafka=kafka, client_id="tests"
    )
    assert await engines.committed(kafka, group, first) == (7, "left")
    assert await engines.committed(kafka, group, second) == await engines.committed(kafka, group, third) == (0, "")
