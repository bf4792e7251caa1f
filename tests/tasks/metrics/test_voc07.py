"""VOC 2007 average precision, over eleven points: cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.metrics.voc import VocResult, average_precision_voc07, average_precision_voc10, evaluate_voc
from tests.tasks.metrics.scenes import found_of, truth_of

CLASSES = ("basket", "carton")
SQUARE, OTHER, FAR = [0, 0, 9, 9], [50, 50, 59, 59], [200, 200, 209, 209]


def _evaluate(
    objects: list, boxes: list, scores: list[float], *, difficult: list[bool] | None = None, label: int = 0
) -> VocResult:
    """Return the result of one image. All objects are baskets, all detections are of class ``label``."""
    truth, found = truth_of(objects, difficult=difficult), found_of(boxes, scores, [label] * len(boxes))
    return evaluate_voc([truth], [found], CLASSES, score_threshold=0.001, max_per_class=100)


def test_eleven_points_by_hand() -> None:
    # Detections right, wrong, right; four objects. Precision is 1 up to recall 1/4, at the points 0 to 0.2, and 2/3 up
    # to recall 1/2, at the points 0.3 to 0.5.
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.5, 2 / 3])
    assert average_precision_voc07(recall, precision) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert average_precision_voc07(np.zeros(0), np.zeros(0)) == 0.0


@pytest.mark.parametrize("found", range(11))
def test_a_recall_of_so_many_tenths_reaches_its_point(found: int) -> None:
    # np.arange(0, 1.1, 0.1) has 0.30000000000000004, 0.6000000000000001 and 0.7000000000000001.
    recall = np.arange(1, found + 1) / 10
    points = 0 if not found else found + 1  # the point at recall 0 is reached by any detection
    assert average_precision_voc07(recall, np.ones(found)) == pytest.approx(points / 11)


def test_all_found_and_half_found() -> None:
    assert _evaluate([SQUARE, OTHER], [SQUARE, OTHER], [0.9, 0.8]).map50_voc07 == 1.0
    half = _evaluate([SQUARE, OTHER], [SQUARE], [0.9])
    assert half.map50_voc07 == pytest.approx(6 / 11)  # points 0 to 0.5
    assert half.map50_voc10 == 0.5


def test_a_wrong_detection_before_the_right_one() -> None:
    result = _evaluate([SQUARE], [FAR, SQUARE], [0.9, 0.8])
    assert result.map50_voc07 == result.map50_voc10 == 0.5


def test_a_second_claim_on_an_object_is_wrong() -> None:
    result = _evaluate([SQUARE, OTHER], [SQUARE, SQUARE, OTHER], [0.9, 0.8, 0.7])
    assert result.map50_voc07 == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_ties_are_taken_in_the_order_of_detections() -> None:
    assert _evaluate([SQUARE], [SQUARE, FAR], [0.5, 0.5]).map50_voc07 == 1.0
    assert _evaluate([SQUARE], [FAR, SQUARE], [0.5, 0.5]).map50_voc07 == 0.5


def test_nothing_to_find_and_nothing_found() -> None:
    assert _evaluate([], [SQUARE], [0.9]).map50_voc07 is None
    assert _evaluate([SQUARE], [], []).map50_voc07 == 0.0
    assert _evaluate([SQUARE], [SQUARE], [0.9], difficult=[True]).map50_voc07 is None


def test_a_class_without_objects_has_no_figure() -> None:
    result = _evaluate([SQUARE], [SQUARE], [0.9], label=1)
    assert result.per_class_voc07 == {"basket": 0.0, "carton": None}
    assert result.map50_voc07 == 0.0


def test_difficult_objects_neither_need_to_be_found_nor_cost_precision() -> None:
    result = _evaluate([SQUARE, OTHER], [SQUARE, SQUARE, OTHER], [0.9, 0.8, 0.7], difficult=[True, False])
    assert result.map50_voc07 == 1.0


def test_both_years_agree_where_precision_does_not_fall() -> None:
    assert average_precision_voc10(np.array([1.0]), np.array([0.25])) == 0.25
    assert average_precision_voc07(np.array([1.0]), np.array([0.25])) == 0.25
