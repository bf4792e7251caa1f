"""COCO average precision by pycocotools: cases computed by hand, and pitfalls of its interface."""

from __future__ import annotations

import threading

import pytest

from tasks.errors import DataError
from tasks.metrics.coco import CocoResult, evaluate_coco
from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, found_of, truth_of

SQUARE, OTHER, FAR = [0, 0, 10, 10], [50, 50, 60, 60], [200, 200, 210, 210]
# pycocotools adds 2e-16 to the denominator of each precision.
ONE, HALF = pytest.approx(1.0, abs=1e-12), pytest.approx(0.5, abs=1e-12)


def _evaluate(truth: list[Truth], detections: list[ImageDetections], **options: float) -> CocoResult:
    given = {"score_threshold": 0.001, "max_per_class": 100} | options
    return evaluate_coco(truth, detections, CLASSES, **given)  # type: ignore[arg-type]


def test_the_first_object_and_the_first_detection_count() -> None:
    # If ids started at 0, pycocotools would treat a match with the first object as none.
    result = _evaluate([truth_of([SQUARE])], [found_of([SQUARE], [0.9])])
    assert (result.map50_coco, result.map_coco) == (ONE, ONE)
    again = _evaluate([truth_of([SQUARE])], [found_of([SQUARE, SQUARE], [0.9, 0.8])])
    assert again.map50_coco == ONE  # the second is wrong, but all objects are found before it
    assert _evaluate([truth_of([SQUARE, OTHER])], [found_of([SQUARE, SQUARE, OTHER], [0.9, 0.8, 0.7])]).map50_coco == (
        pytest.approx((51 * 1 + 50 * 2 / 3) / 101, abs=1e-12)
    )


def test_101_points_by_hand() -> None:
    # One of two objects: recall 1/2 is reached at the points 0, 0.01, … 0.5.
    assert _evaluate([truth_of([SQUARE, OTHER])], [found_of([SQUARE], [0.9])]).map50_coco == pytest.approx(51 / 101)


def test_ten_thresholds_by_hand() -> None:
    # Edge to edge, 10 x 10 and 10 x 7.2 overlap by 0.72: enough for 0.50, 0.55, 0.60, 0.65 and 0.70.
    result = _evaluate([truth_of([SQUARE])], [found_of([[0, 0, 10, 7.2]], [0.9])])
    assert (result.map50_coco, result.map_coco) == (ONE, HALF)


def test_no_pixel_is_added_to_a_side() -> None:
    assert _evaluate([truth_of([SQUARE])], [found_of([[0, 0, 10, 5]], [0.9])]).map50_coco == ONE
    assert _evaluate([truth_of([SQUARE])], [found_of([[0, 0, 10, 4.9]], [0.9])]).map50_coco == 0.0
    # By VOC's rule these are 11 x 11 and 11 x 5.9 pixels.
    voc = evaluate_voc(
        [truth_of([SQUARE])], [found_of([[0, 0, 10, 4.9]], [0.9])], CLASSES, score_threshold=0.001, max_per_class=100
    )
    assert voc.map50_voc10 == 1.0


def test_the_rules_of_coco_and_voc_differ_on_two_overlapping_objects() -> None:
    # Both detections overlap the first object most. COCO gives the second detection the object that is left.
    truth, found = [truth_of([[0, 0, 9, 9], [3, 0, 12, 9]])], [found_of([[0, 0, 9, 9], [1, 0, 10, 9]], [0.9, 0.8])]
    assert _evaluate(truth, found).map50_coco == ONE
    voc = evaluate_voc(truth, found, CLASSES, score_threshold=0.001, max_per_class=100)
    assert (voc.map50_voc10, voc.map50_voc07) == (0.5, pytest.approx(6 / 11))


def test_nothing_to_find_and_nothing_found() -> None:
    nothing = _evaluate([truth_of([])], [found_of([SQUARE], [0.9])])
    assert (nothing.map50_coco, nothing.map_coco) == (None, None)
    assert nothing.per_class == nothing.per_class_50 == dict.fromkeys(CLASSES)
    assert _evaluate([], []).map_coco is None
    assert _evaluate([truth_of([])], [ImageDetections.empty()]).map_coco is None
    missed = _evaluate([truth_of([SQUARE])], [ImageDetections.empty()])
    assert (missed.map50_coco, missed.map_coco) == (0.0, 0.0)


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    truth = [truth_of([SQUARE, OTHER], [0, 2]), truth_of([])]
    found = [found_of([SQUARE, [50, 50, 60, 57.2]], [0.9, 0.8], [0, 2]), found_of([FAR], [0.7], [1])]
    result = _evaluate(truth, found)
    assert result.per_class == {"basket": ONE, "carton": None, "chair": HALF}
    assert result.per_class_50 == {"basket": ONE, "carton": None, "chair": ONE}
    assert result.map_coco == pytest.approx(0.75, abs=1e-12)


