"""Suites that come with fedbench; ``fedbench suite run NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable

from tasks.errors import SpecError
from tasks.spec.data import FederatedStreet
from tasks.spec.detector import FcosLite0Spec, YoloV3Spec
from tasks.spec.federation import FederationSpec, Participation
from tasks.spec.presets import STREET_DIGEST, preset
from tasks.spec.suite import Experiment, SuiteSpec
from tasks.spec.training import EvaluationSpec

_SEEDS = (1, 2, 3)


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
    laptop, scratch = (_with_passes(preset(name), passes) for name in ("street5_laptop", "street5"))
    twenty = laptop.model_copy(update={"data": FederatedStreet(split=20, digest=STREET_DIGEST)})
    return SuiteSpec(
        name="cpu",
        target=0.4,
        experiments=(
            Experiment(name="laptop-5-e1", spec=laptop, seeds=_SEEDS, local_only=True, local_seeds=1),
            Experiment(name="laptop-5-e2", spec=_with_passes(laptop, passes, local_epochs=2), seeds=_SEEDS[:1]),
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
                        spec=_with_passes(of_split, 200, local_epochs=epochs),
                        seeds=_SEEDS,
                        local_only=split == 5 and epochs == 1,
                    )
                )
    return SuiteSpec(name="paper", target=0.5, experiments=tuple(experiments))


def _paper_detectors() -> dict[str, FederationSpec]:
    yolo = FederationSpec(
        detector=YoloV3Spec(width=416, height=416, assignment="side-ratio", box_loss="ciou", batch_norm_momentum=0.3),
        training=preset("street5").training.model_copy(update={"device": "cuda"}),
        evaluation=EvaluationSpec(batch_size=16),
    )
    laptop = preset("street5_laptop")
    laptop = laptop.model_copy(update={"training": laptop.training.model_copy(update={"device": "cuda"})})
    return {"yolov3": yolo, "faster-rcnn": preset("street5_faster_rcnn"), "laptop": laptop}


def _with_passes(spec: FederationSpec, passes: int, *, local_epochs: int = 1) -> FederationSpec:
    """Return ``spec`` with ``passes`` over the images: the learning rate is full for half of the rounds, then falls."""
    rounds = passes // local_epochs
    schedule = spec.training.schedule.model_copy(update={"hold": rounds - rounds // 2, "decay": rounds // 2})
    training = spec.training.model_copy(update={"local_epochs": local_epochs, "schedule": schedule})
    return spec.model_copy(update={"max_rounds": rounds, "training": training})


SUITES: dict[str, Callable[[], SuiteSpec]] = {suite.__name__: suite for suite in (smoke, cpu, paper)}


def suite_preset(name: str) -> SuiteSpec:
    """Return the suite ``name``.

    Raises:
        SpecError: there is no such suite; the message lists all suites.
    """
    if name not in SUITES:
        raise SpecError(f"{name}: no such suite or file; expected a YAML file or one of: {', '.join(SUITES)}")
    return SUITES[name]()
