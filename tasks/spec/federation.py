"""``FederationSpec``: one experiment, whole. It is the flow's parameter, a YAML file, MLflow's parameters, a digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from tasks.errors import SpecError
from tasks.spec.base import (
    MOST,
    MOST_CLIENTS,
    SPEC_VERSION,
    AddedLater,
    ClientId,
    Frozen,
    digest_fields,
    parse,
)
from tasks.spec.data import DataSpec, SyntheticStreet
from tasks.spec.detector import DetectorSpec, YoloV3TinySpec
from tasks.spec.shares import least_clients
from tasks.spec.training import EvaluationSpec, TrainingSpec
from tasks.spec.yaml_files import read_yaml

# What a round's Metrics have of mean average precision; measured as tasks.metrics says.
MapName = Literal["map50_voc10", "map50_voc07", "map50_coco", "map_coco"]
MAP_NAMES: tuple[MapName, ...] = get_args(MapName)


class StrategySpec(Frozen):
    """How updates become the next global model.

    additive: the updates count through their weighted sum alone, so that a part of them may be summed beforehand.
    """

    additive: ClassVar[bool] = False


class FedAvgSpec(StrategySpec, title="FedAvg"):
    """Federated averaging (McMahan et al., arXiv 1602.05629): the mean of the updates, weighted by training images."""

    additive: ClassVar[bool] = True
    kind: Literal["fedavg"] = Field("fedavg", description="How the updates of clients become one model.")


class Participation(Frozen, title="Participation"):
    """Who takes part in a round, and what becomes of those who fail."""

    clients: tuple[ClientId, ...] | None = Field(
        None, description="Devices that take part; left out, every device of the data set."
    )
    min_clients: int | None = Field(
        None, ge=1, le=MOST_CLIENTS, description="Clients that must be ready before round 1; left out, more than half."
    )
    wake_up_deadline: float = Field(120, gt=0, le=MOST, description="Seconds to wait for min_clients.")
    clients_per_round: int | None = Field(
        None, ge=1, le=MOST_CLIENTS, description="Clients drawn each round; left out, all ready ones."
    )
    check_load: bool = Field(False, description="Enforce max_load; for clients that have machines of their own.")
    max_load: float = Field(0.4, gt=0, le=1e6, description="A client qualifies under this load per core.")
    min_qualified: float = Field(0.5, ge=0, lt=1, description="Strictly more than this part of the drawn must qualify.")
    max_draws: int = Field(10, ge=1, le=100, description="Draws before the round fails; a second longer between each.")
    min_updates: int | None = Field(
        None,
        ge=1,
        le=MOST_CLIENTS,
        description="Quorum: updates without which a round fails; left out, more than half of the cohort.",
    )
    turn_retries: int = Field(2, ge=0, le=20, description="Times that a turn lost with its machine is run again.")
    turn_deadline: float | None = Field(
        None,
        gt=0,
        le=MOST,
        description="Seconds after which a client's turn is ended; left out: it takes as long as it takes. With "
        "partial_sums those of a turn's clients are added up, after which the whole turn is.",
    )
    evaluation_deadline: Annotated[float | None, AddedLater()] = Field(
        None,
        gt=0,
        le=MOST,
        description="Seconds after which a turn of evaluation is ended, and its test set left out of the round's "
        "figures; left out: it takes as long as it takes.",
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=MOST_CLIENTS,
        description="Turns a round's clients are packed into, by images; left out, one turn a client.",
    )
    partial_sums: Annotated[bool, AddedLater()] = Field(
        False,
        description="One weighted sum a turn goes to the store in place of an update for each client; for a strategy "
        "that adds only.",
    )
    max_weight_share: Annotated[float | None, AddedLater()] = Field(
        None,
        gt=0,
        le=1,
        description="The most that one client may count for in a round's model and figures, as a part of the whole; "
        "the others share the rest by their images. Left out: a client counts by the images that it says it has.",
    )

    @model_validator(mode="after")
    def _check(self) -> Participation:
        if self.clients is not None:
            if not self.clients or len(set(self.clients)) != len(self.clients):
                raise ValueError("clients: expected at least one client, each named once")
            most = len(self.clients)
            for field in ("min_clients", "clients_per_round", "min_updates"):
                value = getattr(self, field)
                if value is not None and value > most:
                    raise ValueError(f"{field}: expected at most {most}, the number of clients, found {value}")
        if self.min_updates and self.clients_per_round and self.min_updates > self.clients_per_round:
            raise ValueError(
                f"min_updates: expected at most clients_per_round ({self.clients_per_round}), found {self.min_updates}"
            )
        if self.clients is not None or self.clients_per_round is not None:
            fault = self.share_fault(len(self.clients or ()))
            if fault is not None:
                raise ValueError(fault)
        return self

    def share_fault(self, clients: int) -> str | None:
        """Why ``max_weight_share`` cannot be held by a round of so many clients, or ``clients_per_round``; or None."""
        count, share = self.clients_per_round or clients, self.max_weight_share
        if share is None or count >= least_clients(share):
            return None
        return (
            f"max_weight_share: expected at least {math.ceil(1e4 / count) / 1e4:g}, an equal share for each of {count} "
            f"clients, found {share:g}"
        )


class FederationSpec(Frozen, title="Federation"):
    """A federated experiment. Two equal specifications end, on one CPU model and torch build, in the same weights."""

    version: Literal[1] = Field(SPEC_VERSION, description="Version of the specification's form.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Every random draw comes from this seed.")
    max_rounds: int = Field(10, ge=1, le=100_000, description="The last round's number; the only field one may raise.")
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Stop after this many rounds without a better patience_metric; left out: never.",
    )
    patience_metric: Literal[MapName, "loss"] = Field(
        "map50_voc10", description="What patience waits for: a higher mean average precision, or a lower test loss."
    )
    target_map: float | None = Field(
        None, gt=0, le=1, description="Stop when target_metric reaches this; left out: whatever it reaches."
    )
    target_metric: MapName = Field("map50_voc10", description="Mean average precision, by its rules, of target_map.")
    best_metric: Annotated[MapName, AddedLater()] = Field(
        "map50_voc10", description="What the best round is the best by: its weights are kept, best.json names them."
    )
    data: DataSpec = Field(SyntheticStreet(), discriminator="kind", description="What is learned from, and by whom.")
    detector: DetectorSpec = Field(YoloV3TinySpec(), description="The network that is trained.")
    training: TrainingSpec = Field(TrainingSpec(), description="How a client trains in its turn.")
    evaluation: EvaluationSpec = Field(EvaluationSpec(), description="How the global model is scored.")
    strategy: FedAvgSpec = Field(FedAvgSpec(), description="How the clients' updates become the next global model.")
    participation: Participation = Field(
        Participation(), description="Who takes part in a round, and how failing clients are handled."
    )

    @model_validator(mode="after")
    def _check(self) -> FederationSpec:
        if self.data.devices is not None:
            self.check_devices(self.data.devices)
        if self.participation.partial_sums and not self.strategy.additive:
            raise ValueError(
                "participation.partial_sums: expected a strategy that adds updates only, found strategy.kind "
                f"{self.strategy.kind}"
            )
        return self

    def check_devices(self, devices: Sequence[str]) -> None:
        """Hold the participation against the data's ``devices``; where only the data tell them, once they are read.

        Raises:
            ValueError: a client that is no device, or a number larger than theirs; names the field.
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
    def clients(self) -> tuple[str, ...] | None:
        """Who takes part: those named, or all devices; None where only the data tell, before they are read."""
        return self.participation.clients or self.data.devices

    def class_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes ``names``, of which JSON keeps no order, in the order of a detector's labels."""
        order = {name: label for label, name in enumerate(getattr(self.data, "classes", None) or ())}
        return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of :func:`~tasks.spec.base.digest_fields`: the experiment's identity."""
        canonical = json.dumps(digest_fields(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The specification as the YAML that :func:`load_spec` reads."""
        import yaml  # here, so that the core loads without it

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_spec(document: Any, *, source: str) -> FederationSpec:
    """Validate a mapping as a specification.

    Raises:
        SpecError: one line a mistake, each naming ``source``, the field and what was expected.
    """
    return parse(FederationSpec, document, source=source, newest=SPEC_VERSION)


def load_spec(path: Path) -> FederationSpec:
    """Read a YAML (or JSON) file.

    Raises:
        SpecError: the file is missing, is no YAML, or has wrong fields.
    """
    document = read_yaml(path)
    if isinstance(document, dict) and "experiments" in document:
        raise SpecError(f"{path}: expected a federation's specification, found a suite; fedbench suite run runs it")
    return parse_spec(document, source=str(path))


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: the dotted field names that messages and MLflow use."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_fields(old: FederationSpec, new: FederationSpec) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields in which two specifications differ, each with its (old, new) value."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    names = sorted(before.keys() | after.keys())
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def with_fields(spec: FederationSpec, fields: dict[str, Any], *, source: str) -> FederationSpec:
    """``spec`` with dotted ``fields`` set, validated anew. Setting ``X.kind`` drops X's other fields.

    Raises:
        SpecError: an unknown field or a value that does not fit, named.
    """
    document = spec.model_dump(mode="json")
    for name, value in sorted(fields.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, last = name.split(".")
        node = document
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                why = f"{parent} has no fields" if parent in node else "no such field"
                raise SpecError(f"{source}: {name}: {why}; expected one of: {', '.join(node)}")
            node = child
        if last == "kind" and node.get("kind") != value:
            node.clear()
        node[last] = value
    return parse_spec(document, source=source)
