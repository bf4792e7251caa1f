"""The supervisor of a stack as one of its services; what it does is in :mod:`infra.stack.supervision`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from infra.processes.service import Service


class SupervisorService(Service):
    """The process that restarts dead services of the stack. Its address is that of its health check."""

    name: ClassVar[str] = "supervisor"
    health_path = "/health"

    def __init__(self, home: Path, flows: Sequence[str] = ()) -> None:
        """flows: names of the flows whose crashed runs are restarted; not needed to look at or end the service."""
        super().__init__(home, detached=True)
        self._flows = flows

    def environment(self, port: int) -> dict[str, str]:
        # The settings of the `up` that starts it, so that it starts services as that `up` would.
        own = {name: value for name, value in os.environ.items() if name.startswith("FEDBENCH_")}
        return {**own, "FEDBENCH_HOME": str(self.home)}

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "infra.stack.supervision", str(port), *self._flows]
