"""Find the current holder of an embedded service by the service's lock and publication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.files.lock import FileLock
from infra.processes.publication import Publication

DETACHED = "detached"  # note in the lock of a service that holds it itself
STARTING = "starting"  # note of the process that starts such a service, until then


@dataclass(frozen=True)
class ServiceHolder:
    """The holder of a service: a run, or the service itself when it is ``detached``.

    starting: a detached service does not hold its lock yet; ``pid`` is that of the process that starts it.
    address: the address at which the service answers or will answer; None: not known yet.
    since: when the service was started, in seconds since the epoch.
    """

    pid: int
    detached: bool
    starting: bool = False
    address: str | None = None
    since: float | None = None


def find_holder(
    lock: FileLock, read: Callable[[], Publication | None], address_at: Callable[[int], str]
) -> ServiceHolder | None:
    """Return the holder of the service's lock; None: nobody holds it.

    read: reads the publication. It is called after the lock was read, so that it does not return an earlier holder's.
    address_at: returns the service's address at a port.
    """
    if not lock.is_taken():
        return None
    pid, note, found = lock.holder() or 0, lock.note(), read()
    detached, starting = note in (DETACHED, STARTING), note == STARTING
    if found is None or (detached and found.pid != pid):
        return ServiceHolder(pid, detached, starting)
    address = address_at(found.port) if detached else found.address
    return ServiceHolder(pid, detached, starting, address, found.created)
