"""The mistakes of methods in other parts of a specification: detectors and training with which they do not work."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.spec.faster_rcnn import FasterRcnnPyramidSpec
from tasks.spec.training import Sgd, TrainingSpec


def frozen_norm_faults(kind: str, detector: FasterRcnnPyramidSpec) -> Iterator[str]:
    """Yield why the method ``kind``, which keeps trained normalisation layers at the client, finds none there."""
    wrong, options = [], []
    if detector.norm == "frozen-batch-norm":
        wrong.append(f"detector.norm {detector.norm}")
        options.append("-s detector.norm=batch-norm")
    if detector.frozen >= detector.stages:
        # Only the backbone has normalisation layers.
        wrong.append(f"detector.frozen_layers {detector.frozen}")
        options.append(f"-s detector.frozen_layers={detector.stages - 1}")
    if wrong:
        yield (
            f"strategy.kind {kind}: expected a detector with trained normalisation layers, found "
            f"{', '.join(wrong)}; it runs with {' '.join(options)}"
        )


def plain_sgd_faults(kind: str, training: TrainingSpec, *, momentum: bool, clipping: bool) -> Iterator[str]:
    """Yield one text on all fields of ``training`` in which it is not the SGD that the method ``kind`` needs.

    momentum, clipping: whether these are allowed.
    """
    optimizer = training.optimizer
    wrong, options = [], []
    if not isinstance(optimizer, Sgd):
        wrong.append(f"training.optimizer.kind {optimizer.kind}")
        options.append("-s training.optimizer.kind=sgd")
    if not momentum and (not isinstance(optimizer, Sgd) or optimizer.momentum):
        if isinstance(optimizer, Sgd):
            wrong.append(f"training.optimizer.momentum {optimizer.momentum:g}")
        options.append("-s training.optimizer.momentum=0")
    if isinstance(optimizer, Sgd) and optimizer.nesterov:
        wrong.append("training.optimizer.nesterov true")
        options.append("-s training.optimizer.nesterov=false")
    if not clipping and training.clip_norm is not None:
        wrong.append(f"training.clip_norm {training.clip_norm:g}")
        options.append("-s training.clip_norm=null")
    if wrong:
        needed = "SGD without Nesterov's momentum" if momentum else "SGD without momentum"
        needed += "" if clipping else " and without clipping (training.clip_norm null)"
        yield f"strategy.kind {kind}: expected {needed}, found {', '.join(wrong)}; it runs with {' '.join(options)}"
