"""The system as a whole: what its waits say when a part is missing."""

from pathlib import Path

import pytest

from devstack import DevstackError
from devstack.system import Ports, System


async def test_a_role_that_nobody_started_is_named(tmp_path: Path) -> None:
    system = System(tmp_path, Ports.chosen())
    with pytest.raises(DevstackError, match="projector was not started"):
        await system.wait_healthy(["projector"])
