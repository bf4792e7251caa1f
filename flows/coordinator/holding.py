"""A federation for one process alone: on this machine by a lock, in the store by a lease. Whoever writes has both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from infra.files.lock import run_lock, run_lock_path
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout


def federation_lease(
    objects: ObjectStore,
    settings: Settings,
    name: str,
    what: str,
    say: Callable[[str], None] | None = None,
    *,
    locked: bool = True,
) -> StoreLease:
    """The lease of a federation; it is not taken yet.

    what: the command, for those who find it taken. say: told when there is a wait. locked: whether the caller has its
    :func:`~infra.files.lock.run_lock`, so that a holder of the same home is known to be dead.
    """
    return StoreLease(
        objects,
        FederationLayout(settings.s3.prefix, name).lease,
        name,
        what=what,
        home=settings.home,
        lock=run_lock_path(settings.home, name) if locked else None,
        prefix=settings.s3.prefix,
        say=say,
    )


def suite_lease(
    objects: ObjectStore, settings: Settings, name: str, what: str, say: Callable[[str], None] | None = None
) -> StoreLease:
    """The lease of a suite run, as :func:`federation_lease`; its machine's lock is that of ``suite-<name>``."""
    return StoreLease(
        objects,
        SuiteLayout(settings.s3.prefix, name).lease,
        f"suite {name}",
        what=what,
        home=settings.home,
        lock=run_lock_path(settings.home, f"suite-{name}"),
        prefix=settings.s3.prefix,
        say=say,
    )


@contextlib.contextmanager
def federation_held(
    objects: ObjectStore, settings: Settings, name: str, what: str, say: Callable[[str], None] | None = None
) -> Iterator[StoreLease]:
    """Nobody else runs or changes the federation while this is open.

    Raises:
        RunLocked: somebody does, here or elsewhere; says who.
    """
    with run_lock(settings.home, name), federation_lease(objects, settings, name, what, say) as lease:
        yield lease.acquire()
