"""Who has an embedded service at the moment: found by its lock and its publication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.files.lock import FileLock
from infra.processes.publication import Publication

DETACHED = "detached"  # what a service that holds its lock itself writes there, after its process id
STARTING = "starting"  # what the starter of such a service writes there until then


@dataclass(frozen=True)
class ServiceHolder:
    """Who has a service: the run that holds it, or the service itself when it is ``detached``.

    starting: ``pid`` is the starter's, of a detached service that does not hold its lock yet.
    address: where it is to answer; None while that is not known.
    since: when it was started, in seconds since the epoch.
    """

    pid: int
    detached: bool
    starting: bool = False
    address: str | None = None
    since: float | None = None


def find_holder(
    lock: FileLock, read: Callable[[], Publication | None], address_at: Callable[[int], str]
) -> ServiceHolder | None:
    """Return who holds the service's lock; None: nobody.

    read: reads the publication, here after the lock, so that it is not that of a holder before. address_at: the address
    of the service at a port.
    """
    if not lock.is_taken():
        return None
    pid, note, found = lock.holder() or 0, lock.note(), read()
    detached, starting = note in (DETACHED, STARTING), note == STARTING
    if found is None or (detached and found.pid != pid):
        return ServiceHolder(pid, detached, starting)
    address = address_at(found.port) if detached else found.address
    return ServiceHolder(pid, detached, starting, address, found.created)
