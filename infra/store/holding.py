"""Hold a federation or a suite run for one process: on this machine by a lock, in the store by a lease.

A process that writes to the store holds both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra.files.lock import require_free_disk, run_lock, run_lock_path
from infra.files.private import private_process
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout


@dataclass(frozen=True)
class Subject:
    """A federation or a suite run, as a process holds it.

    name: its name for the user. title: its name in messages. lock: the name of its lock on this machine. folder: the
    folder of its lease in the store. needs: what it needs disk space for.
    """

    name: str
    title: str
    lock: str
    folder: str
    needs: str

    @classmethod
    def federation(cls, settings: Settings, name: str) -> Subject:
        return cls(name, name, name, FederationLayout(settings.s3.prefix, name).lease, "a run's weights and logs")

    @classmethod
    def suite(cls, settings: Settings, name: str) -> Subject:
        lease = SuiteLayout(settings.s3.prefix, name).lease
        return cls(name, f"suite {name}", f"suite-{name}", lease, "runs' weights and logs")

    def lease(
        self,
        objects: ObjectStore,
        settings: Settings,
        command: str,
        say: Callable[[str], None] | None = None,
        *,
        locked: bool = True,
    ) -> StoreLease:
        """Return its lease, not yet acquired.

        command: named in the message of other processes that find it held. say: called with a line if it must wait.
        locked: whether the caller holds the lock on this machine, so that a holder from the same home must be dead.
        """
        return StoreLease(
            objects,
            self.folder,
            self.title,
            what=command,
            home=settings.home,
            lock=run_lock_path(settings.home, self.lock) if locked else None,
            prefix=settings.s3.prefix,
            say=say,
        )


@contextlib.contextmanager
def machine_held(settings: Settings, subject: Subject) -> Iterator[None]:
    """Hold ``subject`` on this machine, and let only this user read files that this process writes.

    Raises:
        RunLocked: another process of this machine holds it.
        DiskFull: less than ``min_free_megabytes`` are free.
        SettingsError: the home cannot be used.
    """
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, f"{subject.needs} (min_free_megabytes)")
    with run_lock(settings.home, subject.lock):
        yield


@contextlib.contextmanager
def subject_held(
    objects: ObjectStore, settings: Settings, subject: Subject, command: str, say: Callable[[str], None] | None = None
) -> Iterator[StoreLease]:
    """Hold ``subject``, so that nobody else runs or changes it, on this machine or another.

    Raises:
        RunLocked: another process holds it; the message names it.
    """
    with run_lock(settings.home, subject.lock), subject.lease(objects, settings, command, say) as lease:
        yield lease.acquire()
