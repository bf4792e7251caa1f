"""``FederationSpec``: one whole experiment, as flow parameter, YAML file, MLflow parameters and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from tasks.errors import SpecError
from tasks.spec.base import MOST, SPEC_VERSION, AddedLater, Frozen, digest_fields, parse
from tasks.spec.data import DataSpec, SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.kinds import AnyDetector, AnyStrategy
from tasks.spec.nearest import did_you_mean, listed
from tasks.spec.participation import Participation
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.training import EvaluationSpec, FineTuning, TrainingSpec
from tasks.spec.yaml_files import read_yaml

# The fields of a round's Metrics that are mean average precisions, defined in tasks.metrics.
MapName = Literal["map50_voc10", "map50_voc07", "map50_coco", "map_coco"]
MAP_NAMES: tuple[MapName, ...] = get_args(MapName)

# The context of a validation after which fields are set: the rules about several fields are checked then.
_FIELDS_FOLLOW = {"fields_follow": True}


class FederationSpec(Frozen, title="Federation"):
    """A federated experiment. On one CPU model and torch build, equal specifications give the same weights."""

    version: Literal[1] = Field(SPEC_VERSION, description="Version of the specification's form.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Seed of every random draw.")
    max_rounds: int = Field(
        10, ge=1, le=100_000, description="Number of the last round; the only field that may be raised later."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Stop after this many rounds without a better patience_metric; left out: never.",
    )
    patience_metric: Literal[MapName, "loss"] = Field(
        "map50_voc10", description="Metric that patience watches: a mean average precision, or the loss."
    )
    target_map: float | None = Field(
        None, gt=0, le=1, description="Stop when target_metric reaches this; left out: never."
    )
    target_metric: MapName = Field("map50_voc10", description="Kind of mean average precision that target_map is for.")
    best_metric: Annotated[MapName, AddedLater()] = Field(
        "map50_voc10", description="Metric that decides the best round, whose weights are kept and named in best.json."
    )
    data: DataSpec = Field(
        SyntheticStreet(), discriminator="kind", description="The data to learn from, and the devices that hold it."
    )
    detector: AnyDetector = Field(YoloV3TinySpec(), description="The network to train.")
    training: TrainingSpec = Field(TrainingSpec(), description="How a client trains in its turn.")
    evaluation: EvaluationSpec = Field(EvaluationSpec(), description="How the global model is scored.")
    strategy: AnyStrategy = Field(
        FedAvgSpec(), discriminator="kind", description="How clients train and their updates become the next model."
    )
    fine_tuning: Annotated[FineTuning | None, AddedLater()] = Field(
        None,
        title="Fine-tuning",
        description="Training of the global model at each client after the last round. Left out: none.",
    )
    participation: Participation = Field(
        Participation(), description="Which clients take part in a round, and how failing clients are handled."
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> FederationSpec:
        if info.context == _FIELDS_FOLLOW:
            return self
        if self.data.devices is not None:
            self.check_devices(self.data.devices)
        faults = list(self.strategy.faults(self))
        if self.participation.partial_sums and not self.strategy.additive:
            faults.append(
                "participation.partial_sums: expected a strategy that adds updates only, found strategy.kind "
                f"{self.strategy.kind}; it runs with -s participation.partial_sums=false"
            )
        if self.fine_tuning is not None and not self.strategy.shared_model:
            faults.append(
                f"fine_tuning: expected null, because strategy.kind {self.strategy.kind} has no complete shared model, "
                f"found epochs {self.fine_tuning.epochs}; it runs with -s fine_tuning=null"
            )
        if self.evaluation.on != "test" and self.data.holdout is None:
            faults.append(
                f"evaluation.on: expected test, because data.holdout keeps no images out of training, found "
                f"{self.evaluation.on}; it runs with -s data.holdout.fraction=0.2 or with -s evaluation.on=test"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def check_devices(self, devices: Sequence[str]) -> None:
        """Check the participation against the data's ``devices``. Called once they are known.

        Raises:
            ValueError: a client is not a device, or a number of clients exceeds theirs; the message names the field.
        """
        count = len(devices)
        unknown = sorted(set(self.participation.clients or ()) - set(devices))
        if unknown:
            numbered = list(devices) == [str(number) for number in range(1, count + 1)]
            raise ValueError(
                f"participation.clients: {', '.join(unknown)}: expected devices of the {count}-device split, "
                + (f"1 to {count}" if numbered else ", ".join(devices))
            )
        for field in ("min_clients", "clients_per_round", "min_updates"):
            value = getattr(self.participation, field)
            if value is not None and value > count:
                raise ValueError(f"participation.{field}: expected at most {count}, the split's devices, found {value}")
        fault = self.participation.share_fault(len(self.participation.clients or devices))
        if fault is not None:
            raise ValueError(f"participation.{fault}")

    @property
    def scores_own_models(self) -> bool:
        """Return whether clients have models of their own: by the method, or by fine-tuning after the last round."""
        return self.strategy.personal or self.fine_tuning is not None

    @property
    def clients(self) -> tuple[str, ...] | None:
        """Return the clients that take part: those named, else all devices; None if the data must be read to know."""
        return self.participation.clients or self.data.devices

    def class_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the classes ``names`` in the order of a detector's labels; JSON does not keep their order."""
        order = {name: label for label, name in enumerate(getattr(self.data, "classes", None) or ())}
        return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))

    @property
    def digest(self) -> str:
        """Return the sha256 (hex) of :func:`digest_fields` in canonical JSON: the experiment's identity."""
        canonical = json.dumps(digest_fields(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the specification as YAML that :func:`load_spec` reads."""
        import yaml  # here, so that the core loads without it

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_spec(document: Any, *, source: str, fields_follow: bool = False) -> FederationSpec:
    """Return a mapping as a specification.

    fields_follow: leave the rules about several groups of fields to :func:`with_fields`, which must be called next. So
    the fields that a refusal names can be set.

    Raises:
        SpecError: it is not valid; one line for each mistake names ``source``, the field and what was expected.
    """
    context = _FIELDS_FOLLOW if fields_follow else None
    return parse(FederationSpec, document, source=source, newest=SPEC_VERSION, context=context)


def load_spec(path: Path, *, fields_follow: bool = False) -> FederationSpec:
    """Return the specification in a YAML (or JSON) file. ``fields_follow`` is as in :func:`parse_spec`.

    Raises:
        SpecError: the file is missing, is no YAML, or has wrong fields.
    """
    document = read_yaml(path)
    if isinstance(document, dict) and "experiments" in document:
        raise SpecError(f"{path}: expected a federation's specification, found a suite; fedbench suite run runs it")
    return parse_spec(document, source=str(path), fields_follow=fields_follow)


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``, with the dotted names of fields that messages and MLflow use."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_fields(old: FederationSpec, new: FederationSpec) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two specifications differ, by dotted name, each with its (old, new) value."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    names = sorted(before.keys() | after.keys())
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def with_fields(spec: FederationSpec, fields: dict[str, Any], *, source: str) -> FederationSpec:
    """Return ``spec`` with dotted ``fields`` set, validated again. Setting ``X.kind`` drops X's other fields.

    Setting a field of X where X is null, as data.holdout is by default, gives X its other fields' defaults.

    Raises:
        SpecError: a field is unknown or a value does not fit; the message names the field.
    """
    document = spec.model_dump(mode="json")
    for name, value in sorted(fields.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, last = name.split(".")
        node = document
        for parent in parents:
            child = node.get(parent)
            if child is None and parent in node:
                child = node[parent] = {}
            if not isinstance(child, dict):
                why = f"{parent} has no fields" if parent in node else "no such field"
                near = "" if parent in node else did_you_mean(parent, node, name.partition(parent)[0])
                raise SpecError(f"{source}: {name}: {why}; expected one of: {listed(list(node))}{near}")
            node = child
        if last == "kind" and node.get("kind") != value:
            node.clear()
        node[last] = value
    return parse_spec(document, source=source)
