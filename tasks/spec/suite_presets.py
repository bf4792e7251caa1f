"""Suites that come with fedbench; ``fedbench suite run NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from tasks.errors import SpecError
from tasks.spec.data import FederatedStreet, SyntheticStreet
from tasks.spec.detector import FcosLite0Spec, YoloV3Spec
from tasks.spec.detector_parts import RandomWeights
from tasks.spec.federation import FederationSpec
from tasks.spec.nearest import did_you_mean
from tasks.spec.participation import Participation
from tasks.spec.presets import STREET_DIGEST, preset, with_passes
from tasks.spec.strategies import AnyStrategy, FedAvgSpec, StrategySpec
from tasks.spec.street_suites import SGD_RATE, final_tier, scored_on_held_out, with_second_trials
from tasks.spec.suite import Experiment, SuiteSpec
from tasks.spec.training import EvaluationSpec, OptimizerSpec, Schedule, Sgd, TrainingSpec

_SEEDS = (1, 2, 3)
# Methods whose papers train with plain SGD, although they can be run with another optimiser.
_PLAIN_SGD = ("feddyn",)


def smoke() -> SuiteSpec:
    """Minutes, synthetic: shows that everything runs, not that it learns."""
    tiny = preset("smoke")
    laptop = tiny.model_copy(
        update={
            "detector": FcosLite0Spec(width=96, height=96),
            "participation": Participation(clients=("1", "2")),
        }
    )
    return SuiteSpec(
        name="smoke",
        target=0.05,
        experiments=(
            Experiment(name="yolov3-tiny", spec=tiny, seeds=_SEEDS[:2], centralised=False),
            Experiment(name="laptop", spec=laptop, seeds=_SEEDS[:1], local_only=True),
        ),
    )


def cpu() -> SuiteSpec:
    """Real Federated Street on two CPU cores, without a GPU: six passes over its images in each run."""
    passes = 6
    laptop, scratch = (with_passes(preset(name), passes) for name in ("street5_laptop", "street5"))
    twenty = laptop.model_copy(update={"data": FederatedStreet(split=20, digest=STREET_DIGEST)})
    return SuiteSpec(
        name="cpu",
        target=0.4,
        experiments=(
            Experiment(name="laptop-5-e1", spec=laptop, seeds=_SEEDS, local_only=True, local_seeds=1),
            Experiment(name="laptop-5-e2", spec=with_passes(laptop, passes, local_epochs=2), seeds=_SEEDS[:1]),
            Experiment(name="laptop-20-e1", spec=twenty, seeds=_SEEDS[:1]),
            Experiment(name="yolov3-tiny-5-e1", spec=scratch, seeds=_SEEDS[:1]),
        ),
    )


def paper() -> SuiteSpec:
    """The experiments of arXiv 1910.11089 on Federated Street, for GPUs: detectors, splits and local epochs."""
    experiments = []
    for name, spec in _paper_detectors().items():
        for split in (5, 20):
            data = FederatedStreet(split=split, digest=STREET_DIGEST)
            for epochs in (1, 5, 10):
                of_split = spec.model_copy(update={"data": data})
                experiments.append(
                    Experiment(
                        name=f"{name}-{split}-e{epochs}",
                        spec=with_passes(of_split, 200, local_epochs=epochs),
                        seeds=_SEEDS,
                        local_only=split == 5 and epochs == 1,
                    )
                )
    return SuiteSpec(name="paper", target=0.5, experiments=tuple(experiments))


def methods() -> SuiteSpec:
    """Every federated method on real Federated Street with two CPU cores: ten passes in each run, five hours.

    Each is paired with FedAvg of the same local optimiser: AdamW, or plain SGD if the method needs that. Every method
    has two trials. They are scored on held-out training images, so that the test set stays unseen.
    """
    laptop = scored_on_held_out(with_passes(preset("street5_laptop"), 10))
    sgd = Sgd(lr=SGD_RATE, momentum=0.0, weight_decay=0.02)
    return SuiteSpec(name="methods", target=0.4, experiments=with_second_trials(_methods(laptop, sgd, _SEEDS[:1])))


def methods_final() -> SuiteSpec:
    """The best methods of the suite methods on real Federated Street's test set with two CPU cores, for three seeds.

    Each has the recipe of its better trial, and trains on all training images for 40 passes, beside the centralised
    twin. FedAvg and the best method also run on the clean division, and with one seed for 20 devices and YOLOv3-tiny.
    """
    return SuiteSpec(name="methods-final", target=0.8, experiments=final_tier(methods(), _SEEDS))


def methods_smoke() -> SuiteSpec:
    """Every federated method for two rounds of two clients with a few images: shows that all run."""
    tiny = FederationSpec(
        max_rounds=2,
        data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64),
        detector=FcosLite0Spec(width=64, height=64, weights=RandomWeights(), frozen_blocks=0),
        # Three local steps and one: with one step each, several methods would be FedAvg.
        training=TrainingSpec(batch_size=2, schedule=Schedule(warmup_steps=0)),
        evaluation=EvaluationSpec(score_threshold=0.05),
        participation=Participation(clients=("4", "5"), shards=1),  # one turn, so that a cell takes one slot
    )
    return SuiteSpec(
        name="methods-smoke", target=0.05, experiments=_methods(tiny, Sgd(lr=1e-3, momentum=0.0), _SEEDS[:1])
    )


def _methods(base: FederationSpec, sgd: OptimizerSpec, seeds: tuple[int, ...]) -> tuple[Experiment, ...]:
    """Return the baselines, and each method of fedbench, trained as in the first baseline that it allows.

    base: FedAvg with AdamW. sgd: the optimiser of the baseline with plain SGD, which does not clip. A third baseline
    with twice the local epochs in half the rounds is there for methods that need several epochs.
    """
    plain = base.training.model_copy(update={"optimizer": sgd, "clip_norm": None})
    bases = {
        f"fedavg-{base.training.optimizer.kind}": base,
        f"fedavg-{sgd.kind}": base.model_copy(update={"training": plain}),
        f"fedavg-{base.training.optimizer.kind}-e2": with_passes(base, base.max_rounds, local_epochs=2),
    }
    strategies: dict[str, StrategySpec] = {
        "fedavg-uniform": FedAvgSpec(weights="uniform"),
        "fedavg-objects": FedAvgSpec(weights="objects"),
    }
    strategies |= {strategy.kind: strategy for kind in get_args(AnyStrategy) if (strategy := kind()) != FedAvgSpec()}
    wanted = list(bases)[:2]  # the two that the suite has in any case
    specs = {}
    for name, strategy in strategies.items():
        able = [base for base, spec in bases.items() if not list(strategy.faults(spec))]
        own = able[strategy.kind in _PLAIN_SGD]
        wanted.append(own)
        specs[name] = bases[own].model_copy(update={"strategy": strategy})
    specs = {name: spec for name, spec in bases.items() if name in wanted} | specs
    return tuple(Experiment(name=name, spec=spec, seeds=seeds, centralised=False) for name, spec in specs.items())


def _paper_detectors() -> dict[str, FederationSpec]:
    yolo = FederationSpec(
        detector=YoloV3Spec(width=416, height=416, assignment="side-ratio", box_loss="ciou", batch_norm_momentum=0.3),
        training=preset("street5").training.model_copy(update={"device": "cuda"}),
        evaluation=EvaluationSpec(batch_size=16),
    )
    laptop = preset("street5_laptop")
    laptop = laptop.model_copy(update={"training": laptop.training.model_copy(update={"device": "cuda"})})
    return {"yolov3": yolo, "faster-rcnn": preset("street5_faster_rcnn"), "laptop": laptop}


SUITES: dict[str, Callable[[], SuiteSpec]] = {
    suite.__name__.replace("_", "-"): suite for suite in (smoke, cpu, paper, methods, methods_final, methods_smoke)
}


def suite_preset(name: str) -> SuiteSpec:
    """Return the suite ``name``.

    Raises:
        SpecError: there is no such suite; the message lists all suites.
    """
    if name not in SUITES:
        raise SpecError(
            f"{name}: no such suite or file; expected a YAML file or one of: {', '.join(SUITES)}"
            f"{did_you_mean(name, SUITES)}"
        )
    return SUITES[name]()
