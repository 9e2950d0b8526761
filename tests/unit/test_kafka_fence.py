"""When a cluster's brokers count as fenced, by what its controllers log."""

import pytest

from devstack.kafka_fence import fenced

_ACTIVE = "INFO PeriodicTaskControlManager [QuorumController id=2] Activated periodic tasks: maybeFenceStaleBroker\n"


def changed(broker: int, state: str) -> str:
    return (
        f"INFO ClusterControlManager Replayed BrokerRegistrationChangeRecord modifying the registration for broker "
        f"{broker}: BrokerRegistrationChangeRecord(brokerId={broker}, brokerEpoch=9, fenced={state}, logDirs=[])\n"
    )


ALL = changed(1, "1") + changed(2, "1") + changed(3, "1")


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([_ACTIVE + changed(1, "-1") + changed(1, "1")], True),
        ([_ACTIVE], True),  # nothing was ever registered
        ([changed(1, "1")], False),  # nobody is in charge
        ([_ACTIVE + changed(1, "1") + changed(1, "-1")], False),
        ([_ACTIVE + changed(1, "1") + changed(1, "0")], True),  # 0 is no change
        ([ALL, _ACTIVE + ALL, ALL], True),
        ([ALL, _ACTIVE + ALL, changed(1, "1") + changed(2, "1")], False),  # one has not learnt it
        ([ALL, _ACTIVE + ALL, ""], False),
        ([_ACTIVE + ALL + changed(3, "-1")] * 3, False),
    ],
)
def test_all_controllers_know_all_brokers_fenced(logs: list[str], expected: bool) -> None:
    assert fenced(logs) is expected
