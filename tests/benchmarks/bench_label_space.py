"""What the rule for unlabelled classes is for: two clients that label one class each, with the rule and without it.

    pytest tests/benchmarks/bench_label_space.py                        # asserts it for all detectors, with three seeds
    python -m tests.benchmarks.bench_label_space --detector fcos-lite0  # prints the table

Each image has squares and discs. One client has the boxes of squares, the other those of discs, and the test images
have both. A row has the part of the test objects of each class that the last global model finds with a score of at
least 0.3: a model that is taught that discs are background at every second client does not rank them wrongly, but
scores them low. Without the rule, an object that a client does not label is background.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tasks.data.catalog import load_data
from tasks.data.samples import FederatedData
from tasks.spec.data import Coco
from tasks.spec.detector import FcosLite0Spec, RandomWeights, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec
from tasks.spec.federation import FederationSpec
from tasks.spec.training import AdamW, Augmentation, EvaluationSpec, Schedule, TrainingSpec
from tests.benchmarks.figures_text import table
from tests.benchmarks.small_federations import train_on

SIDE = 96
CLASSES = ("disc", "square")
# Training images of each client. The client that labels discs has fewer, so that it has less weight.
IMAGES = {"a": 48, "b": 48}
TEST_IMAGES = 32
SEEDS = (1, 2, 3)
SCORE = 0.3
# A class counts as learned if the model finds this part of its objects.
LEARNED = 0.7

_SIZE = {"width": SIDE, "height": SIDE}
_ANCHORS = tuple((side / SIDE, side / SIDE) for side in (12, 16, 20, 24, 30, 36))
# Each detector, with its learning rate and number of rounds.
DETECTORS: dict[str, tuple[Any, float, int]] = {
    "fcos-lite0": (FcosLite0Spec(**_SIZE, weights=RandomWeights(), frozen_blocks=0, backbone_lr=1.0), 1e-3, 10),
    "yolov3-tiny": (YoloV3TinySpec(**_SIZE, anchors=_ANCHORS, assignment="side-ratio", box_loss="ciou"), 1e-3, 24),
    "faster-rcnn-mobilenetv3-320-fpn": (
        FasterRcnnMobileNetV3Spec(**_SIZE, backbone_lr=1.0, train_proposals=100, sampled_proposals=32),
        1e-3,
        10,
    ),
}


def draw(folder: Path) -> None:
    """Write the images in COCO's form, with the boxes of both classes and the client of each training image."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(7)
    parts: dict[str, list[str | None]] = {
        "train.json": [client for client, count in IMAGES.items() for _ in range(count)],
        "test.json": [None] * TEST_IMAGES,
    }
    for file, devices in parts.items():
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number, device in enumerate(devices, 1):
            name = f"{file.removesuffix('.json')}{number}.png"
            picture, found = _picture(random)
            picture.save(folder / "images" / name)
            images.append(
                {
                    "id": number,
                    "file_name": name,
                    "width": SIDE,
                    "height": SIDE,
                    **({"device": device} if device else {}),
                }
            )
            for label, box in found:
                boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label, "bbox": box})
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
        (folder / file).write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def _picture(random: np.random.Generator) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
    """Return grey noise with one or two objects of each class, apart from each other, and their labels and boxes."""
    picture = Image.fromarray(random.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(picture)
    cells = random.permutation(4)[: 2 + int(random.integers(3))]
    found = []
    for place, cell in enumerate(cells.tolist()):
        label, side = place % 2, int(random.integers(18, 36))
        left, top = (SIDE // 2 * part + int(random.integers(0, SIDE // 2 - side)) for part in (cell % 2, cell // 2))
        shade = int(random.integers(0, 60))
        corners = (left, top, left + side - 1, top + side - 1)
        if CLASSES[label] == "disc":
            pen.ellipse(corners, fill=(230, 200 - shade, shade))
        else:
            pen.rectangle(corners, fill=(shade, 200 - shade, 230))
        found.append((label, [left, top, side, side]))
    return picture, found


def experiment(detector: str, seed: int, rounds: int | None = None) -> FederationSpec:
    """Return the experiment in which client a labels squares and client b discs."""
    spec, rate, most = DETECTORS[detector]
    return FederationSpec(
        seed=seed,
        max_rounds=rounds or most,
        data=Coco(name="shapes", classes=CLASSES, label_space={"a": ("square",), "b": ("disc",)}),
        detector=spec,
        training=TrainingSpec(
            local_epochs=2,
            batch_size=8,
            optimizer=AdamW(lr=rate),
            schedule=Schedule(hold=(rounds or most) // 2, decay=(rounds or most) // 2, floor=0.1),
            augmentation=Augmentation(scale=0, translate=0, color=0.1),
        ),
        evaluation=EvaluationSpec(score_threshold=SCORE),
    )


def without_rule(data: FederatedData) -> FederatedData:
    """Return ``data`` in which objects of unlabelled classes are background."""
    train = {
        client: tuple(dataclasses.replace(sample, labelled=None) for sample in samples)
        for client, samples in data.train.items()
    }
    return dataclasses.replace(data, train=train)


def learned(detector: str, seeds: Sequence[int] = SEEDS, rounds: int | None = None) -> list[dict[str, Any]]:
    """Return a row for each seed, with the rule and without it: the part of each class's objects that is found."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shapes"
        draw(folder)
        for seed in seeds:
            spec = experiment(detector, seed, rounds)
            data = load_data(spec.data, root_of=lambda name: folder, cache=folder, whole=True)
            for rule in (True, False):
                metrics = train_on(spec, data if rule else without_rule(data))
                row = {"detector": detector, "seed": seed, "rule": "yes" if rule else "no"}
                rows.append(row | {name: metrics.per_class_recall[name] for name in CLASSES})
    return rows


@pytest.mark.benchmark
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_global_model_learns_both_classes_with_the_rule_alone(
    detector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = learned(detector)
    with capsys.disabled():
        print("\n" + table(rows))
    for row in rows:
        both = min(row[name] for name in CLASSES) >= LEARNED
        assert both == (row["rule"] == "yes"), row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--detector", choices=DETECTORS, default="fcos-lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    print(table(learned(options.detector, options.seeds, options.rounds)))


if __name__ == "__main__":
    main()
