"""Curves of precision over recall, the threshold of the best F1, and the confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.analysis.confusion import Confusion, confusion_matrix
from tasks.analysis.curves import best_threshold, class_curves
from tasks.metrics.detections import ImageDetections
from tasks.metrics.matching import Matches, match_detections
from tasks.metrics.truth import Truth
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, found_of, random_scene, truth_of

SQUARE, OTHER, FAR = [0, 0, 9, 9], [50, 50, 59, 59], [200, 200, 209, 209]


def matches_of(truth: list[Truth], found: list[ImageDetections], threshold: float = 0.0) -> Matches:
    return match_detections(truth, found, CLASSES, score_threshold=threshold, max_per_class=100)


def confusion_of(truth: list[Truth], found: list[ImageDetections], threshold: float = 0.5) -> Confusion:
    return confusion_matrix(matches_of(truth, found), truth, found, CLASSES, threshold=threshold)


def test_a_curve_by_hand() -> None:
    truth = [truth_of([SQUARE, OTHER])]
    found = [found_of([FAR, SQUARE, OTHER], [0.9, 0.8, 0.7])]
    (curve,) = class_curves(matches_of(truth, found), CLASSES)
    assert (curve.name, curve.objects) == ("basket", 2)
    assert curve.recall.tolist() == [0, 0.5, 1]
    assert curve.precision == pytest.approx([0, 1 / 2, 2 / 3])
    assert curve.envelope == pytest.approx([2 / 3] * 3)
    assert curve.average_precision == pytest.approx(2 / 3)
    assert curve.at(0.75) == (0.5, 0.5)
    assert curve.at(0.95) is None


def test_a_class_without_detections_has_a_curve_without_points() -> None:
    (curve,) = class_curves(matches_of([truth_of([SQUARE], [2])], [found_of([FAR], [0.9])]), CLASSES)
    assert (curve.name, len(curve.recall), curve.average_precision) == ("chair", 0, 0)
    assert len(curve.envelope) == 0


def test_curves_have_the_average_precision_of_the_evaluation() -> None:
    random = np.random.default_rng(7)
    for _ in range(200):
        truth, found = random_scene(random)
        expected = evaluate_voc(truth, found, CLASSES, score_threshold=0.2, max_per_class=100).per_class
        curves = class_curves(matches_of(truth, found, 0.2), CLASSES)
        areas = {curve.name: curve.average_precision for curve in curves}
        assert areas == {name: value for name, value in expected.items() if value is not None}


def test_the_best_threshold_by_hand() -> None:
    # Right, wrong, right, wrong of three objects: F1 2/4, 2/5, 4/6, 4/7.
    truth = [truth_of([SQUARE, OTHER, [80, 80, 89, 89]])]
    found = [found_of([SQUARE, FAR, OTHER, FAR], [0.9, 0.8, 0.7, 0.6])]
    assert best_threshold(matches_of(truth, found)) == pytest.approx(0.7)
    assert best_threshold(matches_of(truth, [found_of([FAR], [0.9])])) is None
    # Of one score, all or none: with four at 0.7 F1 is 4/8, as with 0.9 alone. The first two alone would have 4/5.
    found = [found_of([SQUARE, OTHER, FAR, FAR, FAR], [0.9, 0.7, 0.7, 0.7, 0.7])]
    assert best_threshold(matches_of(truth, found)) == pytest.approx(0.9)


def test_the_best_threshold_is_the_best_of_all_scores() -> None:
    random = np.random.default_rng(11)
    for _ in range(200):
        matches = matches_of(*random_scene(random))
        kept = ~matches.ignored
        f1 = {
            float(score): 2 * matches.right[matches.scores >= score].sum()
            / ((kept & (matches.scores >= score)).sum() + matches.counted.sum())
            for score in set(matches.scores[kept].tolist())
        }  # fmt: skip
        found = best_threshold(matches)
        assert (found is None) == (not matches.right.any())
        if found is not None:
            assert f1[found] == max(f1.values())


def test_a_confusion_matrix_by_hand() -> None:
    truth = [truth_of([SQUARE, OTHER, FAR], [0, 0, 1]), truth_of([SQUARE], [2])]
    found = [
        found_of([SQUARE, OTHER, OTHER, [300, 300, 309, 309]], [0.9, 0.8, 0.7, 0.6], [0, 1, 0, 2]),
        found_of([SQUARE, FAR], [0.4, 0.5], [2, 1]),
    ]
    confusion = confusion_of(truth, found)
    assert confusion.counts.tolist() == [
        [1, 1, 0, 0],  # one basket found, one is called a carton
        [0, 0, 0, 1],  # the carton is missed
        [0, 0, 0, 1],  # so is the chair: 0.4 is under the threshold
        [1, 1, 1, 0],  # where nothing is, or nothing is free
    ]
    assert confusion.shares[0].tolist() == [0.5, 0.5, 0, 0]
    assert confusion_of(truth, found, 0.4).counts[2].tolist() == [0, 0, 1, 0]


def test_difficult_objects_are_in_no_confusion() -> None:
    truth = [truth_of([SQUARE, OTHER], [0, 1], [True, False])]
    found = [found_of([SQUARE, SQUARE, FAR], [0.9, 0.8, 0.7], [0, 2, 0])]
    counts = confusion_of(truth, found).counts
    assert counts[:3].tolist() == [[0] * 4, [0, 0, 0, 1], [0] * 4]
    assert counts[3].tolist() == [1, 0, 0, 0]
    assert np.isnan(confusion_of(truth, found).shares[0]).all()


@pytest.mark.parametrize("seed", range(50))
def test_each_object_and_each_detection_counts_once(seed: int) -> None:
    truth, found = random_scene(np.random.default_rng(seed))
    confusion, matches = confusion_of(truth, found), matches_of(truth, found)
    assert confusion.counts[:3].sum(axis=1).tolist() == matches.wanted(3).tolist()
    detections = np.bincount(matches.labels[matches.scores >= 0.5], minlength=3)
    columns = confusion.counts[:, :3].sum(axis=0)
    difficult = not matches.counted.all()
    assert (columns <= detections).all() if difficult else (columns == detections).all()
    assert confusion.counts[3, 3] == 0
    assert confusion_of([], []).counts.sum() == 0
