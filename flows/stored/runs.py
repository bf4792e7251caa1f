"""Read federations from the store without running them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flows.stored.names import listed, no_such_federation
from flows.stored.spec_copy import kept_spec
from infra.errors import StoreCorrupt
from infra.files.lock import FileLock, run_lock_path
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.layout import FederationLayout, federations, first_missing
from infra.store.objects import ObjectStore
from infra.store.suite_layout import suite_runs
from tasks.errors import FedbenchError, SpecError
from tasks.spec.base import RECORD_VERSION, SPEC_VERSION, check_name
from tasks.spec.federation import FederationSpec
from tasks.spec.records import FineTunedRecord, RoundRecord
from tasks.whole import DamagedObject, find_whole, read_whole


@dataclass(frozen=True)
class StoredRun:
    """A federation in the store. ``status`` is running, finished or stopped."""

    name: str
    spec: FederationSpec
    records: list[RoundRecord]
    status: str


@dataclass(frozen=True)
class DamagedRun:
    """A federation in the store that cannot be read, and the reason. ``spec``: None if that is damaged too."""

    name: str
    reason: str
    spec: FederationSpec | None


@contextlib.contextmanager
def opened_store(settings: Settings) -> Iterator[ObjectStore]:
    """Open the store. Start the embedded server if no run's server is up."""
    with EmbeddedServices(settings, prefect=False) as services:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        yield objects


def read_run(objects: ObjectStore, settings: Settings, name: str) -> StoredRun:
    """Return the federation ``name``, with the records of its committed rounds.

    Raises:
        SpecError: there is no federation of this name; the message lists those that exist. Or a record is damaged.
        FedbenchError: a marker is missing before the last.
    """
    spec = read_spec(objects, settings, name)
    records = read_history(objects, FederationLayout(settings.s3.prefix, name))
    return StoredRun(name, spec, records, _status(settings, name, spec, records))


def check_client(run: StoredRun, record: RoundRecord, client: str | None) -> None:
    """Check that the run has the model asked for: the shared one (None), or that of ``client``.

    Raises:
        SpecError: it has not; the message names the models that it has.
    """
    method = f"strategy.kind {run.spec.strategy.kind}"
    clients = dict.fromkeys([*(info.client for info in record.clients), *record.states])
    own = listed([f"{run.name}@{name}" for name in clients], f"{run.name}@{client}")
    if client is None:
        if not run.spec.strategy.shared_model:
            raise SpecError(
                f"{run.name}: expected a client's own model, because {method} has no complete shared model; the run "
                f"has {own}"
            )
    elif not run.spec.scores_own_models:
        raise SpecError(
            f"{run.name}@{client}: expected a run whose clients keep models of their own, found {method} and no "
            f"fine_tuning; its model is called {run.name}"
        )
    elif client not in clients:
        raise SpecError(f"{run.name}@{client}: no such client in round {record.round}; the run has {own}")


def read_tuned(objects: ObjectStore, settings: Settings, run: StoredRun) -> FineTunedRecord | None:
    """Return the record of fine-tuning the last round's model; None if there is none.

    Raises:
        DamagedObject: it is damaged; the run tunes again when it goes on.
    """
    if run.spec.fine_tuning is None or not run.records:
        return None
    last = run.records[-1]
    key = FederationLayout(settings.s3.prefix, run.name).fine_tuned_record(last.round)
    record = find_whole(objects, key, FineTunedRecord, RECORD_VERSION)
    return record if record is not None and record.model == last.model else None


def read_spec(objects: ObjectStore, settings: Settings, name: str) -> FederationSpec:
    """Return the specification of a federation, even if its rounds are damaged.

    Raises:
        SpecError: there is no federation of this name; the message lists those that exist.
        DamagedObject: the specification is damaged.
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
    prefix = settings.s3.prefix
    there = objects.list(prefix)
    raise no_such_federation(name, federations(prefix, there), suite_runs(prefix, there))


def read_history(objects: ObjectStore, layout: FederationLayout, last: int | None = None) -> list[RoundRecord]:
    """Return the records of the committed rounds, from 0 up to ``last`` (None: all).

    Raises:
        SpecError: a record has a newer version, or is damaged.
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
    """A damaged object of a committed round. ``reason`` says what is wrong, without the object's key."""

    round: int
    key: str
    reason: str


@dataclass(frozen=True)
class ReadableHistory:
    """The records of the committed rounds, from 0 up to the first damaged one.

    newest: number of the last committed round, damaged or not; -1 before the first.
    """

    records: list[RoundRecord]
    damage: Damage | None
    newest: int


def readable_history(objects: ObjectStore, layout: FederationLayout, last: int | None = None) -> ReadableHistory:
    """Return what :func:`read_history` does, but up to a damaged record instead of raising an error.

    Raises:
        SpecError: a record has a newer version, or is undamaged and yet not valid.
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
    """Write ``best.json`` from ``record``, the best round's."""
    objects.put_json(
        layout.best,
        {
            "version": 1,
            "round": record.round,
            "map50_voc10": record.decision.best_map50_voc10,
            "metric": record.decision.best_metric,
            "value": record.decision.best,
            "weights": record.model.model_dump(mode="json"),
        }
        | ({} if record.decision.on == "test" else {"on": record.decision.on}),
    )


def stopped(spec: FederationSpec, history: Sequence[RoundRecord]) -> bool:
    """Return whether the federation has stopped: no round follows the last committed one.

    The last round's decision counts, unless it stopped for ``max_rounds``, which may have been raised since.
    """
    if not history:
        return False
    decision = history[-1].decision
    if decision.stop and decision.reason != "max_rounds":
        return True
    return history[-1].round >= spec.max_rounds


def require_scores(name: str, history: Sequence[RoundRecord]) -> None:
    """Check that a round of ``history`` has an evaluation, unless there was nothing to evaluate on.

    Raises:
        FedbenchError: every evaluation failed; the message gives the last one's reason.
    """
    failures = [failure for record in history for failure in record.dropped if failure.phase == "stop_and_eval"]
    if failures and not any(record.evaluations or record.personal for record in history):
        last = failures[-1]
        raise FedbenchError(
            f"{name}: every evaluation failed, so no round has a figure and no model is registered; the last failure: "
            f"client {last.client}: {last.reason}"
        )


def read_runs(
    objects: ObjectStore, settings: Settings, names: Iterable[str] | None = None
) -> list[StoredRun | DamagedRun]:
    """Return the federations ``names``; None: all in the store, sorted. A damaged one is a :class:`DamagedRun`."""
    runs: list[StoredRun | DamagedRun] = []
    for name in federations(settings.s3.prefix, objects.list(settings.s3.prefix)) if names is None else names:
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
    """Return the specification of a federation that will go on. Its rounds may be damaged, because the run mends them.

    If the store's specification is damaged, this is this machine's copy. The run compares it with the rounds' records,
    like any other specification, before it writes it to the store again.

    Raises:
        SpecError: there is no federation of this name, or its specification is damaged and this machine has no copy.
    """
    with opened_store(settings) as objects:
        try:
            return read_spec(objects, settings, name)
        except DamagedObject:
            kept = kept_spec(settings, name)
            if kept is None:
                raise
            return kept


def is_running(settings: Settings, name: str) -> bool:
    """Return whether a process of this machine runs the federation ``name``, or with ``suite-NAME`` a suite run."""
    return FileLock(run_lock_path(settings.home, name)).is_taken()


def _status(settings: Settings, name: str, spec: FederationSpec, records: list[RoundRecord]) -> str:
    if stopped(spec, records):
        return "finished"
    return "running" if is_running(settings, name) else "stopped"
