"""All metrics against slow implementations, written from the definitions, on thousands of small random cases.

The slow implementations share no code with the tested ones: they use neither numpy's sorting nor pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tasks.metrics.coco import evaluate_coco
from tasks.metrics.detections import ImageDetections, in_order, merge, pack, unpack
from tasks.metrics.truth import Truth, pack_truth, unpack_truth
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, random_scene

Case = tuple[list[Truth], list[ImageDetections]]
# A detection is right (True) or wrong (False), or does not count because its object is difficult (None).
Outcome = bool | None
Box = tuple[int, ...]
Outcomes = tuple[Outcome, ...]

# COCO's thresholds as floating-point numbers, as in its software: with them 7/10 does not quite reach the point 0.7.
IOU_THRESHOLDS = [float(value) for value in np.linspace(0.5, 0.95, 10)]
RECALLS = [float(value) for value in np.linspace(0, 1, 101)]


def _cases(seed: int, count: int) -> Iterator[tuple[Case, int, float]]:
    """Yield a case, the greatest number of detections per image and class, and the score threshold."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield random_scene(random), int(random.integers(1, 7)), float(random.choice([0.0, 0.25, 0.3]))


def _ranked(found: list[ImageDetections], label: int, threshold: float, most: int) -> list[tuple[float, int, Box]]:
    """Return (minus score, image, box) of a class's detections that count, best first, then by image and number."""
    rows = []
    for image, given in enumerate(found):
        mine = [
            (-float(score), image, number, tuple(int(side) for side in given.boxes[number]))
            for number, score in enumerate(given.scores)
            if given.labels[number] == label and score >= threshold
        ]
        rows += sorted(mine)[:most]
    return [(score, image, box) for score, image, _, box in sorted(rows)]


def _objects(truth: list[Truth], label: int) -> list[list[tuple[Box, bool]]]:
    """Return (box, difficult) of the objects of a class, by image."""
    return [
        [
            (tuple(int(side) for side in box), difficult is not None and bool(difficult[number]))
            for number, box in enumerate(boxes)
            if labels[number] == label
        ]
        for boxes, labels, difficult in truth
    ]


def _shared(one: Box, other: Box, pixel: int) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0]) + pixel
    height = min(one[3], other[3]) - max(one[1], other[1]) + pixel
    return width * height if width > 0 and height > 0 else 0


def _area(box: Box, pixel: int) -> int:
    return (box[2] - box[0] + pixel) * (box[3] - box[1] + pixel)


@cache
def _overlap(one: Box, other: Box, pixel: int) -> Fraction:
    shared = _shared(one, other, pixel)
    return Fraction(shared, _area(one, pixel) + _area(other, pixel) - shared)


@cache
def _binary_overlap(one: Box, other: Box, crowd: bool) -> float:
    """Return COCO's overlap, edge to edge. If ``other`` is a crowd, return the part of ``one`` inside it."""
    return float(Fraction(_shared(one, other, 0), _area(one, 0)) if crowd else _overlap(one, other, 0))


def _voc_outcomes(rows: list[tuple[float, int, Box]], objects: list[list[tuple[Box, bool]]]) -> Outcomes:
    """Return the outcomes by VOC's rule: compare a detection with the object it overlaps most, the first of equals."""
    claimed: set[tuple[int, int]] = set()
    outcomes: list[Outcome] = []
    for _, image, box in rows:
        overlaps = [_overlap(box, other, 1) for other, _ in objects[image]]
        best = max(range(len(overlaps)), key=lambda number: (overlaps[number], -number), default=None)
        if best is None or overlaps[best] < Fraction(1, 2):
            outcomes.append(False)
        elif objects[image][best][1]:
            outcomes.append(None)
        else:
            outcomes.append((image, best) not in claimed)
            claimed.add((image, best))
    return tuple(outcomes)


def _coco_outcomes(
    rows: list[tuple[float, int, Box]], objects: list[list[tuple[Box, bool]]], threshold: float
) -> Outcomes:
    """Return the outcomes by COCO's rule: a detection takes the free object it overlaps most, the last of equals."""
    taken: set[tuple[int, int]] = set()
    outcomes: list[Outcome] = []
    for _, image, box in rows:
        free, inside = [], False
        for number, (other, difficult) in enumerate(objects[image]):
            overlap = _binary_overlap(box, other, difficult)
            if overlap >= threshold and difficult:
                inside = True
            elif overlap >= threshold and (image, number) not in taken:
                free.append((overlap, number))
        if free:
            taken.add((image, max(free)[1]))
        outcomes.append(True if free else None if inside else False)
    return tuple(outcomes)


def _curve(outcomes: Outcomes, wanted: int) -> list[tuple[Fraction, Fraction]]:
    """Return (recall, precision) after each detection that counts."""
    points, right, counted = [], 0, 0
    for outcome in outcomes:
        if outcome is not None:
            right, counted = right + outcome, counted + 1
            points.append((Fraction(right, wanted), Fraction(right, counted)))
    return points


def _highest(points: list[tuple[Any, Any]], recall: Any) -> Any:
    """Return the highest precision at this recall or beyond."""
    return max((precision for reached, precision in points if reached >= recall), default=0)


@cache
def _voc10(outcomes: Outcomes, wanted: int) -> float:
    points = _curve(outcomes, wanted)
    recalls = sorted({Fraction(0), *(recall for recall, _ in points)})
    return float(sum((upper - lower) * _highest(points, upper) for lower, upper in pairwise(recalls)))


@cache
def _voc07(outcomes: Outcomes, wanted: int) -> float:
    points = _curve(outcomes, wanted)
    return float(sum(_highest(points, Fraction(tenth, 10)) for tenth in range(11)) / 11)


