"""The supervisor of a stack as one of its services; what it does is in :mod:`infra.stack.supervision`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from infra.processes.service import Service


class SupervisorService(Service):
    """A process that brings back what has died of the stack. Its address is that of its health check."""

    name: ClassVar[str] = "supervisor"
    health_path = "/health"

    def __init__(self, home: Path, flows: Sequence[str] = ()) -> None:
        """flows: names of the flows whose crashed runs go on; none are needed to look at the service or to end it."""
        super().__init__(home, detached=True)
        self._flows = flows

    def environment(self, port: int) -> dict[str, str]:
        # Settings of the `up` that starts it: what it starts later is to be as that would have started it.
        own = {name: value for name, value in os.environ.items() if name.startswith("FEDBENCH_")}
        return {**own, "FEDBENCH_HOME": str(self.home)}

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "infra.stack.supervision", str(port), *self._flows]
