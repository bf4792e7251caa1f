"""The suite that compares federated methods on Federated Street (docs/results.md): its screening tier.

Screening chooses the methods of the final tier and each one's recipe. It scores held-out training images, so nothing is
chosen by a look at the test set. Every method has as many trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.spec.data import Holdout
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import StrategySpec
from tasks.spec.suite import Experiment

# A fifth of each client's training images, about 150 in all. Near-duplicates stay on one side.
HOLDOUT = Holdout(fraction=0.2, seed=1, least=2)

# The end of a second trial's name.
SECOND = "-b"

# Each method has two trials: its default fields, and those here. Methods that are not listed try a second learning
# rate, as the baselines do: they have no field that says how far to go, or need plain SGD, whose rate matters most.
SECOND_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "fedprox": {"mu": 0.1},
    "fedavgm": {"momentum": 0.5},
    "fedadagrad": {"server_lr": 0.003},
    "fedadam": {"server_lr": 0.003},
    "fedyogi": {"server_lr": 0.003},
    "fedexp": {"epsilon": 0.1},
    "fedsam": {"rho": 0.02},
    "ditto": {"proximity": 1.0},
}
# At 0.1 the loss on held-out images rose in the first round.
SGD_RATE = 0.03
# The learning rate of the second trial by the optimiser's kind.
SECOND_RATE: Mapping[str, float] = {"adamw": 2e-3, "sgd": 0.01}


def scored_on_held_out(spec: FederationSpec) -> FederationSpec:
    """Return ``spec`` with held-out images that alone are scored. Clients train one after the other, in one slot.

    A suite then runs as many cells at a time as the machine has cores, and no core waits for another one's clients.
    """
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"holdout": HOLDOUT}),
            "evaluation": spec.evaluation.model_copy(update={"on": "holdout"}),
            "participation": spec.participation.model_copy(update={"shards": 1}),
        }
    )


def with_second_trials(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Return ``experiments``, each followed by its second trial, whose name ends in :data:`SECOND`."""
    found: list[Experiment] = []
    for first in experiments:
        second = first.model_copy(update={"name": f"{first.name}{SECOND}", "spec": second_trial(first.spec)})
        found += [first, second]
    return tuple(found)


def second_trial(spec: FederationSpec) -> FederationSpec:
    """Return ``spec`` with the fields of its method's second trial."""
    fields = SECOND_FIELDS.get(spec.strategy.kind)
    if fields is not None:
        return spec.model_copy(update={"strategy": _changed(spec.strategy, fields)})
    optimizer = spec.training.optimizer
    optimizer = optimizer.model_copy(update={"lr": SECOND_RATE[optimizer.kind]})
    return spec.model_copy(update={"training": spec.training.model_copy(update={"optimizer": optimizer})})


def _changed(strategy: StrategySpec, fields: Mapping[str, Any]) -> StrategySpec:
    return type(strategy).model_validate({**strategy.model_dump(), **fields})
