"""Bootstrap intervals over seeds and over test images, against a plain recomputation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from tasks.metrics.detections import ImageDetections
from tasks.metrics.matching import Matches
from tasks.metrics.truth import Truth
from tasks.metrics.voc import evaluate_voc
from tasks.suite.intervals import SEED, image_interval, seed_interval
from tasks.suite.matches import ImageMatches
from tests.tasks.metrics.scenes import CLASSES, found_of, truth_of

IMAGES = 12


def iou(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(one[2:] - one[:2] + 1)) + float(np.prod(other[2:] - other[:2] + 1)) - shared)


def matched(truth: Sequence[Truth], found: Sequence[ImageDetections]) -> ImageMatches:
    """Compare boxes one by one, by VOC's rule at IoU 0.5."""
    rows, objects = [], []
    for image, ((boxes, labels, difficult), items) in enumerate(zip(truth, found, strict=True)):
        hard = np.zeros(len(labels), bool) if difficult is None else difficult
        objects += [(int(label), image, not bool(flag)) for label, flag in zip(labels, hard, strict=True)]
        claimed: set[int] = set()
        for place in np.argsort(-items.scores, kind="stable"):
            box, label = items.boxes[place], items.labels[place]
            overlaps = [iou(box, other) if own == label else -1.0 for other, own in zip(boxes, labels, strict=True)]
            best = int(np.argmax(overlaps)) if overlaps else -1
            hit = best >= 0 and overlaps[best] >= 0.5
            right = hit and not hard[best] and best not in claimed
            claimed |= {best} if right else set()
            rows.append((float(items.scores[place]), int(label), image, right, hit and bool(hard[best])))
    rows.sort(key=lambda row: -row[0])
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    object_labels, object_images, counted = (np.array(column) for column in zip(*objects, strict=True))
    table = Matches(
        scores=columns[0].astype(np.float32),
        labels=columns[1].astype(np.int64),
        images=columns[2],
        places=np.zeros(len(rows), np.int64),
        objects=np.zeros(len(rows), np.int64),
        right=columns[3],
        ignored=columns[4],
        object_labels=object_labels,
        object_images=object_images,
        counted=counted,
        found=np.zeros(len(objects), bool),
    )
    return ImageMatches.of(table, images=len(truth), classes=len(CLASSES), test_set="t")


def scene(seed: int, shift: float) -> tuple[list[Truth], list[ImageDetections]]:
    """Return images with objects (the same for every ``shift``), and a detection near most of them."""
    random, own = np.random.default_rng(seed), np.random.default_rng(int(1000 * shift) + seed)
    truth: list[Truth] = []
    found: list[ImageDetections] = []
    for _ in range(IMAGES):
        count = int(random.integers(1, 5))
        corners = random.integers(0, 100, (count, 2))
        boxes = np.concatenate([corners, corners + random.integers(10, 40, (count, 2))], axis=1).astype(np.float64)
        labels = random.integers(0, 2, count)
        truth.append((boxes, labels, random.random(count) < 0.2))
        noisy = np.repeat(boxes, 2, axis=0) + own.normal(0, 10 * shift, (2 * count, 4))
        noisy[:, 2:] = np.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        wrong = own.random(2 * count) < 0.1
        scores, twice = own.random(2 * count), np.repeat(labels, 2)  # no two scores are equal
        found.append(found_of(noisy.tolist(), scores.tolist(), np.where(wrong, 1 - twice, twice).tolist()))
    return truth, found


def plain(truth: Sequence[Truth], found: Sequence[ImageDetections], drawn: Sequence[int] | None = None) -> float:
    """Return the mAP of a list of images, in which some stand several times."""
    order = sorted(range(len(truth)) if drawn is None else drawn)
    value = evaluate_voc(
        [truth[image] for image in order], [found[image] for image in order], CLASSES, score_threshold=0.0,
        max_per_class=1000,
    ).map50_voc10  # fmt: skip
    assert value is not None
    return value


