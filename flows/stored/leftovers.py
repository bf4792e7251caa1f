"""Find and remove what retention, dead runs and killed servers have left in the store and on this machine.

A federation that a process runs, here or elsewhere, is never touched: its lock and its lease are checked before its
objects are listed, and held while objects are removed. :mod:`flows.clean_up` is the flow, and
:mod:`infra.leftovers.store` decides what may be removed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.stored.removal import remove_leftovers, require_federations
from flows.stored.runs import opened_store
from infra.errors import InfraError, RunLocked, StoreCorrupt
from infra.files.lock import run_lock
from infra.leftovers.machine import machine_leftovers, registering_leftovers, run_folder_leftovers
from infra.leftovers.store import Leftover, Retention, federation_leftovers, kept_rounds, upload_leftovers
from infra.settings import Settings, run_folder
from infra.store.holding import Subject
from infra.store.layout import FederationLayout, federations, first_missing
from infra.store.lease import StoreLease
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from tasks.errors import FedbenchError, SpecError
from tasks.spec.base import RECORD_VERSION, STORE_VERSION, parse
from tasks.spec.plans import StoreVersion
from tasks.spec.records import RoundRecord
from tasks.whole import read_whole

DAYS = 7.0  # without a new object, after which an unfinished federation's leftovers are removed


@dataclass
class CleanUp:
    """The result of a clean-up.

    applied: whether leftovers were removed, not only listed. failed: why a leftover could not be removed, by its key.
    notes: a line for each federation that was not cleaned up.
    """

    applied: bool
    leftovers: list[Leftover] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, object]]:
        """Return one row for each federation and reason, ordered by name. Rows of this machine come last."""
        groups: dict[tuple[str, str], list[Leftover]] = {}
        for leftover in self.leftovers:
            groups.setdefault((leftover.federation, leftover.reason), []).append(leftover)
        return [
            {
                "federation": federation or "(this machine)",
                "reason": reason,
                "objects": len(found),
                "bytes": sum(leftover.bytes for leftover in found),
                "not removed": sum(leftover.key in self.failed for leftover in found),
            }
            for (federation, reason), found in sorted(groups.items(), key=lambda item: (not item[0][0], item[0]))
        ]


def clean(
    settings: Settings,
    *,
    apply: bool,
    older_than_days: float = DAYS,
    names: Sequence[str] = (),
    run_folders: bool = False,
    now: datetime | None = None,
    temporary: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> CleanUp:
    """Find leftovers, and with ``apply`` remove them. If one cannot be removed, the rest is removed all the same.

    names: federations to clean up; empty: all in the store, and this machine.
    now: the present time, in place of the clock's.
    say: called with a line when a federation's lease must be waited for.
    temporary: folder that is searched for scratch folders, in place of the system's for temporary files.

    Raises:
        SpecError: a federation of ``names`` does not exist, or the store has a newer version.
        StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
    """
    now = now or datetime.now(UTC)
    older_than = timedelta(days=older_than_days)
    retention = Retention(settings.keep_updates, settings.keep_globals, older_than)
    result = CleanUp(apply)
    with opened_store(settings) as objects:
        known = known_federations(objects, settings)
        require_federations(objects, settings, names, known)
        _clean_federations(result, objects, settings, names or known, retention, now, say)
        if not names:
            if run_folders:
                _clean_run_folders(result, objects, settings, known, older_than, now)
            embedded = settings.s3.endpoint is None
            folder = temporary or Path(tempfile.gettempdir())
            found = machine_leftovers(settings.home, folder, embedded_store=embedded, older_than=older_than, now=now)
            _take(result, objects, found)
    return result


def known_federations(objects: ObjectStore, settings: Settings) -> list[str]:
    """Return the names of the federations in the store, sorted.

    Raises:
        SpecError: the store has a newer version, so it may hold objects that this fedbench does not know.
    """
    source = FederationLayout(settings.s3.prefix, "any").store
    version = objects.get_json(source)
    if version is not None:
        parse(StoreVersion, version, source=source, newest=STORE_VERSION)
    return federations(settings.s3.prefix, objects.list(settings.s3.prefix))


def _clean_federations(
    result: CleanUp,
    objects: ObjectStore,
    settings: Settings,
    names: Sequence[str],
    retention: Retention,
    now: datetime,
    say: Callable[[str], None] | None,
) -> None:
    """Clean up the federations, at last those whose lease is not free: all of these are waited for at once."""

    def clean_one(name: str, lease: StoreLease) -> None:
        found = _of_federation(objects, settings, name, retention, now, result.notes)
        if not found or not result.applied:
            result.leftovers += found
            return
        try:
            with lease.acquire():  # the federation may have changed since it was listed
                found = _of_federation(objects, settings, name, retention, now, [])
                _take(result, LeasedStore(objects, lease), found)
        except RunLocked as error:
            result.notes.append(f"{error}; left alone")

    def lease_of(name: str) -> StoreLease:
        return Subject.federation(settings, name).lease(objects, settings, "fedbench clean", say, locked=result.applied)

    waiting = []
    for name in names:
        with _unlocked(result, settings, name, hold=result.applied) as free:
            if free:
                lease = lease_of(name)
                if lease.holder() is None:
                    clean_one(name, lease)
                else:
                    waiting.append(name)
    with contextlib.ExitStack() as held:
        leases = {
            name: lease_of(name)
            for name in waiting
            if held.enter_context(_unlocked(result, settings, name, hold=result.applied))
        }
        with ThreadPoolExecutor(max(len(leases), 1)) as threads:
            refusals = list(threads.map(_refusal, leases.values()))
        for (name, lease), refusal in zip(leases.items(), refusals, strict=True):
            if refusal is None:
                clean_one(name, lease)
            else:
                result.notes.append(f"{refusal}; left alone")


def _refusal(lease: StoreLease) -> RunLocked | None:
    try:
        lease.require_free()
    except RunLocked as error:
        return error
    return None


def _of_federation(
    objects: ObjectStore, settings: Settings, name: str, retention: Retention, now: datetime, notes: list[str]
) -> list[Leftover]:
    layout = FederationLayout(settings.s3.prefix, name)
    entries = objects.entries(layout.root)
    found: list[Leftover] = []
    try:
        keys = [entry.key for entry in entries]
        best = best_rounds(objects, layout, keys)
        states = named_states(objects, layout, keys, kept_rounds(layout.committed_rounds(keys), best, retention))
        found += federation_leftovers(layout, entries, best, retention, now, states)
    except (FedbenchError, StoreCorrupt) as error:
        notes.append(f"{name}: left alone: {error}")
    try:
        found += upload_leftovers(layout, objects.incomplete_uploads(layout.root), now)
    except InfraError as error:  # some credentials may not list uploads
        notes.append(f"{name}: incomplete uploads cannot be listed: {error}")
    return found + registering_leftovers(run_folder(settings, name), name, now)


def best_rounds(objects: ObjectStore, layout: FederationLayout, keys: Sequence[str]) -> set[int]:
    """Return the best rounds by the last round's record and by ``best.json``.

    The two differ if the process was killed after it wrote the first and before it wrote the second.

    Raises:
        FedbenchError: a marker is missing, or a record is damaged or has a newer version.
    """
    numbers = layout.committed_rounds(keys)
    if not numbers:
        return set()
    missing = first_missing(numbers)
    if missing is not None:
        raise FedbenchError(f"{layout.marker(missing)} is missing in the store")
    source = layout.marker(numbers[-1])
    last = read_whole(objects, source, RoundRecord, RECORD_VERSION)
    best = {last.decision.best_round}
    document = objects.get_json(layout.best)
    if document is not None:
        number = document.get("round") if isinstance(document, dict) else None
        if not isinstance(number, int):
            raise SpecError(f"{layout.best}: expected the number of a round in its field round, found {number!r}")
        best.add(number)
    return best


def named_states(
    objects: ObjectStore, layout: FederationLayout, keys: Sequence[str], rounds: Iterable[int]
) -> set[str]:
    """Return the keys of the states that the records of ``rounds`` name. No record is read if the store has no state.

    keys: all keys of the federation.

    Raises:
        FedbenchError: a record is damaged or has a newer version.
    """
    if not any(map(layout.is_state, keys)):
        return set()
    records = [read_whole(objects, layout.marker(number), RoundRecord, RECORD_VERSION) for number in sorted(rounds)]
    return {ref.key for record in records for ref in record.state_refs}


def _clean_run_folders(
    result: CleanUp,
    objects: ObjectStore,
    settings: Settings,
    known: Sequence[str],
    older_than: timedelta,
    now: datetime,
) -> None:
    for folder in sorted((settings.home / "runs").glob("*")):
        if folder.name not in known and folder.is_dir():
            with _unlocked(result, settings, folder.name, hold=result.applied) as free:
                if free:
                    _take(result, objects, run_folder_leftovers(folder, folder.name, older_than, now))


@contextlib.contextmanager
def _unlocked(result: CleanUp, settings: Settings, name: str, *, hold: bool) -> Iterator[bool]:
    """Yield whether no process of this machine runs the federation. With ``hold``, none can start it in the block."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run_lock(settings.home, name))
        except RunLocked:
            result.notes.append(f"{name}: running, left alone")
            yield False
            return
        if not hold:  # a clean-up that only lists must not keep a run from starting
            held.close()
        yield True


def _take(result: CleanUp, objects: ObjectStore, found: Sequence[Leftover]) -> None:
    result.leftovers += found
    if result.applied:
        result.failed |= remove_leftovers(objects, found)


def describe(leftovers: Sequence[Leftover]) -> str:
    """Return the number and size of ``leftovers``, as ``12 objects, 345.6 MB``."""
    size = sum(leftover.bytes for leftover in leftovers)
    return f"{len(leftovers)} object{'' if len(leftovers) == 1 else 's'}, {size / 1e6:,.1f} MB"
