"""Ports, on loopback unless another address of this machine is named."""

from __future__ import annotations

import errno
import socket
import time

from infra.errors import ServiceFailed

LOOPBACK = "127.0.0.1"


def free_port(preferred: int | None, host: str = LOOPBACK) -> int:
    """Return the port ``preferred`` if it is free at ``host``, else any free port.

    Raises:
        ServiceFailed: no port is free, or ``host`` is no address of this machine.
    """
    for port in (preferred, 0):
        if port is not None and (bound := bindable(port, host)) is not None:
            return bound
    raise ServiceFailed(f"no port can be bound at {host} (ports.host)")


def bindable(port: int, host: str = LOOPBACK) -> int | None:
    """Return ``port`` (0: any free port) if it can be bound at ``host`` now; None: it cannot.

    Raises:
        ServiceFailed: ``host`` is no address of this machine.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServiceFailed(f"{host}: expected an address of this machine (ports.host)") from None
            return None
        return int(probe.getsockname()[1])


def page_origins(host: str, port: int) -> list[str]:
    """Return the origins that a browser sends for pages of the server at ``host``."""
    names = [LOOPBACK, "localhost"] if host == LOOPBACK else [host]
    return [f"http://{name}:{port}" for name in names]


def await_free_port(port: int, seconds: float, host: str = LOOPBACK) -> None:
    """Wait until ``port`` is free, at most ``seconds``.

    Raises:
        ServiceFailed: ``host`` is no address of this machine.
    """
    deadline = time.monotonic() + seconds
    while bindable(port, host) is None and time.monotonic() < deadline:
        time.sleep(0.02)
