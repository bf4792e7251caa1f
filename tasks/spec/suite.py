"""``SuiteSpec``: a whole benchmark: experiments, their seeds, and the references to compare their figures with.

An experiment is one federated specification, run once for each seed, and its references
(:mod:`tasks.spec.references`), which share its data, seeds and number of image passes. Each run of one specification
is a *cell*. A cell that two experiments have in common is run once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from tasks.documents.plain import Plain
from tasks.errors import SpecError
from tasks.spec.base import MOST, SPEC_VERSION, Frozen, parse
from tasks.spec.federation import FederationSpec, MapName, load_spec, parse_spec, with_fields
from tasks.spec.presets import PRESETS, preset
from tasks.spec.references import is_reference, local_only, twin
from tasks.spec.yaml_files import read_yaml

# Parts of federations' names, which have at most 100 characters.
SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]
ExperimentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Role = Literal["federated", "centralised", "local-only"]


class Experiment(Frozen, title="Experiment"):
    """A federation, its seeds and its references."""

    name: ExperimentName = Field(description="Short name in tables and plots.")
    spec: FederationSpec = Field(description="The federation; its seed is replaced by each of the seeds.")
    seeds: tuple[Seed, ...] = Field((1234,), min_length=1, description="The experiment is run once for each seed.")
    centralised: bool = Field(True, description="Also run the centralised reference, for every seed.")
    local_only: bool = Field(
        False, description="Also run each device alone, scored on the test images of all, for local_seeds seeds."
    )
    local_seeds: int | None = Field(
        None, ge=1, le=MOST, description="Number of seeds, from the first, that local only runs for; left out, all."
    )

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: expected each seed once")
        if is_reference(self.spec):
            raise ValueError("spec.data: expected a federation of devices, found a reference; set centralised or "
                             "local_only of the experiment instead")  # fmt: skip
        if self.local_seeds is not None and not self.local_only:
            raise ValueError("local_seeds: expected none unless local_only is true")
        if self.local_seeds is not None and self.local_seeds > len(self.seeds):
            raise ValueError(
                f"local_seeds: expected at most {len(self.seeds)}, the number of seeds, found {self.local_seeds}"
            )
        return self


Floor = Annotated[float, Field(ge=0, le=1)]


class Floors(Frozen, title="Floors"):
    """Changes that are too small to matter, whatever the spread over seeds: a regression must be larger."""

    map50_voc10: Floor = Field(0.02, description="Floor of map50_voc10.")
    map_coco: Floor = Field(0.01, description="Floor of map_coco.")
    recall: Floor = Field(0.02, description="Floor of recall.")
    loss: Floor = Field(0.05, description="Floor of the test loss, as a part of the accepted loss.")
    class_ap: Floor = Field(0.05, description="Floor of a class's AP.")


class RegressionRule(Frozen, title="Regression rule"):
    """When a result counts as worse than the accepted one (:mod:`tasks.suite.regression`)."""

    false_alarms: float = Field(
        0.002,
        gt=0,
        lt=0.5,
        description="Probability, as far as spreads are known, that any regression is reported without a change.",
    )
    floors: Floors = Field(Floors(), description="Changes that are too small to matter.")
    classes: bool = Field(True, description="Also compare the AP of each class.")


class SuiteSpec(Frozen, title="Suite"):
    """A benchmark. Its figures are of the last rounds, at which all runs of an experiment have seen as many images."""

    version: Literal[1] = Field(SPEC_VERSION, description="Version of the suite's form.")
    name: SuiteName = Field(
        "suite", description="Name under which accepted results are kept, to compare later results with."
    )
    metric: MapName = Field("map50_voc10", description="Metric of the plots and of the target.")
    target: float = Field(
        0.5, gt=0, le=1, description="Value of the metric that each run's rounds to target are counted up to."
    )
    experiments: tuple[Experiment, ...] = Field(min_length=1, description="The experiments to run.")
    rule: RegressionRule = Field(RegressionRule(), description="When a result is worse than the accepted one.")

    @model_validator(mode="after")
    def _check(self) -> SuiteSpec:
        names = [experiment.name for experiment in self.experiments]
        if len(set(names)) < len(names):
            raise ValueError("experiments: expected each name once")
        return self

    @property
    def digest(self) -> str:
        """Return the sha256 (hex) of the names and digests of all cells, in order."""
        cells = [[cell.experiment, cell.label, cell.spec.digest] for cell in cells_of(self, whole=False)]
        return hashlib.sha256(json.dumps([self.name, cells]).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the suite as YAML that :func:`load_suite` reads."""
        import yaml  # here, so that the core loads without it

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def cell_label(role: Role, seed: int, device: str | None) -> str:
    """Return a label that is unique within an experiment: ``s1234``, ``s1234-central`` or ``s1234-local-3``."""
    ending = {"federated": "", "centralised": "-central", "local-only": f"-local-{device}"}[role]
    return f"s{seed}{ending}"


