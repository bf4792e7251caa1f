"""Turns without learning, whose figures still depend on everything that the turn has read.

A client adds a number to one tensor; the number is drawn from the pixels and boxes of its images, its seed and its
learning rate. An evaluation's loss is drawn from the weights and the pixels. So a wrong global model, image, plan or
seed gives different bits, and a round costs nearly nothing. The numbers have few bits, so that their sums are exact in
float32 in any order.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any


def _draw(*parts: bytes) -> float:
    """Return a number from 0 to 1 that depends on all ``parts``."""
    digest = 0
    for part in parts:
        digest = zlib.crc32(part, digest)
    return (digest >> 16) / 2**16


def _content(batch: Any) -> list[bytes]:
    tensors = [batch.images, *batch.boxes, *batch.labels]
    return [tensor.contiguous().numpy().tobytes() for tensor in tensors]


def _train(detector: Any, batches: Iterable[Any], spec: Any, *, lr: float, seed: int, client: str, **_: Any) -> Any:
    import torch

    from tasks.training.local import TrainingResult

    images, drawn = 0, [repr((client, seed, lr)).encode()]
    for batch in batches:
        images += len(batch.indices)
        drawn += _content(batch)
    with torch.no_grad():
        next(detector.parameters()).add_(_draw(*drawn))
    return TrainingResult(loss=_draw(*drawn, b"loss"), terms={}, images=images, steps=1, seconds=0.0)


def _evaluate(
    detector: Any, batches: Iterable[Any], samples: Sequence[Any], spec: Any, *, device: str, **_: Any
) -> Any:
    from tasks.metrics.detections import ImageDetections
    from tasks.training.evaluation import PartResult

    weights = [tensor.contiguous().numpy().tobytes() for tensor in detector.state_dict().values()]
    losses: list[float] = []
    indices: list[int] = []
    for batch in batches:
        losses.append(_draw(*weights, *_content(batch)) * len(batch.indices))
        indices += batch.indices
    return PartResult(losses, len(indices), {index: ImageDetections.empty() for index in indices}, 0.0)


def learn_nothing(module: Any) -> None:
    module.train = _train


def detect_nothing(module: Any) -> None:
    module.evaluate = _evaluate


def narrow_layers(module: Any) -> None:
    module.YOLOV3_TINY_LAYERS = tuple(
        dataclasses.replace(layer, filters=max(layer.filters // 8, 4)) if isinstance(layer, module.Conv) else layer
        for layer in module.YOLOV3_TINY_LAYERS
    )
