"""Any runs as experiments: those that differ in their seed alone are one, with the references that are theirs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tasks.spec.federation import FederationSpec, MapName
from tasks.spec.records import RoundRecord
from tasks.spec.references import is_local_only, is_reference, is_twin
from tasks.spec.suite import Cell, Role
from tasks.spec.suite_records import SuiteResult
from tasks.suite.results import cell_result

_LONGEST_EXPERIMENT, _LONGEST_NAME = 32, 100


@dataclass(frozen=True)
class Run:
    """A stored federation with at least one committed round."""

    name: str
    spec: FederationSpec
    records: Sequence[RoundRecord]


@dataclass
class _Group:
    """An experiment that comes about: runs by role, seed and device."""

    first: Run
    runs: dict[tuple[Role, int, str | None], Run] = field(default_factory=dict)

    def add(self, role: Role, run: Run) -> bool:
        """Whether there was room: a second run of the same is no further seed."""
        place = (role, run.spec.seed, run.spec.data.local_only)
        return self.runs.setdefault(place, run) is run


def result_of_runs(runs: Sequence[Run], *, metric: MapName, target: float, created: datetime) -> SuiteResult:
    """``runs`` as the result of a suite named ``comparison``.

    A run of a specification and seed that another one has already is an experiment of its own: it says nothing of the
    spread over seeds. A reference is in every experiment that it is one of and that has the same training images (all
    of its clients came); without such an experiment it is one itself. Code versions are those that ran, joined.
    """
    cells = cells_of_runs(runs)
    specs: dict[str, FederationSpec] = {}
    for cell, _ in cells:
        specs.setdefault(cell.experiment, cell.spec)
    digest = json.dumps([[cell.experiment, cell.label, cell.spec.digest] for cell, _ in cells])
    return SuiteResult(
        suite="comparison",
        suite_run=_cut("_and_".join(run.name for run in runs), _LONGEST_NAME),
        suite_digest=hashlib.sha256(digest.encode()).hexdigest(),
        metric=metric,
        target=target,
        code_version=", ".join(dict.fromkeys(run.records[-1].environment.fedbench for run in runs)),
        environment=runs[0].records[-1].environment,
        created=created,
        specs=specs,
        cells=tuple(cell_result(cell, run.name, run.records, metric=metric, target=target) for cell, run in cells),
    )


def cells_of_runs(runs: Sequence[Run]) -> list[tuple[Cell, Run]]:
    """What each run is, experiments in the order of their first run, each one's federations first."""
    federated = [run for run in runs if not is_reference(run.spec)]
    groups: dict[str, list[_Group]] = {}
    for run in federated:
        _place(groups.setdefault(_but_seed(run.spec), []), "federated", run)
    experiments = [group for same in groups.values() for group in same]
    alone: dict[str, list[_Group]] = {}
    for run in runs:
        if not is_reference(run.spec):
            continue
        role: Role = "centralised" if run.spec.data.pooled else "local-only"
        placed = [group.add(role, run) for group in experiments if _is_reference_of(run, group)]
        if not any(placed):
            _place(alone.setdefault(_but_seed(run.spec), []), role, run)
    experiments += [group for same in alone.values() for group in same]
    order = [run.name for run in runs]
    experiments.sort(key=lambda group: order.index(group.first.name))
    names: list[str] = []
    cells = []
    for group in experiments:
        names.append(_experiment_name(group.first, names))
        for (role, seed, device), run in group.runs.items():
            cells.append((Cell(experiment=names[-1], role=role, seed=seed, device=device, spec=run.spec), run))
    return cells


def _place(groups: list[_Group], role: Role, run: Run) -> None:
    """Into the first of ``groups`` that has room for it, else into a new one."""
    if not any(group.add(role, run) for group in groups):
        groups.append(_Group(run))
        groups[-1].add(role, run)


def _but_seed(spec: FederationSpec) -> str:
    """The digest without the seed, and without which device is alone."""
    data = spec.data.model_copy(update={"local_only": None})
    return spec.model_copy(update={"seed": 0, "data": data}).digest


def _is_reference_of(run: Run, group: _Group) -> bool:
    seed = run.spec.seed
    federation = group.runs.get(("federated", seed, None), group.first)
    spec = federation.spec.model_copy(update={"seed": seed})
    device = run.spec.data.local_only
    if device is None:
        return is_twin(spec, run.spec) and training_images(run) == training_images(federation)
    return is_local_only(spec, run.spec) and training_images(run) == training_images(federation, device)


def training_images(run: Run, device: str | None = None) -> tuple[int, Counter[str]]:
    """Training images, and boxes by class, of all clients that were ever there, or of one of them."""
    clients = {info.client: info for record in run.records for info in record.clients}
    chosen = [info for client, info in clients.items() if device in (None, client)]
    boxes: Counter[str] = Counter()
    for info in chosen:
        boxes.update(info.class_counts)
    return sum(info.train_size for info in chosen), boxes


def _experiment_name(run: Run, taken: Sequence[str]) -> str:
    """The run's name as an experiment may have it, without its seed; different from those ``taken``."""
    name = re.sub(rf"[._-]s{run.spec.seed}$", "", run.name)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    name = _cut(name, _LONGEST_EXPERIMENT)
    number, found = 2, name
    while found in taken:
        found = f"{name[: _LONGEST_EXPERIMENT - 4]}-{number}"
        number += 1
    return found


def _cut(name: str, longest: int) -> str:
    """What is too long ends in a digest of the whole."""
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
