"""The suites that compare federated methods on Federated Street (docs/results.md): screening and the final tier.

Screening chooses the methods of the final tier and each one's recipe. It scores held-out training images, so nothing is
chosen by a look at the test set. Every method has as many trials. The final tier trains on all training images and
scores the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.spec.data import FederatedStreet, Holdout
from tasks.spec.federation import FederationSpec
from tasks.spec.presets import STREET_CLEAN_DIGEST, STREET_DIGEST, preset, with_passes
from tasks.spec.strategies import StrategySpec
from tasks.spec.suite import Experiment, SuiteSpec

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

# The screening's trials that go on: FedAvg with each local optimiser, the three best others, the best personal method.
BASELINES = ("fedavg-adamw", "fedavg-sgd")
BEST = ("fedexp-b", "fedavg-objects", "fedprox")
BEST_PERSONAL = "ditto"
# A budget. In the screening's ten passes, most methods were still getting better.
FINAL_PASSES = 40
# Twenty devices take a third of the averaged steps in a round.
FINAL_PASSES_OF_20 = 100


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


def final_tier(screening: SuiteSpec, seeds: tuple[int, ...]) -> tuple[Experiment, ...]:
    """Return the experiments of the final tier, with the recipes of ``screening``.

    seeds: of the experiments with five devices. Those with 20, and with YOLOv3-tiny, have the first seed alone.
    """
    trials = {experiment.name: experiment.spec for experiment in screening.experiments}
    methods = {name.removesuffix(SECOND): trials[name] for name in (*BASELINES, *BEST, BEST_PERSONAL)}
    chosen = {name: methods[name] for name in (BASELINES[0], BEST[0].removesuffix(SECOND))}
    published = FederatedStreet(split=5, digest=STREET_DIGEST)
    clean = FederatedStreet(split=5, digest=STREET_CLEAN_DIGEST, division="clean")
    twenty = FederatedStreet(split=20, digest=STREET_DIGEST)
    found = [
        # All that train with AdamW have one twin.
        _final(name, spec, published, FINAL_PASSES, seeds, centralised=name == BASELINES[0])
        for name, spec in methods.items()
    ]
    found += [_final(f"clean-{name}", spec, clean, FINAL_PASSES, seeds) for name, spec in chosen.items()]
    found += [_final(f"street20-{name}", spec, twenty, FINAL_PASSES_OF_20, seeds[:1]) for name, spec in chosen.items()]
    yolo = preset("street5")
    for name, spec in chosen.items():
        own = yolo.model_copy(update={"strategy": spec.strategy, "participation": spec.participation})
        found.append(
            Experiment(name=f"yolov3-tiny-{name}", spec=own, seeds=seeds[:1], centralised=name == BASELINES[0])
        )
    return tuple(found)


def _final(
    name: str,
    trial: FederationSpec,
    data: FederatedStreet,
    passes: int,
    seeds: tuple[int, ...],
    *,
    centralised: bool = False,
) -> Experiment:
    """Return an experiment with the recipe of a trial: on all training images of ``data``, scored on its test set."""
    evaluation = trial.evaluation.model_copy(update={"on": "test"})
    spec = trial.model_copy(update={"data": data, "evaluation": evaluation})
    spec = with_passes(spec, passes, local_epochs=trial.training.local_epochs)
    return Experiment(name=name, spec=spec, seeds=seeds, centralised=centralised)


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
