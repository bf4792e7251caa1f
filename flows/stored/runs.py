"""Reading federations back from the store, without running them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.stored.spec_copy import kept_spec
from infra.errors import StoreCorrupt
from infra.files.lock import FileLock
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.layout import FederationLayout, federations, first_missing
from infra.store.objects import ObjectStore
from tasks.errors import FedbenchError, SpecError
from tasks.spec.base import RECORD_VERSION, SPEC_VERSION, check_name
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.whole import DamagedObject, read_whole

MOST_LISTED = 10


@dataclass(frozen=True)
class StoredRun:
    """A federation as the store has it; ``status`` is running, finished or stopped."""

    name: str
    spec: FederationSpec
    records: list[RoundRecord]
    status: str


@dataclass(frozen=True)
class DamagedRun:
    """A federation of the store that cannot be read, and why; its specification if that can be."""

    name: str
    reason: str
    spec: FederationSpec | None


@contextlib.contextmanager
def opened_store(settings: Settings) -> Iterator[ObjectStore]:
    """The store; the embedded one is started when no run serves it at the moment."""
    with EmbeddedServices(settings, prefect=False) as services:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        yield objects


def listed(names: Sequence[str], wanted: str) -> str:
    """``names`` for a message: few in full; of many, those most like ``wanted`` and how many more."""
    if len(names) <= MOST_LISTED:
        return ", ".join(names) or "(none yet)"
    near = difflib.get_close_matches(wanted, names, n=MOST_LISTED, cutoff=0)
    return f"{', '.join(near)}, and {len(names) - len(near)} more"


def read_run(objects: ObjectStore, settings: Settings, name: str) -> StoredRun:
    """
    Raises:
        SpecError: there is no federation of this name; lists those that there are. Or a record is damaged.
    """
    spec = read_spec(objects, settings, name)
    records = read_history(objects, FederationLayout(settings.s3.prefix, name))
    return StoredRun(name, spec, records, _status(settings, name, spec, records))


def read_spec(objects: ObjectStore, settings: Settings, name: str) -> FederationSpec:
    """The specification of a federation, whatever its rounds are like.

    Raises:
        SpecError: there is no federation of this name; lists those that there are. Or it is damaged.
    """
    check_name(name, source="federation")
    layout = FederationLayout(settings.s3.prefix, name)
    try:
        return read_whole(objects, layout.spec, FederationSpec, SPEC_VERSION)
    except DamagedObject as error:
        if objects.exists(layout.spec):
            raise DamagedObject(
                error.key,
                f"{error.reason.removeprefix('damaged: ')}; it is written again by fedbench run SPEC --name {name}, "
                "with the specification that the federation was begun with",
            ) from None
    names = federations(settings.s3.prefix, objects.list(settings.s3.prefix))
    raise SpecError(f"{name}: no such federation in the store; expected one of: {listed(names, name)}")


def read_history(objects: ObjectStore, layout: FederationLayout, last: int | None = None) -> list[RoundRecord]:
    """Records of the committed rounds, from 0; with ``last``, of no later round.

    Raises:
        SpecError: a record is of a newer version, or is damaged.
        FedbenchError: a round's marker is missing before the last.
    """
    found = readable_history(objects, layout, last)
    if found.damage is not None:
        number = found.damage.round
        how = _how_to_go_back(layout, number)
        if last is None and number == found.newest:
            how = f"\nto do this round again: fedbench resume {layout.federation}{how}"
        raise SpecError(f"{found.damage.key}: {found.damage.reason}{how}")
    return found.records


@dataclass(frozen=True)
class Damage:
    """An object of a committed round that is not what was written there. ``reason`` does not name it."""

    round: int
    key: str
    reason: str


@dataclass(frozen=True)
class ReadableHistory:
    """Records of the committed rounds, from 0 up to the first one whose record is damaged, if one is.

    newest: number of the last committed round, damaged or not; -1 before the first.
    """

    records: list[RoundRecord]
    damage: Damage | None
    newest: int


def readable_history(objects: ObjectStore, layout: FederationLayout, last: int | None = None) -> ReadableHistory:
    """As :func:`read_history`, but a damaged record is no error.

    Raises:
        SpecError: a record is of a newer version, or is whole and yet none of this fedbench's.
        FedbenchError: a round's marker is missing before the last.
    """
    numbers = layout.committed_rounds(objects.list(layout.rounds))
    if last is not None:
        numbers = [number for number in numbers if number <= last]
    missing = first_missing(numbers)
    if missing is not None:
        raise FedbenchError(f"{layout.federation}: {layout.marker(missing)} is missing in the store")
    records: list[RoundRecord] = []
    for number in numbers:
        source = layout.marker(number)
        try:
            records.append(read_whole(objects, source, RoundRecord, RECORD_VERSION))
        except DamagedObject as error:
            return ReadableHistory(records, Damage(number, source, error.reason), numbers[-1])
        except SpecError as error:
            if "is newer than this fedbench" in str(error):
                raise
            raise SpecError(f"{error}{_how_to_go_back(layout, number)}") from None
    return ReadableHistory(records, None, numbers[-1] if numbers else -1)


def _how_to_go_back(layout: FederationLayout, number: int) -> str:
    if not number:
        return ""
    return f"\nto put this round aside and go on from an earlier one: fedbench resume {layout.federation} --from ROUND"


def put_best(objects: ObjectStore, layout: FederationLayout, record: RoundRecord) -> None:
    """Write ``best.json``: ``record`` is the best round's."""
    objects.put_json(
        layout.best,
        {
            "version": 1,
            "round": record.round,
            "map50_voc10": record.decision.best_map50_voc10,
            "metric": record.decision.best_metric,
            "value": record.decision.best,
            "weights": record.model.model_dump(mode="json"),
        },
    )


