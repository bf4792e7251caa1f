"""Ignore regions in all measures: against pycocotools, against VOC's rule as written, and in the analyses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.analysis.analyse import analyse
from tasks.data.samples import ANY_CLASS, ImageSample, Regions, samples_digest
from tasks.data.truth import truth_of
from tasks.metrics.coco import evaluate_coco
from tasks.metrics.detections import ImageDetections
from tasks.metrics.scored import ScoredImages, ScoredModel
from tasks.metrics.truth import Truth, count_objects, pack_truth, unpack_truth
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, found_of

CASES = 1000
SIZE = len(CLASSES)
Case = tuple[list[ImageSample], list[ImageDetections]]


def sample(boxes: Any, labels: Any, regions: Any = (), region_labels: Any = ()) -> ImageSample:
    return ImageSample(
        Path("x.png"),
        40,
        40,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        key="x",
        content="x",
        regions=Regions(np.array(regions, np.float32).reshape(-1, 4), np.array(region_labels, np.int64)),
    )


def cases(seed: int) -> Iterator[Case]:
    """Yield small scenes with regions of one class and of any class. Many detections are near an object or a region."""
    random = np.random.default_rng(seed)
    for _ in range(CASES):
        samples, found = [], []
        for _ in range(int(random.integers(1, 3))):
            objects, regions, boxes = int(random.integers(1, 4)), int(random.integers(0, 3)), int(random.integers(1, 7))
            corners = random.integers(0, 8, (objects + regions + boxes, 2))
            every = np.concatenate([corners, corners + random.integers(3, 9, corners.shape)], axis=1)
            given = every[objects + regions :]
            near = random.random(boxes) < 0.7
            of = random.integers(0, objects + regions, boxes)
            given[near] = every[of[near]]
            given[near, 2:] += random.integers(-1, 2, (near.sum(), 2))
            labels = random.integers(0, 2, objects)
            of_object = near & (of < objects)
            found_labels = random.integers(0, 2, boxes)
            found_labels[of_object] = labels[of[of_object]]
            samples.append(
                sample(
                    every[:objects],
                    labels,
                    every[objects : objects + regions],
                    random.integers(ANY_CLASS, 2, regions),
                )
            )
            scores = (random.integers(0, 9, boxes) / 8).astype(np.float32)
            found.append(ImageDetections(given, scores, found_labels))
        yield samples, found


def without_regions(samples: Sequence[ImageSample]) -> list[ImageSample]:
    return [dataclasses.replace(item, regions=None) for item in samples]


def truth_of_all(samples: Sequence[ImageSample]) -> list[Truth]:
    return [truth_of(item, SIZE) for item in samples]


def plain_coco(samples: Sequence[ImageSample], found: Sequence[ImageDetections]) -> tuple[float, float]:
    """Return AP and AP50 of pycocotools: its first two figures. A region is a crowd; one of any class, one of each."""
    annotations: list[dict[str, Any]] = []

    def add(image: int, box: list[float], label: int, crowd: int) -> None:
        left, top, right, bottom = box
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": crowd,
            }
        )

    for image, item in enumerate(samples):
        for box, label in zip(item.boxes.tolist(), item.labels.tolist(), strict=True):
            add(image, box, label, 0)
        assert item.regions is not None
        for box, label in zip(item.regions.boxes.tolist(), item.regions.labels.tolist(), strict=True):
            for each in range(SIZE) if label == ANY_CLASS else [label]:
                add(image, box, each, 1)
    api = COCO()
    api.dataset = {
        "images": [{"id": image} for image in range(len(samples))],
        "categories": [{"id": label} for label in range(SIZE)],
        "annotations": annotations,
    }
    api.createIndex()
    detections = [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for image, given in enumerate(found)
        for box, label, score in zip(given.boxes.tolist(), given.labels.tolist(), given.scores.tolist(), strict=True)
    ]
    evaluation = COCOeval(api, api.loadRes(detections), "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # [IoU thresholds, recalls, classes, 1, 1], -1 for a class without objects
    return float(precision[precision > -1].mean()), float(precision[0][precision[0] > -1].mean())


def test_cocos_figures_are_those_of_pycocotools() -> None:
    mattered = 0
    for number, (samples, found) in enumerate(cases(seed=1)):
        rules = {"score_threshold": 0.0, "max_per_class": 100}
        result = evaluate_coco(truth_of_all(samples), found, CLASSES, **rules)  # type: ignore[arg-type]
        expected = plain_coco(samples, found)
        assert (result.map_coco, result.map50_coco) == pytest.approx(expected, abs=1e-12)
        if number % 10 == 0:
            other = evaluate_coco(truth_of_all(without_regions(samples)), found, CLASSES, **rules)  # type: ignore[arg-type]
            mattered += other.map_coco != result.map_coco
    assert mattered > 0.1 * CASES / 10


def voc_overlap(one: Sequence[int], other: Sequence[int]) -> Fraction:
    """Return the intersection over union of boxes that span whole pixels."""
    first, second = (
        {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)} for box in (one, other)
    )
    return Fraction(len(first & second), len(first | second))


def plain_voc(samples: Sequence[ImageSample], found: Sequence[ImageDetections]) -> float | None:
    """Return VOC's mAP of 2010 by the rule's text.

    Take a class's detections, best first. Find the object or region of the class that the detection overlaps most. If
    it overlaps none by at least one half, it is wrong. If that is a region, the detection does not count. If it is an
    object, the first detection to find it is right, and others are wrong. A region of any class is one of each class.
    """
    figures: list[Fraction] = []
    for label in range(SIZE):
        objects = [
            [[int(side) for side in box] for box, own in zip(item.boxes, item.labels, strict=True) if own == label]
            for item in samples
        ]
        regions = [
            [
                [int(side) for side in box]
                for box, own in zip(item.regions.boxes, item.regions.labels, strict=True)
                if own in (label, ANY_CLASS)
            ]
            for item in samples
            if item.regions is not None
        ]
        wanted = sum(map(len, objects))
        if not wanted:
            continue
        ranked = sorted(
            (-float(given.scores[place]), image, place)
            for image, given in enumerate(found)
            for place in range(len(given))
            if given.labels[place] == label
        )
        taken: set[tuple[int, int]] = set()
        right = seen = 0
        curve: list[tuple[Fraction, Fraction]] = []
        for _, image, place in ranked:
            box = [int(side) for side in found[image].boxes[place]]
            of_objects = [voc_overlap(box, other) for other in objects[image]]
            most = max(of_objects, default=Fraction(0))
            most_of_regions = max((voc_overlap(box, other) for other in regions[image]), default=Fraction(0))
            if most_of_regions >= Fraction(1, 2) and most_of_regions > most:
                continue
            seen += 1
            if most >= Fraction(1, 2) and (image, of_objects.index(most)) not in taken:
                taken.add((image, of_objects.index(most)))
                right += 1
            curve.append((Fraction(right, wanted), Fraction(right, seen)))
        steps = [max((precision for recall, precision in curve if recall >= Fraction(n, wanted)), default=Fraction(0))
                 for n in range(1, wanted + 1)]  # fmt: skip
        figures.append(sum(steps, Fraction(0)) / wanted)
    return float(sum(figures, Fraction(0)) / len(figures)) if figures else None


def test_vocs_figures_are_those_of_the_rule_as_written() -> None:
    mattered = 0
    for number, (samples, found) in enumerate(cases(seed=2)):
        rules = {"score_threshold": 0.0, "max_per_class": 100}
        result = evaluate_voc(truth_of_all(samples), found, CLASSES, **rules)  # type: ignore[arg-type]
        assert result.map50_voc10 == pytest.approx(plain_voc(samples, found), abs=1e-12)
        if number % 10 == 0:
            other = evaluate_voc(truth_of_all(without_regions(samples)), found, CLASSES, **rules)  # type: ignore[arg-type]
            mattered += other.map50_voc10 != result.map50_voc10
    assert mattered > 0.1 * CASES / 10


def test_truth_has_a_region_once_for_each_of_its_classes() -> None:
    both = sample([[0, 0, 9, 9]], [1], [[10, 10, 20, 20], [20, 20, 30, 30]], [2, ANY_CLASS])
    boxes, labels, difficult = truth_of(both, SIZE)
    assert labels.tolist() == [1, 2, 0, 1, 2]
    assert boxes.tolist() == [[0, 0, 9, 9], [10, 10, 20, 20], *[[20, 20, 30, 30]] * 3]
    assert difficult is not None
    assert difficult.tolist() == [False, True, True, True, True]
    hard = dataclasses.replace(both, difficult=np.array([True]))
    assert truth_of(hard, SIZE)[2].tolist() == [True] * 5  # type: ignore[union-attr]
    plain = dataclasses.replace(both, regions=None)
    assert truth_of(plain, SIZE) == (plain.boxes, plain.labels, None)
    assert count_objects([truth_of(both, SIZE)], CLASSES) == dict(zip(CLASSES, (0, 1, 0), strict=True))
    (read,) = unpack_truth(pack_truth({0: truth_of(both, SIZE)})).values()
    for column, same in zip((boxes, labels, difficult), read, strict=True):
        np.testing.assert_array_equal(column, same)


def test_the_samples_digest_depends_on_regions_and_stays_without_them() -> None:
    one, other = [[0, 0, 9, 9]], [[0, 0, 9, 8]]
    plain = dataclasses.replace(sample(one, [1]), regions=None)
    different = [plain, sample(one, [1], other, [1]), sample(one, [1], other, [ANY_CLASS]), sample(one, [1], one, [1])]
    # Two images with a region each, in one and the other order; a region is no object.
    different += [sample([], [], one, [1]), dataclasses.replace(sample(one + one, [1, 1]), regions=None)]
    assert len({samples_digest([item]) for item in different}) == len(different)
    assert samples_digest([plain]) == samples_digest([sample(one, [1])])
    assert samples_digest(different[:3]) != samples_digest(different[2::-1])


def test_no_analysis_counts_a_detection_in_a_region_or_misses_the_region() -> None:
    """The kept detections hold the regions, so that reports are the same when they are drawn later."""
    samples = [
        sample([[0, 0, 9, 9]], [0], [[20, 20, 39, 39]], [ANY_CLASS]),
        sample([[0, 0, 9, 9]], [1], [[20, 20, 39, 39]], [2]),
    ]
    found = [
        found_of([[0, 0, 9, 9], [20, 20, 39, 38], [20, 20, 38, 39]], [0.6, 0.8, 0.7], [0, 1, 2]),
        found_of([[0, 0, 9, 9], [20, 20, 39, 38]], [0.6, 0.8], [1, 2]),
    ]

    def analysed(samples: list[ImageSample]) -> tuple[ScoredModel, Any]:
        images = ScoredImages(("1",), "test", "0" * 64, tuple(truth_of_all(samples)), tuple(found))
        scored = ScoredModel.from_bytes(ScoredModel(CLASSES, 0.05, 100, (images,)).to_bytes(), source="x")
        return scored, analyse(scored)

    scored, analysis = analysed(samples)
    assert scored.matches.ignored.sum() == 3
    assert analysis.errors.average_precision == 1
    assert (analysis.errors.false_positives, analysis.errors.false_negatives) == (0, 0)
    assert analysis.confusion.counts.sum() == 2
    assert [(curve.name, curve.objects, curve.precision.tolist()) for curve in analysis.curves] == [
        (CLASSES[0], 1, [1]), (CLASSES[1], 1, [1]),
    ]  # fmt: skip
    _, ignoring = analysed(without_regions(samples))
    assert ignoring.errors.false_positives == 3
    assert ignoring.confusion.counts[SIZE].sum() == 3
