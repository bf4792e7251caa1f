"""VOC 2010 average precision: cases computed by hand, and random ones against a slow implementation."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.metrics.detections import ImageDetections, in_order, merge, pack, unpack
from tasks.metrics.voc import Truth, VocResult, average_precision_voc10, evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, found_of, random_scene, truth_of

SQUARE = [0, 0, 9, 9]  # 10 x 10 pixels: the kit counts both ends


def _evaluate(truth: list[Truth], detections: list[ImageDetections], **options: float) -> VocResult:
    given = {"score_threshold": 0.001, "max_per_class": 100} | options
    return evaluate_voc(truth, detections, CLASSES, **given)  # type: ignore[arg-type]


def test_area_under_the_envelope_by_hand() -> None:
    # Detections right, wrong, right; four objects: points (1/4, 1), (1/4, 1/2), (1/2, 2/3).
    area = average_precision_voc10(np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.5, 2 / 3]))
    assert area == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert average_precision_voc10(np.zeros(0), np.zeros(0)) == 0.0


def test_a_later_precision_lifts_an_earlier_one() -> None:
    # Detections wrong, right, right; two objects: precision 1/2 at recall 1/2 is raised to the 2/3 at recall 1.
    result = _evaluate(
        [truth_of([SQUARE, [50, 50, 59, 59]])],
        [found_of([[200, 200, 209, 209], SQUARE, [50, 50, 59, 59]], [0.9, 0.8, 0.7])],
    )
    assert result.map50_voc10 == pytest.approx(2 / 3)
    assert result.recall == 1.0


def test_a_side_is_counted_in_whole_pixels() -> None:
    # 10 x 10 against 10 x 5 pixels: exactly 0.5, which is enough; without the +1 it would be 36/81.
    assert _evaluate([truth_of([SQUARE])], [found_of([[0, 0, 9, 4]], [0.9])]).map50_voc10 == 1.0
    assert _evaluate([truth_of([SQUARE])], [found_of([[0, 0, 9, 3.9]], [0.9])]).map50_voc10 == 0.0


def test_a_second_claim_on_an_object_is_wrong() -> None:
    result = _evaluate(
        [truth_of([SQUARE, [50, 50, 59, 59]])], [found_of([SQUARE, SQUARE, [50, 50, 59, 59]], [0.9, 0.8, 0.7])]
    )
    assert result.map50_voc10 == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_only_the_object_overlapped_most_can_be_claimed() -> None:
    # Both detections overlap both objects by more than half, but the first object most. The other is not found.
    objects = [[0, 0, 9, 9], [3, 0, 12, 9]]
    result = _evaluate([truth_of(objects)], [found_of([[0, 0, 9, 9], [1, 0, 10, 9]], [0.9, 0.8])])
    assert result.recall == 0.5
    assert result.map50_voc10 == 0.5


def test_difficult_objects_neither_need_to_be_found_nor_cost_precision() -> None:
    truth = [truth_of([SQUARE, [50, 50, 59, 59]], difficult=[True, False])]
    result = _evaluate(truth, [found_of([SQUARE, SQUARE, [50, 50, 59, 59]], [0.9, 0.8, 0.7])])
    assert result.map50_voc10 == 1.0
    assert result.recall == 1.0
    only_difficult = _evaluate([truth_of([SQUARE], difficult=[True])], [found_of([SQUARE], [0.9])])
    assert only_difficult.map50_voc10 is None


def test_a_detection_of_another_class_or_image_finds_nothing() -> None:
    assert _evaluate([truth_of([SQUARE])], [found_of([SQUARE], [0.9], [1])]).per_class == {
        "basket": 0.0,
        "carton": None,
        "chair": None,
    }
    result = _evaluate([truth_of([SQUARE]), truth_of([])], [ImageDetections.empty(), found_of([SQUARE], [0.9])])
    assert result.map50_voc10 == 0.0


def test_means_are_over_the_classes_with_objects() -> None:
    truth = [truth_of([SQUARE, [50, 50, 59, 59], [80, 80, 89, 89]], [0, 2, 2])]
    result = _evaluate(truth, [found_of([SQUARE, [50, 50, 59, 59]], [0.9, 0.8], [0, 2])])
    assert result.per_class == {"basket": 1.0, "carton": None, "chair": 0.5}
    assert result.recall_per_class == {"basket": 1.0, "carton": None, "chair": 0.5}
    assert result.map50_voc10 == result.recall == 0.75


def test_nothing_to_find_and_nothing_found() -> None:
    nothing = _evaluate([truth_of([])], [found_of([SQUARE], [0.9])])
    assert nothing.map50_voc10 is None
    assert nothing.recall is None
    assert _evaluate([], []).map50_voc10 is None
    missed = _evaluate([truth_of([SQUARE])], [ImageDetections.empty()])
    assert missed.map50_voc10 == missed.recall == 0.0


def test_the_score_threshold_cuts_map_and_recall() -> None:
    truth, found = [truth_of([SQUARE, [50, 50, 59, 59]])], [found_of([SQUARE, [50, 50, 59, 59]], [0.9, 0.3])]
    assert _evaluate(truth, found).map50_voc10 == 1.0
    cut = _evaluate(truth, found, score_threshold=0.5)
    assert cut.map50_voc10 == cut.recall == 0.5
    assert _evaluate(truth, found, score_threshold=0.3).recall == 1.0  # a score at the threshold counts


def test_the_limit_is_per_image_and_class_best_first() -> None:
    truth = [truth_of([SQUARE, [50, 50, 59, 59]], [0, 1]), truth_of([SQUARE], [0])]
    far = [200, 200, 209, 209]
    found = [
        found_of([SQUARE, far, [50, 50, 59, 59]], [0.8, 0.9, 0.1], [0, 0, 1]),
        found_of([SQUARE], [0.5], [0]),
    ]
    result = _evaluate(truth, found, max_per_class=1)
    assert result.recall_per_class == {"basket": 0.5, "carton": 1.0, "chair": None}


def test_detections_with_values_that_are_not_finite_find_nothing() -> None:
    nan, infinite = float("nan"), float("inf")
    found = found_of([SQUARE, [nan] * 4, [-infinite, 0, infinite, 9], SQUARE], [nan, 0.9, 0.8, 0.7])
    assert _evaluate([truth_of([SQUARE])], [found]).map50_voc10 == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([truth_of([SQUARE])], [], "expected detections for 1 images, found 0"),
        ([truth_of([SQUARE], [3])], [ImageDetections.empty()], "image 0: truth: labels: .* 0 to 2, found 3"),
        ([truth_of([])], [found_of([SQUARE], [0.9], [-1])], "image 0: detections: labels: .* 0 to 2, found -1"),
        ([truth_of([SQUARE], [0, 1])], [ImageDetections.empty()], r"image 0: truth: .* found \[1, 4\], \[2\]"),
    ],
)
def test_bad_input_names_the_image(truth: list[Truth], found: list[ImageDetections], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _evaluate(truth, found)


# --- against an independent implementation -----------------------------------------------------------------


def _slow_average_precision(
    truth: list[Truth], found: list[ImageDetections], label: int, iou: float, threshold: float, most: int
) -> tuple[float | None, float | None]:
    """Return average precision and recall of one class, in loops after the text of VOC's development kit.

    The area is a sum over the found objects.
    """
    rows = []
    for image, detections in enumerate(found):
        mine = [
            (-float(score), image, index)
            for index, score in enumerate(detections.scores)
            if detections.labels[index] == label and score >= np.float32(threshold)
        ]
        rows += sorted(mine)[:most]
    wanted = 0
    for _, labels, difficult in truth:
        for index, one in enumerate(labels):
            wanted += int(one == label and (difficult is None or not difficult[index]))
    if not wanted:
        return None, None
    claimed: set[tuple[int, int]] = set()
    outcomes = []
    for _, image, index in sorted(rows):
        left = [float(side) for side in found[image].boxes[index]]
        best, best_overlap = -1, 0.0
        boxes, labels, difficult = truth[image]
        for number, right in enumerate(boxes):
            if labels[number] != label:
                continue
            width = min(left[2], right[2]) - max(left[0], right[0]) + 1
            height = min(left[3], right[3]) - max(left[1], right[1]) + 1
            if width <= 0 or height <= 0:
                continue
            areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (left, right)]
            overlap = width * height / (areas[0] + areas[1] - width * height)
            if overlap > best_overlap:
                best, best_overlap = number, overlap
        if best_overlap < iou:
            outcomes.append(False)
        elif difficult is not None and difficult[best]:
            continue
        else:
            outcomes.append((image, best) not in claimed)
            claimed.add((image, best))
    precisions = [sum(outcomes[: rank + 1]) / (rank + 1) for rank in range(len(outcomes))]
    area = sum(max(precisions[rank:]) for rank, right in enumerate(outcomes) if right) / wanted
    return area, sum(outcomes) / wanted


def test_random_cases_equal_the_slow_implementation() -> None:
    random = np.random.default_rng(20)
    seen: set[float | None] = set()
    for _ in range(3000):
        truth, found = random_scene(random)
        most, threshold, iou = int(random.integers(1, 6)), float(random.choice([0.0, 0.25, 0.3])), 0.5
        result = evaluate_voc(truth, found, CLASSES, iou=iou, score_threshold=threshold, max_per_class=most)
        figures = []
        for label, name in enumerate(CLASSES):
            area, recall = _slow_average_precision(truth, found, label, iou, threshold, most)
            assert result.per_class[name] == (None if area is None else pytest.approx(area, abs=1e-12))
            assert result.recall_per_class[name] == (None if recall is None else pytest.approx(recall, abs=1e-12))
            figures.append(area)
        present = [area for area in figures if area is not None]
        expected = pytest.approx(sum(present) / len(present), abs=1e-12) if present else None
        assert result.map50_voc10 == expected
        seen.add(result.map50_voc10 if result.map50_voc10 is None else round(result.map50_voc10, 3))
    assert len(seen) > 100  # the cases differ


def test_detections_merged_from_parts_give_exactly_the_same_figures() -> None:
    random = np.random.default_rng(8)
    truth, found = [], []
    for _ in range(20):
        some_truth, some_found = random_scene(random)
        truth += some_truth
        found += some_found
    whole = _evaluate(truth, found)
    parts = [{image: found[image] for image in range(start, len(found), 3)} for start in (2, 0, 1)]
    merged = merge(unpack(pack(part)) for part in parts)
    assert _evaluate(truth, in_order(merged, len(found))) == whole


def test_comparing_many_pairs_in_steps_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    corners = generator.integers(0, 60, (50, 2))
    boxes = np.hstack([corners, corners + generator.integers(5, 40, (50, 2))]).astype(np.float32)
    labels = generator.integers(0, 3, 50)
    truth = [truth_of(boxes[:20].tolist(), labels[:20].tolist())]
    found = [found_of(boxes.tolist(), generator.random(50).tolist(), labels.tolist())]
    whole = _evaluate(truth, found)
    monkeypatch.setattr("tasks.metrics.matching._PAIRS", 70)  # 3 boxes at a time
    assert _evaluate(truth, found) == whole
