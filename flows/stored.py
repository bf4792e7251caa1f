"""Reading federations back from the store, without running them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.errors import StoreCorrupt
from infra.lock import FileLock
from infra.services.embedded import EmbeddedServices
from infra.settings import Settings
from infra.store.layout import FederationLayout, federations
from infra.store.objects import ObjectStore
from tasks.errors import FedbenchError, SpecError
from tasks.spec.base import RECORD_VERSION, check_name, parse
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import RoundRecord

MOST_LISTED = 10


@dataclass(frozen=True)
class StoredRun:
    """A federation as the store has it; ``status`` is running, finished, stopped or damaged."""

    name: str
    spec: FederationSpec
    records: list[RoundRecord]
    status: str


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
        SpecError: there is no federation of this name; lists those that there are.
    """
    check_name(name, source="federation")
    layout = FederationLayout(settings.s3.prefix, name)
    document = objects.get_json(layout.spec)
    if document is None:
        names = federations(settings.s3.prefix, objects.list(settings.s3.prefix))
        raise SpecError(f"{name}: no such federation in the store; expected one of: {listed(names, name)}")
    return parse_spec(document, source=layout.spec)


def read_history(objects: ObjectStore, layout: FederationLayout, last: int | None = None) -> list[RoundRecord]:
    """Records of the committed rounds, from 0; with ``last``, of no later round.

    Raises:
        SpecError: a record is of a newer version, or is damaged.
        FedbenchError: a round's marker is missing before the last.
    """
    numbers = layout.committed_rounds(objects.list(layout.rounds))
    if last is not None:
        numbers = [number for number in numbers if number <= last]
    if numbers != list(range(len(numbers))):
        missing = min(set(range(numbers[-1])) - set(numbers))
        raise FedbenchError(f"{layout.federation}: {layout.marker(missing)} is missing in the store")
    return [_read_record(objects, layout, number) for number in numbers]


def _read_record(objects: ObjectStore, layout: FederationLayout, number: int) -> RoundRecord:
    source = layout.marker(number)
    document = objects.get_json(source)
    try:
        return parse(RoundRecord, document, source=source, newest=RECORD_VERSION)
    except SpecError as error:
        version = document.get("version") if isinstance(document, dict) else None
        if not number or version != RECORD_VERSION:
            raise
        raise SpecError(
            f"{error}\nto put this round aside and go on from an earlier one: "
            f"fedbench resume {layout.federation} --from ROUND"
        ) from None


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


def read_runs(objects: ObjectStore, settings: Settings) -> list[StoredRun]:
    """All federations of the store, by name; one whose records cannot be read has none, and is damaged.

    Raises:
        SpecError: a specification cannot be read.
    """
    runs = []
    for name in federations(settings.s3.prefix, objects.list(settings.s3.prefix)):
        try:
            runs.append(read_run(objects, settings, name))
        except (FedbenchError, StoreCorrupt):
            runs.append(StoredRun(name, read_spec(objects, settings, name), [], "damaged"))
    return runs


def stored_spec(settings: Settings, name: str) -> FederationSpec:
    """
    Raises:
        SpecError: there is no federation of this name.
    """
    with opened_store(settings) as objects:
        return read_run(objects, settings, name).spec


def _status(settings: Settings, name: str, spec: FederationSpec, records: list[RoundRecord]) -> str:
    if stopped(spec, records):
        return "finished"
    lock = FileLock(settings.home / "locks" / f"{name}.lock")
    if lock.acquire():
        lock.release()
        return "stopped"
    return "running"
