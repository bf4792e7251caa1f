"""``fedbench run --dry-run``: the whole specification, and what the run would do. Nothing is started or written.

The text is YAML: a specification file that ``fedbench run`` takes, with the rest in comments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.commands.reading_only import aside, readable_store, with_published_weights
from flows.commands.run_name import NamedRun, choose_run
from flows.coordinator.preflight import pin, require_name, slot_count
from flows.stored.runs import is_running, readable_history, stopped
from flows.views.label_spaces import label_space_lines
from infra.errors import RunLocked, SettingsError
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.samples import FederatedData, has_global_test_set
from tasks.detectors.weight_file import weight_file_name
from tasks.errors import SpecError
from tasks.plain_text import plain
from tasks.spec.federation import FederationSpec
from tasks.spec.references import is_reference
from tasks.whole import DamagedObject

MOST_CLIENTS = 30  # clients that have a line each


@dataclass(frozen=True)
class DryRun:
    """What ``fedbench run`` would do. refusal: why it would refuse to run."""

    name: str
    spec: FederationSpec
    lines: list[str]
    refusal: SpecError | SettingsError | RunLocked | None = None

    @property
    def text(self) -> str:
        """The specification as YAML below the lines as comments."""
        return "".join(f"# {plain(line)}\n" for line in self.lines) + self.spec.to_yaml()


def dry_run(settings: Settings, name: str | None, base: str, given: FederationSpec) -> DryRun:
    """Read the data and the store, and return what a run of ``given`` would do.

    name: the federation's; None: the default name, which begins with ``base``.

    Raises:
        DataError, SpecError: the data cannot be used, or do not fit ``given``.
        InfraError: the store cannot be read.
    """
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        copied = aside(settings, [given], Path(folder))
        spec = pin(with_published_weights(given), copied, notes.append)
        data = _data(spec, copied)
    objects = readable_store(settings)
    named = choose_run(objects, settings, base, given, spec) if name is None else NamedRun(name, spec)
    spec = named.spec
    refusal: SpecError | SettingsError | RunLocked | None = None
    try:
        would = what_happens(objects, settings, named.name, spec)
        slots = None if settings.pools.used else slot_count(settings, spec)
    except (SpecError, SettingsError, RunLocked) as error:
        would, slots, refusal = f"refuse: {error}", None, error
    lines = [
        "nothing was started or written",
        f"name: {named.name}",
        f"digest: {spec.digest}",
        f"would {would}",
        *_data_lines(spec, data),
        *_model_lines(spec, settings, data),
        *([] if slots is None else [f"turns at a time: {slots}, on this machine"]),
        *([] if not settings.pools.used else ["turns on work pools (pools.turns)"]),
        *([f"note: {named.note}"] if named.note else []),
        *(f"warning: {note}" for note in notes),
    ]
    return DryRun(named.name, spec, lines, refusal)


def what_happens(objects: ObjectStore, settings: Settings, name: str, spec: FederationSpec) -> str:
    """Return what a run of ``spec`` under ``name`` would do, to follow the word *would*.

    Raises:
        SpecError: it would be refused, because the name belongs to another experiment.
        RunLocked: it would be refused, because a process of this machine runs the federation.
        InfraError: the store cannot be read.
    """
    layout = FederationLayout(settings.s3.prefix, name)
    new = f"begin a new federation: round 0, the initial model, then rounds 1 to {spec.max_rounds}"
    if is_running(settings, name):
        raise RunLocked(f"{name}: already running on this machine")
    try:
        if not objects.exists(layout.spec):
            return new
        require_name(objects, layout, spec)
    except DamagedObject as error:
        return f"write a damaged record again, and go on: {error}"
    found = readable_history(objects, layout)
    if found.damage is not None:
        return f"mend round {found.damage.round}, whose record is damaged, and go on"
    if not found.records:
        return f"begin, because no round is committed yet: round 0, then rounds 1 to {spec.max_rounds}"
    last = found.records[-1].round
    if stopped(spec, found.records):
        return f"print the result of the finished federation: rounds 0 to {last}; nothing is trained"
    return f"go on after round {last}, the last commit: rounds {last + 1} to {spec.max_rounds}"


def _data(spec: FederationSpec, settings: Settings) -> FederatedData | None:
    """Return the data; None if silos keep them to themselves."""
    if any(client in settings.pools.silos for client in spec.clients or ()):
        return None
    cache = settings.home / "cache" / "data"
    return load_data(spec.data, root_of=settings.data_root, cache=cache, faults=Faults(), whole=True)


def _data_lines(spec: FederationSpec, data: FederatedData | None) -> Iterator[str]:
    if data is None:
        yield f"data: {spec.data.kind}, at the silos"
        yield from label_space_lines(spec)
        return
    clients = list(spec.clients or data.train)
    train, held = ({client: len(part.get(client, ())) for client in clients} for part in (data.train, data.holdout))
    common = has_global_test_set(data)
    test = len(data.test[clients[0]]) if common else sum(len(data.test[client]) for client in clients)
    kept = f", {sum(held.values())} held out of training" if data.holdout else ""
    yield (
        f"data: {spec.data.kind}, {len(data.classes)} classes, {sum(train.values())} training images at "
        f"{_count(len(clients), 'client')}{kept}, {test} test images{' that all clients share' if common else ''}"
    )
    yield from label_space_lines(spec, data.classes)
    for client in clients[:MOST_CLIENTS]:
        own = "" if common else f", {len(data.test[client])} test images"
        kept = f", {held[client]} held out" if data.holdout else ""
        yield f"  client {client}: {train[client]} training images{kept}{own}"
    if len(clients) > MOST_CLIENTS:
        yield f"  and {len(clients) - MOST_CLIENTS} more clients"


def _model_lines(spec: FederationSpec, settings: Settings, data: FederatedData | None) -> Iterator[str]:
    """Yield lines on the detector, its weight file, and the bytes of a round."""
    if data is None:
        return
    from tasks.detectors.registry import build_detector
    from tasks.detectors.roles import tensor_roles
    from tasks.strategies.partly_local import PartlyLocal
    from tasks.strategies.registry import build_strategy

    detector = build_detector(spec.detector, len(data.classes), seed=spec.seed)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    size = f"{spec.detector.width}x{spec.detector.height}"
    yield f"detector: {spec.detector.kind} {size}, {parameters:,} parameters; method: {spec.strategy.label}"
    name = weight_file_name(spec.detector)
    if name is not None and not settings.weight_file(name).exists():
        yield f"weights: {settings.weight_file(name)} is not there and would be downloaded"
    clients = list(spec.clients or data.train)
    count = min(spec.participation.clients_per_round or len(clients), len(clients))
    epochs = _count(spec.training.local_epochs, "local epoch")
    yield f"each round: {count} of {_count(len(clients), 'client')}, {epochs}"
    bytes_of = {name: tensor.numel() * tensor.element_size() for name, tensor in detector.state_dict().items()}
    model, method = sum(bytes_of.values()), build_strategy(spec)
    if is_reference(spec):
        yield f"bytes: a model of {_mb(model)}, which one client alone need not send"
        return
    stays = method.local_names(tensor_roles(detector)) if isinstance(method, PartlyLocal) else frozenset()
    own = sum(bytes_of[name] for name in stays)
    sent = min(spec.participation.shards or count, count) if spec.participation.partial_sums else count
    down, up = count * (model + own), sent * (model - own) + count * own
    state = "; the method's state of each client comes on top" if method.client_state and not stays else ""
    yield (
        f"bytes of a round: {_mb(down)} down to {_count(count, 'client')} and {_mb(up)} up, {_mb(down + up)} exchanged "
        f"(a model is {_mb(model)}){state}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
