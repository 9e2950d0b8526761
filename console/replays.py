"""Replays of plans, each in a task of its own: who started one may close the page, and it goes on."""

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

from console.api import Api, ApiError

if TYPE_CHECKING:
    from orderflow.operations.v1.dead_letter_service_pb2 import ReplayPlan

MOST: Final = 8
_REMEMBERED: Final = 100


class TooManyReplays(Exception):
    """So many run already that another would have to wait."""


@dataclasses.dataclass
class Replay:
    """A replay that this process runs, or ran.

    Attributes:
        plan: The plan as the server last told it; None before that.
        problem: Why it ended before the plan did.
    """

    plan: "ReplayPlan | None" = None
    problem: str = ""
    is_running: bool = True


class Replays:
    """The replays of this process. A plan that breaks with it is simply applied again."""

    def __init__(self) -> None:
        """Runs none yet."""
        self._replays: dict[str, Replay] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, api: Api, plan_id: str, *, reason: str, rate: int) -> None:
        """Applies a plan at a rate, records per second, unless that runs already.

        Raises:
            TooManyReplays: that many run already.
        """
        if plan_id in self._tasks:
            return
        if len(self._tasks) >= MOST:
            raise TooManyReplays
        replay = self._replays[plan_id] = Replay()
        while len(self._replays) > _REMEMBERED:
            del self._replays[next(each for each in self._replays if each not in self._tasks)]
        task = asyncio.create_task(self._run(replay, api, plan_id, reason, rate), name=f"replay {plan_id}")
        self._tasks[plan_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(plan_id, None))

    def of(self, plan_id: str) -> Replay | None:
        """Returns what this process did for a plan."""
        return self._replays.get(plan_id)

    async def close(self) -> None:
        """Ends them all; what was not replayed yet stays in its plan."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, replay: Replay, api: Api, plan_id: str, reason: str, rate: int) -> None:
        try:
            async for plan in api.apply_plan(plan_id, reason=reason, rate=rate):
                replay.plan = plan
        except ApiError as error:
            replay.problem = str(error)
        finally:
            replay.is_running = False
