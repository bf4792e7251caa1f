"""Types of errors: one case by hand for each, and what holds for any detections."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.analysis.error_types import ERROR_TYPES, DetectionErrors, ErrorType, find_errors
from tasks.metrics.detections import ImageDetections
from tasks.metrics.matching import match_detections
from tasks.metrics.truth import Truth
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, found_of, random_scene, truth_of

SQUARE, OTHER, FAR = [0, 0, 9, 9], [50, 50, 59, 59], [200, 200, 209, 209]  # 10 x 10 pixels each
HALF = [0, 0, 9, 3.9]  # of SQUARE: 49 of 100 pixels, IoU 0.49
TENTH = [0, 0, 9, 0]  # IoU 0.1 with SQUARE


def errors_of(
    truth: list[Truth], found: list[ImageDetections], threshold: float = 0.001, most: int = 100
) -> DetectionErrors:
    matches = match_detections(truth, found, CLASSES, score_threshold=threshold, max_per_class=most)
    return find_errors(matches, truth, found, CLASSES)


def counts(errors: DetectionErrors) -> dict[str, int]:
    """Return the counts that are not 0."""
    return {kind: count for kind in ERROR_TYPES if (count := errors.count(kind))}


def gains(errors: DetectionErrors) -> dict[str, float]:
    """Return the gains that are not 0, rounded."""
    found = {kind: errors.gain(kind) for kind in ERROR_TYPES}
    assert all(gain is not None for gain in found.values())
    return {kind: round(gain, 6) for kind, gain in found.items() if gain}


def test_a_wrong_class_is_a_classification_error() -> None:
    # Class 0: one of two objects found, AP 1/2. Class 1: right at 0.95, wrong at 0.9, AP 1. With the class corrected,
    # class 0 has both objects.
    truth = [truth_of([SQUARE, OTHER, FAR], [0, 0, 1])]
    errors = errors_of(truth, [found_of([FAR, SQUARE, OTHER], [0.95, 0.9, 0.8], [1, 1, 0])])
    assert counts(errors) == {"classification": 1}
    assert errors.average_precision == 0.75
    assert gains(errors) == {"classification": 0.25}
    assert errors.false_positive_gain == 0
    assert errors.false_negative_gain == 0.25


def test_a_poor_place_is_a_localisation_error() -> None:
    # Wrong at 0.9, right at 0.8: precision 1/2 at recall 1/2, AP 1/4. With the place corrected both are right.
    errors = errors_of([truth_of([SQUARE, OTHER])], [found_of([HALF, OTHER], [0.9, 0.8])])
    assert counts(errors) == {"localisation": 1}
    assert gains(errors) == {"localisation": 0.75}
    assert errors.false_positive_gain == 0.25  # AP 1/2: nothing is wrong, one of two is found
    assert errors.false_negative_gain == 0.25  # AP 1/2: wrong, then right, of one object


def test_a_wrong_class_in_a_poor_place_is_both() -> None:
    # Class 0: nothing found, AP 0. Class 1: wrong at 0.9, right at 0.8, AP 1/2; 1 without the wrong one. The object of
    # class 0 is missed: nobody corrects that one. Without it class 0 has nothing wrong, so the mean is class 1's 1/2.
    errors = errors_of([truth_of([SQUARE, FAR], [0, 1])], [found_of([HALF, FAR], [0.9, 0.8], [1, 1])])
    assert counts(errors) == {"both": 1, "missed": 1}
    assert errors.average_precision == 0.25
    assert gains(errors) == {"both": 0.25, "missed": 0.25}


def test_a_second_detection_of_an_object_is_a_duplicate() -> None:
    errors = errors_of([truth_of([SQUARE, OTHER])], [found_of([SQUARE, SQUARE, OTHER], [0.9, 0.8, 0.7])])
    assert counts(errors) == {"duplicate": 1}
    assert gains(errors) == {"duplicate": round(1 - (0.5 + 0.5 * 2 / 3), 6)}


def test_a_detection_where_nothing_is_is_background() -> None:
    errors = errors_of([truth_of([SQUARE]), truth_of([])], [found_of([SQUARE], [0.8]), found_of([FAR], [0.9])])
    assert counts(errors) == {"background": 1}
    assert gains(errors) == {"background": 0.5}
    assert errors.false_positive_gain == 0.5
    assert errors.false_negative_gain == 0


def test_an_object_that_nothing_finds_is_missed() -> None:
    # One of three found: AP 1/3. Without the missed ones AP 1.
    errors = errors_of([truth_of([SQUARE, OTHER]), truth_of([FAR])], [found_of([SQUARE], [0.9]), found_of([], [])])
    assert counts(errors) == {"missed": 2}
    assert gains(errors) == {"missed": round(2 / 3, 6)}
    assert errors.false_negative_gain == pytest.approx(2 / 3)
    assert errors.missed.tolist() == [False, True, True]


def test_a_tenth_is_near_for_the_own_class_and_background_for_another() -> None:
    assert counts(errors_of([truth_of([SQUARE])], [found_of([TENTH], [0.9])])) == {"localisation": 1}
    assert counts(errors_of([truth_of([SQUARE])], [found_of([TENTH], [0.9], [1])])) == {"background": 1, "missed": 1}


def test_an_object_in_another_ones_place_counts_for_the_class() -> None:
    """A duplicate that also lies on an object of another class is a classification error, as in TIDE's program."""
    truth = [truth_of([SQUARE, SQUARE], [0, 1])]
    errors = errors_of(truth, [found_of([SQUARE, SQUARE, SQUARE], [0.9, 0.8, 0.7], [0, 0, 1])])
    assert counts(errors) == {"classification": 1}
    assert errors.corrects.tolist() == [-1, -1, -1]  # the object of class 1 is found already


