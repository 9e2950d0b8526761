"""Does what the schedule says to the running system, and writes down what was done."""

import asyncio
import collections
import contextlib
import json
import time
import urllib.request
from typing import Any, Final

from chaos import poison, probes
from chaos.journal import Journal
from chaos.load import Load
from chaos.schedule import Step
from chaos.system import ChaosSystem, role_of
from devstack.errors import DevstackError
from devstack.system import ROLES

_AIM_SECONDS: Final = 5.0
_WHOLE_SECONDS: Final = 20.0
_TRIES: Final = 4
"""How often a fault is repeated that has to meet something and did not yet, such as work in the victim's hands."""
_TAKEOVER_SECONDS: Final = 30.0
"""How long a process is stopped at the most. Its twin takes over when the session of 10 s is over, on a machine that
stalls much later, and a sleeper that wakes before that is no zombie."""
_ZOMBIE_SECONDS: Final = 4.0
"""How long a process that was stopped lives on undisturbed."""
_FENCED_SECONDS: Final = 15.0
"""How long it does so at the most, until it finds out that it was fenced: it may finish what it was handling first."""
_RESTART_SECONDS: Final = 0.5
_OTHERS_SECONDS: Final = 0.3
_BURST: Final = 10
_IN_FLIGHT: Final = "orderflow_worker_inflight_records"
_BREAKER: Final = "orderflow_breaker_state"
_PAYMENTS: Final = "orderflow_payments_total"
_SWEPT: Final = "orderflow_swept_orders_total"
_CALLS: Final = "orderflow_server_inflight_calls"
_TRANSACTIONS: Final = "orderflow_worker_transactions_total"


