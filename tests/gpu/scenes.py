"""Small images with bright rectangles, and the specification of a turn on them. Needs the learning core alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.data.samples import ImageSample
from tasks.spec.federation import FederationSpec

CLASSES = 3
SIDE = 64
PROPOSALS = {"train_proposals": 40, "test_proposals": 20, "sampled_proposals": 16}
# Fields of the specification of a small network of each kind.
DETECTORS: dict[str, dict[str, Any]] = {
    "yolov3": {},
    "yolov3-tiny": {"assignment": "side-ratio", "box_loss": "ciou"},
    "fcos-lite0": {"weights": {"kind": "random"}, "frozen_blocks": 0},
    "faster-rcnn-vgg16": {**PROPOSALS, "fc_width": 32},
    "faster-rcnn-resnet50-fpn": PROPOSALS,
    "faster-rcnn-mobilenetv3-320-fpn": PROPOSALS,
}


def samples_in(folder: Path, count: int, *, width: int = 96, height: int = 72, seed: int = 0) -> list[ImageSample]:
    """Write ``count`` images into ``folder``. Return them with their objects, none to three in each."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        pixels = generator.integers(0, 120, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).copy()
        boxes, labels = [], []
        for _ in range(number % 4):
            left, top = int(generator.integers(0, width - 20)), int(generator.integers(0, height - 20))
            right = left + int(generator.integers(12, min(40, width - left) + 1))
            bottom = top + int(generator.integers(12, min(40, height - top) + 1))
            label = int(generator.integers(CLASSES))
            picture[top:bottom, left:right] = 60
            picture[top:bottom, left:right, label] = 250
            boxes.append((left, top, right, bottom))
            labels.append(label)
        path = folder / f"{number}.png"
        Image.fromarray(picture).save(path)
        samples.append(
            ImageSample(
                path,
                width,
                height,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(labels, np.int64),
                str(number),
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
        )
    return samples


def turn_spec(
    kind: str, *, device: str, training: Mapping[str, Any] | None = None, strategy: Mapping[str, Any] | None = None
) -> FederationSpec:
    """Return a specification with a small detector of ``kind`` whose turns compute on ``device``."""
    return FederationSpec.model_validate(
        {
            "detector": {"kind": kind, "width": SIDE, "height": SIDE, **DETECTORS[kind]},
            "training": {"batch_size": 4, "device": device, **(training or {})},
            **({} if strategy is None else {"strategy": dict(strategy)}),
        }
    )