def test_the_best_of_several_corrected_detections_finds_the_object() -> None:
    truth = [truth_of([SQUARE, OTHER])]
    errors = errors_of(truth, [found_of([HALF, HALF, OTHER, HALF], [0.6, 0.9, 0.8, 0.7])])
    assert counts(errors) == {"localisation": 3}
    assert errors.corrects.tolist() == [0, -1, -1, -1]  # in the order of the scores: 0.9, 0.8, 0.7, 0.6
    assert errors.fixed("localisation") == 1.0
    # If an error of another type is better, it is the one that can find the object.
    errors = errors_of(truth, [found_of([HALF, SQUARE, OTHER], [0.6, 0.9, 0.8], [0, 1, 0])])
    assert counts(errors) == {"classification": 1, "localisation": 1}
    assert gains(errors) == {"classification": 0.5}  # AP 1/2 at first: the wrong one comes last
    # An object that is found is not found again.
    errors = errors_of([truth_of([SQUARE])], [found_of([HALF, SQUARE], [0.9, 0.8])])
    assert errors.corrects.tolist() == [-1, -1]
    assert gains(errors) == {"localisation": 0.5}


def test_difficult_objects_have_no_part_in_errors() -> None:
    truth = [truth_of([SQUARE, OTHER], difficult=[True, False])]
    errors = errors_of(truth, [found_of([SQUARE, HALF, SQUARE, OTHER], [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])])
    # On the difficult object: ignored. Near it, or of another class: nothing counts there.
    assert counts(errors) == {"background": 2}
    assert errors.kinds.tolist()[0] == -1
    assert errors_of([truth_of([SQUARE], difficult=[True])], [found_of([], [])]).average_precision is None


def test_without_objects_there_is_nothing_to_gain() -> None:
    for errors in (errors_of([], []), errors_of([truth_of([])], [found_of([SQUARE], [0.5])])):
        assert errors.average_precision is None
        assert {errors.gain(kind) for kind in ERROR_TYPES} == {None}
        assert errors.false_positive_gain is errors.false_negative_gain is None
    all_missed = errors_of([truth_of([SQUARE])], [found_of([], [])])
    assert gains(all_missed) == {"missed": 1.0}


@pytest.mark.parametrize("seed", range(300))
def test_what_holds_for_any_detections(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, found = random_scene(random)
    threshold, most = float(random.choice([0.0, 0.3])), int(random.integers(1, 7))
    errors = errors_of(truth, found, threshold, most)
    matches = errors.matches
    expected = evaluate_voc(truth, found, CLASSES, score_threshold=threshold, max_per_class=most)
    assert errors.average_precision == expected.map50_voc10
    wrong = ~matches.right & ~matches.ignored
    assert ((errors.kinds >= 0) == wrong).all()
    assert (errors.corrects >= 0).sum() == len(set(errors.corrects[errors.corrects >= 0].tolist()))
    corrected = np.zeros(len(matches.counted), bool)
    corrected[errors.corrects[errors.corrects >= 0]] = True
    assert (matches.counted == (matches.found | errors.missed | corrected)).all()
    assert not (errors.missed & (matches.found | corrected)).any()
    if errors.average_precision is None:
        return
    assert errors.fixed(*ERROR_TYPES) == 1.0
    every = [errors.gain(kind) for kind in ERROR_TYPES]
    for gain in (*every, errors.false_positive_gain, errors.false_negative_gain):
        assert gain is not None
        assert gain >= -1e-12
    for kind, gain in zip(ERROR_TYPES, every, strict=True):
        assert errors.count(kind) or gain == 0


@pytest.mark.parametrize("seed", range(40))
def test_the_order_of_the_images_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    scenes = [random_scene(random) for _ in range(3)]
    truth = [image for scene, _ in scenes for image in scene]
    found = [image for _, scene in scenes for image in scene]
    scores = random.permutation(sum(map(len, found))).astype(
        np.float32
    )  # equal scores would be taken in the images' order
    ends = np.cumsum([len(image) for image in found])
    found = [
        ImageDetections(image.boxes, scores[end - len(image) : end], image.labels)
        for image, end in zip(found, ends, strict=True)
    ]
    order = random.permutation(len(truth))
    one, other = errors_of(truth, found), errors_of([truth[i] for i in order], [found[i] for i in order])
    kinds: tuple[ErrorType, ...] = ERROR_TYPES
    assert counts(one) == counts(other)
    assert [one.gain(kind) for kind in kinds] == [other.gain(kind) for kind in kinds]