@pytest.mark.parametrize("shift", [0.1, 0.4, 0.8])
def test_the_map_of_drawn_images_is_that_of_a_list_of_their_copies(shift: float) -> None:
    truth, found = scene(3, shift)
    matches = matched(truth, found)
    assert matches.mean_average_precision()[0] == pytest.approx(plain(truth, found), abs=1e-12)
    random = np.random.default_rng(5)
    draws = [random.integers(0, IMAGES, IMAGES) for _ in range(40)]
    times = np.stack([np.bincount(drawn, minlength=IMAGES) for drawn in draws]).astype(np.float64)
    expected = [plain(truth, found, list(drawn)) for drawn in draws]
    np.testing.assert_allclose(matches.mean_average_precision(times), expected, atol=1e-12)


def test_draws_in_steps_change_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = matched(*scene(3, 0.4))
    times = np.random.default_rng(1).integers(0, 3, (30, IMAGES)).astype(np.float64)
    whole = matches.mean_average_precision(times)
    monkeypatch.setattr("tasks.suite.matches._NUMBERS", 30)
    np.testing.assert_allclose(matches.mean_average_precision(times), whole, rtol=0, atol=1e-15)


def test_the_map_of_two_images_by_hand() -> None:
    """In image 0 the object is found first, in image 1 a wrong box is better than the right one."""
    box, away = [0, 0, 9, 9], [50, 50, 59, 59]
    truth = [truth_of([box]), truth_of([box])]
    found = [found_of([box], [0.9]), found_of([away, box], [0.8, 0.7])]
    matches = matched(truth, found)
    once, twice_first, twice_second = matches.mean_average_precision(np.array([[1.0, 1], [2, 0], [0, 2]]))
    assert once == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert twice_first == 1.0
    assert twice_second == pytest.approx(2 / 4)  # two wrong boxes, then two right ones


def test_the_interval_over_images_is_that_of_plain_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.suite.intervals.OVER_IMAGES", 99)
    method, other = scene(3, 0.1), scene(3, 0.4)
    interval = image_interval([(matched(*method), matched(*other))], seeds=True)

    def difference(drawn: np.ndarray) -> float:
        return plain(*method, drawn.tolist()) - plain(*other, drawn.tolist())

    expected = scipy.stats.bootstrap(
        (np.arange(IMAGES),), difference, n_resamples=99, vectorized=False, method="BCa",
        random_state=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_seeds_widen_the_interval_and_equal_runs_have_a_point() -> None:
    base = matched(*scene(3, 0.4))
    unlike = [(matched(*scene(3, shift)), base) for shift in (0.1, 0.3, 0.9)]
    images, both = image_interval(unlike, seeds=False), image_interval(unlike, seeds=True)
    assert images is not None
    assert both is not None
    assert both[1] - both[0] > images[1] - images[0]
    assert image_interval([(base, base)] * 3, seeds=True) == (0.0, 0.0)


def test_two_seeds_or_other_images_give_no_interval_of_that_kind() -> None:
    base, better = matched(*scene(3, 0.4)), matched(*scene(3, 0.1))
    pairs = [(better, base), (better, base)]
    assert image_interval(pairs, seeds=True) == image_interval(pairs, seeds=False)  # the seeds stay as they are
    truth, found = scene(3, 0.1)
    assert image_interval([(matched(truth[:-1], found[:-1]), base)], seeds=True) is None
    assert image_interval([], seeds=True) is None


@pytest.mark.parametrize("differences", [(), (0.1,), (0.1, 0.2)])
def test_one_or_two_seeds_have_no_interval(differences: tuple[float, ...]) -> None:
    assert seed_interval(differences) is None


def test_an_interval_over_seeds_lies_between_the_least_and_the_greatest_difference() -> None:
    interval = seed_interval((0.01, 0.02, 0.06))
    assert interval is not None
    assert interval == seed_interval((0.01, 0.02, 0.06))  # the same each time
    low, high = interval
    assert 0.01 <= low < 0.03 < high <= 0.06
    # Of 27 equally likely draws of three, one has the greatest mean and one the least: both are within 95 %.
    many = seed_interval(tuple(np.linspace(-0.1, 0.1, 41)))
    assert many is not None
    sd_of_mean = np.std(np.linspace(-0.1, 0.1, 41)) / np.sqrt(41)
    assert many == pytest.approx((-1.96 * sd_of_mean, 1.96 * sd_of_mean), rel=0.05)


def test_equal_differences_have_a_point() -> None:
    assert seed_interval((0.25, 0.25, 0.25)) == (0.25, 0.25)