class Cell(Frozen):
    """One run of a suite.

    device: the only client of a local-only run.
    """

    experiment: ExperimentName
    role: Role
    seed: Seed
    device: str | None = None
    spec: FederationSpec

    @property
    def label(self) -> str:
        return cell_label(self.role, self.seed, self.device)

    @property
    def name(self) -> str:
        """Return a name that is unique within a suite: ``street5.s1234-local-3``."""
        return f"{self.experiment}.{self.label}"


def cells_of(suite: SuiteSpec, *, whole: bool = True) -> list[Cell]:
    """Return all cells, one experiment after the other, each seed's federation first.

    If two experiments have a cell with the same specification (digest), both cells are returned; the caller runs only
    one.

    whole: refuse local-only cells whose devices the specification does not name; without, leave them out.

    Raises:
        SpecError: with ``whole``, an experiment asks for such cells.
    """
    cells = []
    for experiment in suite.experiments:
        local = (experiment.local_seeds or len(experiment.seeds)) if experiment.local_only else 0
        for number, seed in enumerate(experiment.seeds):
            spec = experiment.spec.model_copy(update={"seed": seed})
            common = {"experiment": experiment.name, "seed": seed}
            cells.append(Cell(role="federated", spec=spec, **common))
            if experiment.centralised:
                cells.append(Cell(role="centralised", spec=twin(spec), **common))
            if number >= local:
                continue
            if spec.clients is None and whole:
                raise SpecError(
                    f"experiments.{experiment.name}: local_only: expected devices by name in "
                    "spec.participation.clients, found none"
                )
            for device in spec.clients or ():
                cells.append(Cell(role="local-only", device=device, spec=local_only(spec, device), **common))
    return cells


def load_suite(path: Path) -> SuiteSpec:
    """Return the suite in a YAML (or JSON) file.

    An experiment's ``spec`` may also be the name of a preset, or of a file relative to the suite's folder. Its ``set``
    is a mapping of dotted fields to change in the specification: ``set: {training.local_epochs: 5}``.

    Raises:
        SpecError: the file is missing, is no YAML, or has wrong fields.
    """
    return suite_of(read_yaml(path), path)


def suite_of(document: Any, path: Path) -> SuiteSpec:
    """Return the suite in ``document``, as :func:`load_suite` has read it from ``path``.

    Raises:
        SpecError: it has wrong fields.
    """
    if isinstance(document, dict) and "experiments" not in document and "data" in document:
        raise SpecError(f"{path}: expected a suite, found a federation's specification; fedbench run runs it")
    if isinstance(document, dict) and isinstance(document.get("experiments"), list):
        document = {**document, "experiments": [_written_out(item, path) for item in document["experiments"]]}
    return parse_suite(document, source=str(path))


def parse_suite(document: Any, *, source: str) -> SuiteSpec:
    """Return a mapping as a suite.

    Raises:
        SpecError: it is not valid; one line for each mistake names ``source``, the field and what was expected.
    """
    return parse(SuiteSpec, document, source=source, newest=SPEC_VERSION)


def _written_out(item: Any, path: Path) -> Any:
    """Return an experiment with its whole ``spec`` and without ``set``. The model refuses all other faults later."""
    if not isinstance(item, dict):
        return item
    where = f"{path}: experiments.{item.get('name', '?')}"
    fields, base = item.get("set", {}), item.get("spec")
    if not isinstance(fields, dict):
        raise SpecError(f"{where}: set: expected a mapping of dotted fields to values, found {type(fields).__name__}")
    if isinstance(base, Plain) and base.is_null:
        base = None
    if isinstance(base, str):
        file = path.parent / base
        if base in PRESETS or not (file.suffix or file.exists()):
            spec = _preset(base, where)
        else:
            spec = load_spec(file, fields_follow=bool(fields))
        base = spec.model_dump(mode="json")
    if fields:
        spec = parse_spec(base or {}, source=where, fields_follow=True)
        base = with_fields(spec, fields, source=where).model_dump(mode="json")
    others = {key: value for key, value in item.items() if key not in ("set", "spec")}
    return others if base is None else {**others, "spec": base}


def _preset(name: str, where: str) -> FederationSpec:
    try:
        return preset(name)
    except SpecError as error:
        raise SpecError(f"{where}: spec: {error}") from None


def with_seeds(suite: SuiteSpec, seeds: Sequence[int]) -> SuiteSpec:
    """Return ``suite`` with ``seeds`` in every experiment.

    Raises:
        SpecError: the seeds do not fit.
    """
    document = suite.model_dump(mode="json")
    for experiment in document["experiments"]:
        experiment["seeds"] = list(seeds)
    return parse_suite(document, source=suite.name)