@cache
def _coco(outcomes: Outcomes, wanted: int) -> float:
    points = [(float(recall), float(precision)) for recall, precision in _curve(outcomes, wanted)]
    return sum(_highest(points, recall) for recall in RECALLS) / 101


def _slow(case: Case, most: int, threshold: float) -> dict[str, list[float | None]]:
    """Return each metric's figures by class; None for a class without objects that count."""
    figures: dict[str, list[float | None]] = {"voc07": [], "voc10": [], "recall": [], "coco50": [], "coco": []}
    for label in range(len(CLASSES)):
        objects, rows = _objects(case[0], label), _ranked(case[1], label, threshold, most)
        wanted = sum(not difficult for image in objects for _, difficult in image)
        if not wanted:
            for values in figures.values():
                values.append(None)
            continue
        voc = _voc_outcomes(rows, objects)
        coco = [_coco(_coco_outcomes(rows, objects, iou), wanted) for iou in IOU_THRESHOLDS]
        figures["voc07"].append(_voc07(voc, wanted))
        figures["voc10"].append(_voc10(voc, wanted))
        figures["recall"].append(voc.count(True) / wanted)
        figures["coco50"].append(coco[0])
        figures["coco"].append(sum(coco) / len(coco))
    return figures


def _close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, abs=1e-12)


def _mean(values: list[float | None]) -> Any:
    present = [value for value in values if value is not None]
    return _close(sum(present) / len(present)) if present else None


def test_all_metrics_equal_the_slow_implementations() -> None:
    seen: dict[str, set[float | None]] = {}
    for case, most, threshold in _cases(20, 2000):
        voc = evaluate_voc(*case, CLASSES, score_threshold=threshold, max_per_class=most)
        coco = evaluate_coco(*case, CLASSES, score_threshold=threshold, max_per_class=most)
        figures = {
            "voc07": (voc.map50_voc07, voc.per_class_voc07),
            "voc10": (voc.map50_voc10, voc.per_class),
            "recall": (voc.recall, voc.recall_per_class),
            "coco50": (coco.map50_coco, coco.per_class_50),
            "coco": (coco.map_coco, coco.per_class),
        }
        for name, expected in _slow(case, most, threshold).items():
            mean, per_class = figures[name]
            assert per_class == {label: _close(value) for label, value in zip(CLASSES, expected, strict=True)}, name
            assert mean == _mean(expected), name
            seen.setdefault(name, set()).add(mean and round(mean, 3))
    assert all(None in values and len(values) > 20 for values in seen.values())
    assert min(len(seen[name]) for name in ("voc07", "voc10", "coco50", "coco")) > 100  # the cases do differ


def test_parts_of_any_split_give_exactly_the_figures_of_one_evaluation() -> None:
    random = np.random.default_rng(22)
    for _ in range(40):
        truth: list[Truth] = []
        found: list[ImageDetections] = []
        for _ in range(4):
            some_truth, some_found = random_scene(random)
            truth += some_truth
            found += some_found
        part_of = random.integers(0, int(random.integers(1, 6)), len(truth))
        chosen = [np.flatnonzero(part_of == part).tolist() for part in random.permutation(6)]
        packed_truth = [pack_truth({image: truth[image] for image in images}) for images in chosen]
        packed_found = [pack({image: found[image] for image in images}) for images in chosen]
        merged_truth = in_order(merge(unpack_truth(part) for part in packed_truth), len(truth))
        merged_found = in_order(merge(unpack(part) for part in packed_found), len(truth))
        for evaluate in (evaluate_voc, evaluate_coco):
            whole = evaluate(truth, found, CLASSES, score_threshold=0.001, max_per_class=3)
            assert evaluate(merged_truth, merged_found, CLASSES, score_threshold=0.001, max_per_class=3) == whole


def test_coco_equals_another_package() -> None:
    """faster-coco-eval matches and accumulates in its own C++ code."""
    package = pytest.importorskip("faster_coco_eval")
    for case, most, threshold in _cases(23, 400):
        found = [
            {"image_id": image, "category_id": int(label), "bbox": _with_sides(box), "score": float(score)}
            for image, given in enumerate(case[1])
            for box, label, score in zip(given.boxes, given.labels, given.scores, strict=True)
            if score >= threshold
        ]
        objects = [
            {
                "image_id": image,
                "category_id": int(labels[number]),
                "bbox": _with_sides(box),
                "area": 1.0,
                "iscrowd": int(difficult is not None and difficult[number]),
            }
            for image, (boxes, labels, difficult) in enumerate(case[0])
            for number, box in enumerate(boxes)
        ]
        if not found or not objects:
            continue  # faster-coco-eval accepts no empty list
        truth = package.COCO(
            {
                "images": [{"id": image} for image in range(len(case[0]))],
                "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
                "annotations": [{"id": number, **item} for number, item in enumerate(objects, 1)],
            }
        )
        other = package.COCOeval_faster(truth, truth.loadRes(found), iouType="bbox")
        other.params.maxDets = [most]
        other.params.areaRng, other.params.areaRngLbl = [[0, 1e10]], ["all"]
        other.evaluate()
        other.accumulate()
        precision = other.eval["precision"][:, :, :, 0, 0]
        result = evaluate_coco(*case, CLASSES, score_threshold=threshold, max_per_class=most)
        for label, name in enumerate(CLASSES):
            present = precision[:, :, label].min() >= 0
            assert result.per_class[name] == _close(float(precision[:, :, label].mean()) if present else None)
            assert result.per_class_50[name] == _close(float(precision[0, :, label].mean()) if present else None)


def _with_sides(box: np.ndarray) -> list[float]:
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]
