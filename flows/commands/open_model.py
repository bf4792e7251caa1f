"""Open the model that a run's name, a model file or a version in MLflow's registry refers to."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.commands.opened_model import OpenedModel
from flows.stored.names import listed, no_such_federation
from flows.stored.runs import StoredRun, check_client, opened_store, read_run, read_tuned
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.layout import FederationLayout, federations
from infra.store.objects import ObjectStore
from infra.store.suite_layout import suite_runs
from infra.store.weights import WeightStore
from infra.tracking.registered import fetch_registered, registered_models
from infra.tracking.registry import CLIENT_MARK
from tasks.client_eval import load_personal_state
from tasks.detectors.registry import build_detector
from tasks.detectors.state import load_state, state_of, state_sha256
from tasks.errors import DataError, SpecError
from tasks.metrics.own_record import of_client
from tasks.models.card import card_of
from tasks.models.file import load_model, read_card, read_state
from tasks.spec.base import check_name
from tasks.spec.plans import WeightRef
from tasks.spec.records import RoundRecord
from tasks.strategies.tensor_file import TensorFile

MODEL_SUFFIX = ".safetensors"
SCHEME = "models:/"
EXPECTED = (
    f"expected a run's name, a model file (*{MODEL_SUFFIX}), or a model of the registry "
    f"({SCHEME}NAME/VERSION, {SCHEME}NAME@ALIAS); a client's own model is called RUN@CLIENT"
)
_URI = re.compile(re.escape(SCHEME) + r"(?P<name>[^/@:']+)(?:/(?P<version>[0-9]+|latest)|(?P<alias>@[^/@]+))")


def open_model(reference: str, settings: Settings, number: int | None = None) -> OpenedModel:
    """Open the model that ``reference`` names. If it names a run, open round ``number``; None: the best round.

    ``RUN@CLIENT`` names the client's own model of that round.

    Raises:
        SpecError: there is no such model; the message says what was tried.
        DataError: the file cannot be used.
        InfraError: the store or MLflow cannot be reached.
    """
    is_file = reference.endswith(MODEL_SUFFIX)
    if number is not None and (is_file or reference.startswith(SCHEME)):
        raise SpecError(f"--round {number}: expected a run's name as MODEL, found {reference}, which has no rounds")
    if reference.startswith(SCHEME):
        return _open_registered(reference, settings)
    if is_file:
        return _open_file(Path(reference), reference)
    name, at, client = reference.partition("@")
    return _open_round(name, settings, number, client if at else None)


def _open_file(path: Path, title: str) -> OpenedModel:
    detector, card = load_model(path)
    if card.federation is not None and card.round is not None:
        title += f" ({card.federation}, round {card.round})"
    return OpenedModel(title, detector, card)


def _open_round(name: str, settings: Settings, number: int | None, client: str | None) -> OpenedModel:
    with opened_store(settings) as objects:
        return open_round(objects, settings, _read(objects, settings, name), number, client)


def open_round(
    objects: ObjectStore, settings: Settings, run: StoredRun, number: int | None, client: str | None
) -> OpenedModel:
    """Open a round's shared model, or ``client``'s own. number: None means the best round.

    Raises:
        SpecError: the run has no such round, client or model, or the round's weights were not kept.
    """
    name = run.name
    if not run.records:
        raise SpecError(f"{name}: expected a committed round, found none yet")
    chosen = run.records[-1].decision.best_round if number is None else number
    if not 0 <= chosen < len(run.records):
        raise SpecError(f"--round {chosen}: expected 0 to {len(run.records) - 1}, the committed rounds of {name}")
    record = run.records[chosen]
    check_client(run, record, client)
    if client is not None and not run.spec.strategy.personal:
        return _open_tuned(objects, settings, run, client, number)
    own = record.states.get(client) if client is not None else None
    _require_weights(objects, settings, run, record, own)
    weights = WeightStore(objects, settings.home / "cache" / "weights", settings.weight_cache_megabytes)
    path = weights.get(record.model.key, record.model.sha256, record.model.bytes).path
    card = card_of(run.spec, record)
    if client is not None:
        record = of_client(record, client)
        card = card_of(run.spec, record, notes=(own_note(client),))
    detector = build_detector(run.spec.detector, len(card.classes), seed=run.spec.seed)
    load_state(detector, path)
    if own is not None:
        state = TensorFile(weights.get(own.key, own.sha256, own.bytes).path)
        load_personal_state(detector, run.spec, TensorFile(path), state, source=own.key)
    title = f"{name}, round {chosen}" if client is None else f"{name}@{client}, round {chosen}"
    return OpenedModel(title, detector.eval(), card, run.spec, record, client)


def own_note(client: str) -> str:
    return f"The own model of client {client}, not the federation's shared model."


def _open_tuned(
    objects: ObjectStore, settings: Settings, run: StoredRun, client: str, number: int | None
) -> OpenedModel:
    """Open the model that a client made of the last round's.

    Raises:
        SpecError: another round is asked for, or there is no such model.
    """
    last = run.records[-1]
    if number not in (None, last.round):
        raise SpecError(
            f"--round {number}: expected {last.round}, the last round, whose model the clients fine-tuned; or "
            f"{run.name} without a client"
        )
    tuned = read_tuned(objects, settings, run)
    update = next((item for item in tuned.updates if item.client == client), None) if tuned is not None else None
    if tuned is None or update is None:
        there = [f"{run.name}@{item.client}" for item in tuned.updates] if tuned is not None else []
        raise SpecError(
            f"{run.name}@{client}: no fine-tuned model; the run has {listed(there, f'{run.name}@{client}')}"
        )
    ref = update.weights
    weights = WeightStore(objects, settings.home / "cache" / "weights", settings.weight_cache_megabytes)
    updates = tuple(item for item in tuned.updates if item.client == client)
    record = of_client(last.model_copy(update={"personal": tuned.evaluations, "updates": updates}), client)
    card = card_of(run.spec, record, notes=(own_note(client),))
    detector = build_detector(run.spec.detector, len(card.classes), seed=run.spec.seed)
    load_state(detector, weights.get(ref.key, ref.sha256, ref.bytes).path)
    title = f"{run.name}@{client}, fine-tuned from round {last.round}"
    return OpenedModel(title, detector.eval(), card, run.spec, record, client)


def _read(objects: ObjectStore, settings: Settings, reference: str) -> StoredRun:
    """Read the run that is named ``reference``.

    Raises:
        SpecError: there is no such run; the message says whether ``reference`` is a file or folder.
    """
    prefix = settings.s3.prefix
    keys = objects.list(prefix)
    known = federations(prefix, keys)
    if reference in known:
        return read_run(objects, settings, reference)
    suites = suite_runs(prefix, keys)
    if reference in suites:
        raise no_such_federation(reference, known, suites)
    try:
        check_name(reference, source="MODEL")
        tried = f"no run of this name in the store (it has: {listed(known, reference)})"
    except SpecError:
        tried = "no run can have this name"
    path = Path(reference)
    there = "a folder" if path.is_dir() else f"a file that does not end in {MODEL_SUFFIX}" if path.exists() else ""
    tried += f", and it is {there}" if there else ", and there is no such file"
    raise SpecError(f"{reference}: no such model: {tried}; {EXPECTED}")


def _require_weights(
    objects: ObjectStore, settings: Settings, run: StoredRun, record: RoundRecord, own: WeightRef | None
) -> None:
    """Check that the store still has the weights of ``record``, and the client's state ``own``.

    Raises:
        SpecError: retention removed them; the message names the rounds whose weights are kept.
    """
    layout = FederationLayout(settings.s3.prefix, run.name)
    keys = set(objects.list(layout.rounds))
    if record.model.key in keys and (own is None or own.key in keys):
        return
    kept = [str(other.round) for other in run.records if other.model.key in keys]
    raise SpecError(
        f"--round {record.round}: its weights were not kept; {run.name} has those of rounds {', '.join(kept)} "
        "(the best one and the last keep_globals)"
    )


def _open_registered(reference: str, settings: Settings) -> OpenedModel:
    """Open a registered model by its safetensors file alone. Code beside that file is never read."""
    name, version = parsed_uri(reference)
    services = EmbeddedServices(settings, prefect=False)
    with services, tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
        uri = services.mlflow_tracking_uri
        folder = fetch_registered(uri, services.s3_endpoint(), name, version, Path(temporary))
        if folder is None:
            found = [SCHEME + name for name in registered_models(uri)]
            raise SpecError(f"{reference}: no such model in the registry; it has: {listed(found, reference)}")
        path = _single_file(folder, reference)
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        federation, mark, client = name.partition(CLIENT_MARK)
        if federation in federations(settings.s3.prefix, objects.list(settings.s3.prefix)):
            run = read_run(objects, settings, federation)
            if mark:
                return _own_on_record(objects, settings, reference, run, client, path)
            return _on_record(reference, run, path)
        opened = _open_file(path, reference)
    return dataclasses.replace(opened, title=f"{opened.title}, which no run in the store vouches for")


def parsed_uri(reference: str) -> tuple[str, str]:
    """Return the name and the version (a number, ``latest`` or ``@alias``) in the URI of a registered model.

    Raises:
        SpecError: ``reference`` is no such URI.
    """
    parsed = _URI.fullmatch(reference)
    if parsed is None:
        raise SpecError(f"{reference}: expected {SCHEME}NAME/VERSION, {SCHEME}NAME@ALIAS or {SCHEME}NAME/latest")
    return parsed["name"], parsed["version"] or parsed["alias"]


def _on_record(reference: str, run: StoredRun, path: Path) -> OpenedModel:
    """Open the run's round whose weights the file has. The detector and the card come from the run's record.

    Raises:
        DataError: the weights are those of no committed round.
    """
    state = read_state(path)
    record = record_of_weights(run.records, state_sha256(state))
    if record is None:
        raise DataError(
            f"{reference}: expected the weights of a committed round of {run.name}, found others: the registered file "
            f"was changed, or another version of safetensors wrote it; the run's own model is called {run.name}"
        )
    card = card_of(run.spec, record)
    detector = build_detector(run.spec.detector, len(card.classes), seed=run.spec.seed)
    detector.load_state_dict(state)
    return OpenedModel(f"{reference} ({run.name}, round {record.round})", detector.eval(), card, run.spec, record)


def _own_on_record(
    objects: ObjectStore, settings: Settings, reference: str, run: StoredRun, client: str, path: Path
) -> OpenedModel:
    """Open the client's own model of the round that the file's card names, from the run's record.

    Raises:
        SpecError: the round's weights were not kept.
        DataError: the file has other weights.
    """
    opened = open_round(objects, settings, run, read_card(path).round, client)
    if state_sha256(read_state(path)) != state_sha256(state_of(opened.detector)):
        raise DataError(
            f"{reference}: expected the weights of {opened.title}, found others: the registered file was changed, or "
            f"the client was trained anew; the run's own model is called {run.name}@{client}"
        )
    return dataclasses.replace(opened, title=f"{reference} ({opened.title})")


def record_of_weights(records: Sequence[RoundRecord], sha256: str) -> RoundRecord | None:
    """Return the round that has these weights: the best round if it has them, else the latest; None if no round has."""
    found = [record for record in records if record.model.sha256 == sha256]
    best = records[-1].decision.best_round if records else None
    return next((record for record in found if record.round == best), found[-1] if found else None)


def _single_file(folder: Path, reference: str) -> Path:
    """Return the model file among the artifacts of a registered model.

    Raises:
        DataError: the registered model holds no model file, or several.
    """
    files: Sequence[Path] = sorted(folder.rglob(f"*{MODEL_SUFFIX}")) if folder.is_dir() else [folder]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{reference}: expected one *{MODEL_SUFFIX} file among its artifacts, found {names}")
    return files[0]
