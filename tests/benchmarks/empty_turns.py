"""Turns without learning: a process that imports this module neither trains nor evaluates in its turns.

Instead of training, each client adds a constant of its own to one tensor, so that no two updates are equal. An
evaluation reads its batches and detects nothing. All else is real: a turn fetches, loads, checks, serialises and
stores weights, and writes records.

    python tests/benchmarks/empty_turns.py run SPEC --name NAME …     # the command fedbench with such turns
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.data.batches import Batch
    from tasks.data.samples import ImageSample
    from tasks.detectors.base import Detector
    from tasks.spec.training import EvaluationSpec, TrainingSpec
    from tasks.training.evaluation import PartResult
    from tasks.training.local import TrainingResult


def train(detector: Detector, batches: Iterable[Batch], spec: TrainingSpec, *, client: str, **_: Any) -> TrainingResult:
    import torch

    from tasks.training.local import TrainingResult

    with torch.no_grad():
        next(detector.parameters()).add_(1e-3 * zlib.crc32(client.encode()) / 2**32)
    return TrainingResult(loss=0.0, terms={}, images=0, steps=1, seconds=0.0)


def evaluate(
    detector: Detector,
    batches: Iterable[Batch],
    samples: Sequence[ImageSample],
    spec: EvaluationSpec,
    *,
    device: str,
    **_: Any,
) -> PartResult:
    from tasks.metrics.detections import ImageDetections
    from tasks.training.evaluation import PartResult

    indices = [index for batch in batches for index in batch.indices]
    return PartResult([0.0], len(indices), {index: ImageDetections.empty() for index in indices}, 0.0)


def _replace() -> None:
    from tasks import client_eval
    from tasks.training import turn

    turn.train = train
    client_eval.evaluate = evaluate


if __name__ == "__main__":
    from flows import run
    from flows.cli.app import main

    run.PRELOAD = (*run.PRELOAD, "tests.benchmarks.empty_turns")  # type: ignore[assignment]
    main()
elif __name__ == "tests.benchmarks.empty_turns":
    _replace()
