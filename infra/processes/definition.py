"""What a kind of embedded service runs, where its files are, and how it is asked whether it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import urljoin

from infra.processes.launch import ask_status
from infra.processes.ports import LOOPBACK


class ServiceDefinition:
    """The part of :class:`infra.processes.service.Service` that its subclasses define. It starts no process."""

    name: ClassVar[str]
    health_path: str = "/"
    healthy: ClassVar[frozenset[int]] = frozenset({200})  # HTTP statuses that count as an answer
    start_seconds: ClassVar[float] = 60.0  # for one start, on a slow and loaded machine
    patience_seconds: ClassVar[float] = 15.0  # a live process that is silent for so long is restarted
    has_children: ClassVar[bool] = False  # the command starts child processes
    keeps_port: bool = False  # fail if the wanted port is taken, rather than use another one

    def __init__(self, home: Path, host: str = LOOPBACK) -> None:
        """host: address to listen at."""
        self.home = home.absolute()
        self.host = host
        self.folder = self.home / "services"
        self.log_path = self.home / "logs" / f"{self.name}.log"

    def command(self, port: int) -> list[str]:
        """Return the program's absolute path and its arguments, without secrets: ``ps`` shows them."""
        raise NotImplementedError

    def environment(self, port: int) -> dict[str, str]:
        """Return variables for the service at ``port``, added to this process's."""
        return {}

    def prepare(self) -> None:
        """Make the folders and files that the service needs. The holder calls this before each start."""

    def address_at(self, port: int) -> str:
        return f"http://{self.host}:{port}"

    def health_headers(self) -> dict[str, str]:
        """Return headers for the health check. With credentials, only a server that accepts them is healthy."""
        return {}

    def answers_at(self, address: str, timeout: float = 5.0) -> bool:
        """Whether the service answers at ``address`` and accepts our credentials."""
        return self._ask(address, timeout) in self.healthy

    def _takes_anybody(self, address: str) -> bool:
        """Whether a service that must ask for credentials answers without them."""
        return bool(self.health_headers()) and self._ask(address, 5.0, {}) in self.healthy

    def _ask(self, address: str, timeout: float, headers: Mapping[str, str] | None = None) -> int | None:
        """Return the HTTP status of the answer at ``address``; None: no answer within ``timeout`` seconds.

        headers: None: those of :meth:`health_headers`.
        """
        sent = self.health_headers() if headers is None else headers
        return ask_status(urljoin(address, self.health_path), sent, timeout)