def stopped(spec: FederationSpec, history: Sequence[RoundRecord]) -> bool:
    """Whether the last committed round was the last: its decision, unless only ``max_rounds`` stopped it and grew."""
    if not history:
        return False
    decision = history[-1].decision
    if decision.stop and decision.reason != "max_rounds":
        return True
    return history[-1].round >= spec.max_rounds


def require_scores(name: str, history: Sequence[RoundRecord]) -> None:
    """Hold that a round of ``history`` has figures, unless there was nothing to evaluate on.

    Raises:
        FedbenchError: every evaluation failed; says why the last one did.
    """
    failures = [failure for record in history for failure in record.dropped if failure.phase == "stop_and_eval"]
    if failures and not any(record.evaluations for record in history):
        last = failures[-1]
        raise FedbenchError(
            f"{name}: every evaluation failed, so no round has a figure and no model is registered; the last one: "
            f"client {last.client}: {last.reason}"
        )


def read_runs(objects: ObjectStore, settings: Settings) -> list[StoredRun | DamagedRun]:
    """All federations of the store, by name. One that cannot be read is no reason not to read the others."""
    runs: list[StoredRun | DamagedRun] = []
    for name in federations(settings.s3.prefix, objects.list(settings.s3.prefix)):
        spec = None
        try:
            spec = read_spec(objects, settings, name)
            records = read_history(objects, FederationLayout(settings.s3.prefix, name))
        except (FedbenchError, StoreCorrupt) as error:
            runs.append(DamagedRun(name, str(error), spec))
        else:
            runs.append(StoredRun(name, spec, records, _status(settings, name, spec, records)))
    return runs


def stored_spec(settings: Settings, name: str) -> FederationSpec:
    """The specification of a federation that is to go on: what is damaged of its rounds is mended then.

    If the store's is damaged, this machine's copy is taken. The run holds that against the rounds, as it does any other
    specification, before it writes it to the store again.

    Raises:
        SpecError: there is no federation of this name. Or its specification is damaged, and there is no copy.
    """
    with opened_store(settings) as objects:
        try:
            return read_spec(objects, settings, name)
        except DamagedObject:
            kept = kept_spec(settings, name)
            if kept is None:
                raise
            return kept


def _status(settings: Settings, name: str, spec: FederationSpec, records: list[RoundRecord]) -> str:
    if stopped(spec, records):
        return "finished"
    lock = FileLock(settings.home / "locks" / f"{name}.lock")
    if lock.acquire():
        lock.release()
        return "stopped"
    return "running"