def test_ties_are_taken_in_the_order_of_images_and_detections() -> None:
    truth = [truth_of([]), truth_of([SQUARE])]
    assert _evaluate(truth, [found_of([FAR], [0.5]), found_of([SQUARE], [0.5])]).map50_coco == HALF
    assert _evaluate(truth[::-1], [found_of([SQUARE], [0.5]), found_of([FAR], [0.5])]).map50_coco == ONE
    assert _evaluate([truth[1]], [found_of([FAR, SQUARE], [0.5, 0.5])]).map50_coco == HALF


def test_the_limit_is_per_image_and_class_and_may_be_any_number() -> None:
    # pycocotools' summary supports only the limits 1, 10 and 100. Our figures come from its precisions.
    truth = [truth_of([SQUARE, OTHER], [0, 1]), truth_of([SQUARE], [0])]
    found = [found_of([SQUARE, FAR, OTHER], [0.8, 0.9, 0.1], [0, 0, 1]), found_of([SQUARE], [0.5], [0])]
    result = _evaluate(truth, found, max_per_class=1)
    # Baskets: a wrong one far away and the right one of the second image, so precision 1/2 at 51 points.
    assert result.per_class_50 == {"basket": pytest.approx(51 / 101 / 2), "carton": ONE, "chair": None}
    many = [found_of([FAR] * 150 + [SQUARE], [0.9] * 150 + [0.8])]
    assert _evaluate([truth_of([SQUARE])], many, max_per_class=100).map50_coco == 0.0
    assert _evaluate([truth_of([SQUARE])], many, max_per_class=200).map50_coco == pytest.approx(1 / 151)


def test_the_score_threshold_cuts() -> None:
    truth, found = [truth_of([SQUARE, OTHER])], [found_of([SQUARE, OTHER], [0.9, 0.3])]
    assert _evaluate(truth, found, score_threshold=0.3).map50_coco == ONE
    assert _evaluate(truth, found, score_threshold=0.31).map50_coco == pytest.approx(51 / 101)


def test_difficult_objects_neither_need_to_be_found_nor_cost_precision() -> None:
    truth = [truth_of([SQUARE, OTHER], difficult=[True, False])]
    result = _evaluate(truth, [found_of([SQUARE, SQUARE, OTHER], [0.9, 0.8, 0.7])])
    assert (result.map50_coco, result.map_coco) == (ONE, ONE)
    assert _evaluate([truth_of([SQUARE], difficult=[True])], [found_of([SQUARE], [0.9])]).map_coco is None


def test_a_detection_inside_a_difficult_object_is_not_punished() -> None:
    # pycocotools does so for crowds: it compares the detection's part inside the object, here all of it.
    truth = [truth_of([SQUARE, OTHER], difficult=[True, False])]
    assert _evaluate(truth, [found_of([[0, 0, 3, 3], OTHER], [0.9, 0.8])]).map50_coco == ONE
    assert _evaluate(truth, [found_of([[6, 6, 16, 16], OTHER], [0.9, 0.8])]).map50_coco == HALF


def test_detections_with_values_that_are_not_finite_are_wrong() -> None:
    nan, infinite = float("nan"), float("inf")
    found = found_of([SQUARE, [nan] * 4, [-infinite, 0, infinite, 9], SQUARE], [nan, 0.9, 0.8, 0.7])
    assert _evaluate([truth_of([SQUARE])], [found]).map50_coco == pytest.approx(1 / 3)


def test_boxes_of_any_size_are_wrong_if_they_find_nothing() -> None:
    # pycocotools would ignore an unmatched detection whose area is above 1e10 or negative.
    for box in ([0, 0, 1e6, 1e6], [10, 0, 0, 10], [0, 0, 0, 0]):
        assert _evaluate([truth_of([SQUARE])], [found_of([box, SQUARE], [0.9, 0.8])]).map50_coco == HALF


def test_it_prints_nothing_and_lets_other_threads_print(capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = [truth_of([SQUARE])] * 50, [found_of([SQUARE], [0.9])] * 50
    thread = threading.Thread(target=_evaluate, args=(truth, found))
    thread.start()
    lines, running = 0, True
    while running:
        running = thread.is_alive()
        print("line")
        lines += 1
    thread.join()
    assert capsys.readouterr().out == "line\n" * lines


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
