"""The federated methods that benchmarks compare: those of the suite ``methods``, without its data and detector."""

from __future__ import annotations

from typing import Any

from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.street_suites import SECOND
from tasks.spec.suite_presets import suite_preset

# What a method may change in a client's training.
_TRAINING = ("optimizer", "clip_norm", "local_epochs")


def method_fields() -> dict[str, dict[str, Any]]:
    """Return the dotted fields of a specification for the first trial of each method, by its experiment's name."""
    found = {}
    experiments = suite_preset("methods").experiments
    for experiment in [experiment for experiment in experiments if not experiment.name.endswith(SECOND)]:
        spec = experiment.spec.model_dump(mode="json")
        fields = _dotted("strategy", spec["strategy"])
        for name in _TRAINING:
            fields |= _dotted(f"training.{name}", spec["training"][name])
        found[experiment.name] = fields
    return found


def baseline_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of FedAvg with the local training of the method that has ``fields``."""
    kept = {name: value for name, value in fields.items() if not name.startswith("strategy.")}
    return kept | {"strategy.kind": "fedavg"}


def with_method(spec: FederationSpec, fields: dict[str, Any]) -> FederationSpec:
    """Return ``spec`` with the method, whose training goes on from the specification's other fields."""
    start = spec.model_copy(update={"strategy": FedAvgSpec()})
    return with_fields(start, fields, source="benchmark")


def _dotted(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {f"{name}.{field}": item for field, item in value.items()}