class Faults:
    """Runs a schedule. One thing at a time is done to one target, different targets at once."""

    def __init__(self, system: ChaosSystem, observer: probes.Observer, load: Load, journal: Journal) -> None:
        """Does nothing yet."""
        self._system = system
        self._observer = observer
        self._load = load
        self._journal = journal
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._was_fenced = False
        self._killed_at_work: set[str] = set()
        self.last = time.time()

    async def run(self, steps: list[Step]) -> None:
        """Does all steps at their time; returns when all that was broken is whole again."""
        await self._observer.partitions()  # looked up while Kafka is there, and kept
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                await asyncio.sleep(max(started + step.at - time.monotonic(), 0))
                tasks.create_task(self._do(step))

    async def _do(self, step: Step) -> None:
        # Two processes of one worker are one target: one of them always works.
        async with self._locks[role_of(step.target)]:
            if not step.details.get("blind"):
                await self._whole(step.target)
            await {
                "kill": self._kill,
                "pause": self._pause,
                "kill-engine": self._kill_kafka,
                "restart": self._restart_postgres,
                "scale": self._scale,
                "gateway": self._gateway,
                "outage": self._gateway,
                "poison": self._poison,
            }[step.kind](step)
        self.last = time.time()

    async def _whole(self, target: str) -> None:
        """Waits, for a while, until engines and target work: a fault that hits what is down anyway proves little."""
        async with self._locks["engine"]:
            pass
        if role_of(target) in ROLES:
            with contextlib.suppress(DevstackError):
                await self._system.wait_healthy([target], deadline_seconds=_WHOLE_SECONDS)

    # -- processes ---------------------------------------------------------------------------------------------------

    async def _kill(self, step: Step) -> None:
        """Kills a process; until one of its role was met with work in its hands it does it again, for a while."""
        instance = step.target
        for _ in range(_TRIES):
            in_flight = await (
                self._aim(instance)
                if instance == "server"
                else self._freeze(instance, in_transaction=bool(step.details.get("in_transaction")))
            )
            started = time.time()
            self._system.down.add(instance)
            self._system.process(instance).kill()
            self._journal.fault("kill", instance, started, in_flight=in_flight, counts=in_flight > 0)
            await asyncio.sleep(_RESTART_SECONDS)
            self._system.start_role(instance)
            if in_flight:
                self._killed_at_work.add(role_of(instance))
            if role_of(instance) in self._killed_at_work:
                return
            await self._whole(instance)

    async def _pause(self, step: Step) -> None:
        """Makes a zombie; until one was fenced it does it again, for a while: the run has to meet that."""
        role = role_of(step.target)
        partitions = await self._observer.read_by(role)
        log = self._system.process(role if step.target != role else f"{role}-2").log_file
        for _ in range(_TRIES):
            before = await self._fenced(step.target)
            # Before the end of its transaction: when it wakes up, its producer has been fenced and it will find out.
            in_flight = await self._freeze(step.target, in_transaction=True)
            started, slept, taken_over, since = time.time(), 0.0, False, log.stat().st_size
            try:
                while slept < step.seconds or (not taken_over and slept < _TAKEOVER_SECONDS):
                    await asyncio.sleep(1.0)
                    self._load.burst(1)
                    slept = time.time() - started
                    taken_over = partitions <= probes.opened(log, since)
            finally:
                self._system.process(step.target).resume()
            self._journal.fault("pause", step.target, started, in_flight=in_flight, taken_over=taken_over)
            woke = time.monotonic()
            while time.monotonic() < woke + (_ZOMBIE_SECONDS if self._was_fenced else _FENCED_SECONDS):
                await asyncio.sleep(0.2)
                self._was_fenced |= await self._fenced(step.target) > before
            if self._was_fenced:
                return

    async def _fenced(self, instance: str) -> float:
        return await probes.metric(self._system.metrics_address(instance), _TRANSACTIONS, 'outcome="fenced"') or 0.0

    async def _scale(self, step: Step) -> None:
        in_flight = await self._aim(step.target, tries=_TRIES)
        started = time.time()
        self._system.down.add(step.target)
        await self._system.stop_role(step.target)
        self._journal.fault("scale-down", step.target, started, in_flight=in_flight)
        await asyncio.sleep(step.seconds)
        in_flight = await self._aim(role_of(step.target), tries=_TRIES)
        started = time.time()
        self._system.start_role(step.target)
        with contextlib.suppress(DevstackError):  # if it stays away the run does not settle
            await self._system.wait_healthy([step.target])
        self._journal.fault("scale-up", step.target, started, in_flight=in_flight)

    async def _aim(self, instance: str, *, tries: int = 1) -> float:
        """Sends orders and waits, for a while, until a process says that it holds something. Returns how much."""
        for _ in range(tries - 1):
            if held := await self._aim(instance):
                return held
        address = self._system.metrics_address(instance)
        name = _CALLS if instance == "server" else _IN_FLIGHT
        deadline = time.monotonic() + _AIM_SECONDS
        self._load.burst(_BURST)
        while True:
            held = await probes.metric(address, name) or 0.0
            if held or time.monotonic() > deadline:
                return held
            await asyncio.sleep(0.01)

    async def _freeze(self, instance: str, *, in_transaction: bool = False) -> float:
        """Sends orders and stops a process (SIGSTOP) while it holds something that it has not committed.

        `in_transaction`: tries for a while to stop it between producing and the end of the transaction. Returns
        how much of what stood on the topics nobody has committed a moment later: the other process of the
        worker had the time to do its own share. 0: it was not met with work in its hands.
        """
        role, process = role_of(instance), self._system.process(instance)
        deadline = time.monotonic() + 2 * _AIM_SECONDS
        while True:
            if role == "projector":  # it shows no number, and is quick: what was just sent is on its way
                self._load.burst(4)
                await asyncio.sleep(0.03)
            else:
                await self._aim(instance)
            process.suspend()
            held, pending = await self._unfinished(role)
            if (held and (pending or not in_transaction)) or time.monotonic() > deadline:
                return held
            process.resume()
            await asyncio.sleep(0.05)

    async def _unfinished(self, role: str) -> tuple[float, bool]:
        """Returns what is not committed, and whether a transaction stays open: it holds up the last stable offset."""
        look = self._observer
        with contextlib.suppress(*probes.AWAY):
            async with asyncio.timeout(_AIM_SECONDS):
                stable, high = await look.ends(), await look.ends("read_uncommitted")
                await asyncio.sleep(_OTHERS_SECONDS)
                later = await look.ends()
                pending = any(
                    later[topic][partition] == offset < high[topic][partition]
                    for topic, offsets in stable.items()
                    for partition, offset in offsets.items()
                )
                return await look.lag(role, stable), pending
        return 0.0, False

    # -- engines -----------------------------------------------------------------------------------------------------

    async def _kill_kafka(self, step: Step) -> None:
        kafka = self._system.kafka
        assert kafka is not None
        async with self._locks["engine"]:  # both engines away at once is another test
            self._load.burst(_BURST)
            await asyncio.sleep(0.1)
            started = time.time()
            kafka.kill()
            await asyncio.to_thread(kafka.prepare)
            kafka.start()
            await kafka.wait_ready()
            self._journal.fault("kill", step.target, started)

    async def _restart_postgres(self, step: Step) -> None:
        async with self._locks["engine"]:
            self._load.burst(_BURST)
            await asyncio.sleep(0.1)
            started = time.time()
            await self._system.postgres.restart_immediate()
            self._journal.fault("restart", step.target, started)

    # -- the world ---------------------------------------------------------------------------------------------------

    async def _gateway(self, step: Step) -> None:
        self._load.burst(_BURST)
        started = time.time()
        known = await self._faults()
        asked = {name: value for name, value in step.details.items() if name in known}
        await self._faults(asked)
        try:
            if step.kind == "outage":
                await self._until("payment-processor", _BREAKER, 'state="open"')
            elif "error_rate" in asked:
                await self._until("payment-processor", _PAYMENTS, 'outcome="unknown"')
            for _ in range(int(step.seconds)):
                await asyncio.sleep(1.0)
                self._load.burst(3)
            if step.kind == "outage":
                await self._until("order-processor", _SWEPT, 'what="expiry"')
        finally:
            await self._faults({})
        self._journal.fault(step.kind, step.target, started, asked=asked)

    async def _until(self, role: str, name: str, label: str) -> None:
        """Waits, for a while, until a metric of a worker's processes rises: right after a kill nobody may work."""
        addresses = [self._system.metrics_address(f"{role}{which}") for which in ("", "-2")]
        before = [await probes.metric(address, name, label) or 0.0 for address in addresses]
        deadline = time.monotonic() + _WHOLE_SECONDS
        while time.monotonic() < deadline:
            now = [await probes.metric(address, name, label) or 0.0 for address in addresses]
            if any(later > earlier for earlier, later in zip(before, now, strict=True)):
                return
            self._load.burst(1)
            await asyncio.sleep(0.3)

    async def _faults(self, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the gateway's faults, after setting them if given. A machine that stalls has several tries."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(*probes.NO_ANSWER):
                return await asyncio.to_thread(self._ask_gateway, values)
            await asyncio.sleep(0.5)
        return await asyncio.to_thread(self._ask_gateway, values)

    def _ask_gateway(self, values: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._system.ports.gateway_admin}/faults",
            data=None if values is None else json.dumps(values).encode(),
            method="GET" if values is None else "PUT",
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    async def _poison(self, step: Step) -> None:
        started = time.time()
        async with self._locks["engine"]:
            places = await poison.write(self._observer.bootstrap, self._observer.topics, step.details["seed"])
        self._journal.fault("poison", step.target, started, records=places)
