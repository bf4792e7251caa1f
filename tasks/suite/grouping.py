"""Group any runs into experiments: runs that differ only in their seed form one, together with their references."""

from __future__ import annotations

import hashlib
import itertools
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
    """An experiment while it is put together: runs by role, seed and device."""

    first: Run
    runs: dict[tuple[Role, int, str | None], Run] = field(default_factory=dict)

    def add(self, role: Role, run: Run) -> bool:
        """Add ``run`` unless there is another run of its role, seed and device. Return whether it was added."""
        key = (role, run.spec.seed, run.spec.data.local_only)
        return self.runs.setdefault(key, run) is run


def result_of_runs(runs: Sequence[Run], *, metric: MapName, target: float, created: datetime) -> SuiteResult:
    """Return ``runs`` as the result of a suite named ``comparison``.

    A second run of one specification and seed becomes an experiment of its own, because it says nothing about the
    spread over seeds. A reference is added to every experiment that it is a reference of and that has the same training
    images (all of its clients took part); without such an experiment it becomes one itself. ``code_version`` joins the
    versions of all runs.
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
    """Return the cell of each run: experiments in the order of their first run, federations first in each.

    A reference of several experiments has a cell in each.
    """
    federated = [run for run in runs if not is_reference(run.spec)]
    groups: dict[str, list[_Group]] = {}
    for run in federated:
        _add_to_first(groups.setdefault(_digest_without_seed(run.spec), []), "federated", run)
    experiments = [group for same in groups.values() for group in same]
    alone: dict[str, list[_Group]] = {}
    for run in runs:
        if not is_reference(run.spec):
            continue
        role: Role = "centralised" if run.spec.data.pooled else "local-only"
        placed = [group.add(role, run) for group in experiments if _is_reference_of(run, group)]
        if not any(placed):
            _add_to_first(alone.setdefault(_digest_without_seed(run.spec), []), role, run)
    experiments += [group for same in alone.values() for group in same]
    order = [run.name for run in runs]
    experiments.sort(key=lambda group: order.index(group.first.name))
    names: list[str] = []
    cells = []
    for group in experiments:
        names.append(_experiment_name(group, names))
        for (role, seed, device), run in group.runs.items():
            cells.append((Cell(experiment=names[-1], role=role, seed=seed, device=device, spec=run.spec), run))
    return cells


def _add_to_first(groups: list[_Group], role: Role, run: Run) -> None:
    """Add ``run`` to the first of ``groups`` without a run of its role, seed and device, else to a new group."""
    if not any(group.add(role, run) for group in groups):
        groups.append(_Group(run))
        groups[-1].add(role, run)


def _digest_without_seed(spec: FederationSpec) -> str:
    """Return the digest of ``spec`` without its seed and without the device of a local-only run."""
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
    """Return the number of training images, and of boxes by class, of all clients that took part in any round.

    device: count only this client.
    """
    clients = {info.client: info for record in run.records for info in record.clients}
    chosen = [info for client, info in clients.items() if device in (None, client)]
    boxes: Counter[str] = Counter()
    for info in chosen:
        boxes.update(info.class_counts)
    return sum(info.train_size for info in chosen), boxes


def _experiment_name(group: _Group, taken: Sequence[str]) -> str:
    """Return what the names of a group's runs begin with, as a valid name of an experiment that is not in ``taken``.

    The runs are those in the role of the first, at several seeds. If their names have nothing in common, or if there is
    one, it is the first's name without its seed.
    """
    first = group.first
    role = next(role for (role, _, _), run in group.runs.items() if run.name == first.name)
    names = [run.name for (each, _, _), run in group.runs.items() if each == role]
    parts = zip(*(re.split(r"[._-]", name) for name in names), strict=False)
    common = "-".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, parts))
    name = common if len(names) > 1 and common else re.sub(rf"[._-]s{first.spec.seed}$", "", first.name)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    name = _cut(name, _LONGEST_EXPERIMENT)
    number, found = 2, name
    while found in taken:
        found = f"{name[: _LONGEST_EXPERIMENT - 4]}-{number}"
        number += 1
    return found


def _cut(name: str, longest: int) -> str:
    """Return ``name``, cut to ``longest`` characters; a cut name ends in a digest of the whole name."""
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
