"""Ports on loopback."""

from __future__ import annotations

import socket
import time

from infra.errors import ServiceFailed

LOOPBACK = "127.0.0.1"


def free_port(preferred: int | None) -> int:
    """``preferred`` if it is free, else any.

    Raises:
        ServiceFailed: there is none.
    """
    for port in (preferred, 0):
        if port is not None and (bound := bindable(port)) is not None:
            return bound
    raise ServiceFailed(f"no free port on {LOOPBACK}")


def bindable(port: int) -> int | None:
    """``port`` (0: any) when it can be bound at the moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def await_free_port(port: int, seconds: float) -> None:
    """Wait at most ``seconds`` for whoever has ``port`` to leave it."""
    deadline = time.monotonic() + seconds
    while bindable(port) is None and time.monotonic() < deadline:
        time.sleep(0.02)
