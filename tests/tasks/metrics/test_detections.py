"""Detections are read from a safetensors object as they were written, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import DataError
from tasks.metrics.detections import ImageDetections, in_order, merge, pack, unpack


def _detections(seed: int, images: list[int]) -> dict[int, ImageDetections]:
    random = np.random.default_rng(seed)
    found = {}
    for image in images:
        count = int(random.integers(0, 4))
        found[image] = ImageDetections(
            random.uniform(0, 100, (count, 4)).astype(np.float32),
            random.uniform(0, 1, count).astype(np.float32),
            random.integers(0, 7, count),
        )
    return found


def _assert_equal(left: dict[int, ImageDetections], right: dict[int, ImageDetections]) -> None:
    assert list(left) == list(right)
    for image in left:
        for name in ("boxes", "scores", "labels"):
            one, other = getattr(left[image], name), getattr(right[image], name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_pack_and_unpack_through_a_file(tmp_path: Path) -> None:
    detections = _detections(3, [0, 2, 5, 6]) | {9: ImageDetections.empty()}
    save_file(pack(detections), tmp_path / "part.safetensors")
    _assert_equal(unpack(load_file(tmp_path / "part.safetensors")), detections)


def test_no_images_and_no_detections() -> None:
    assert unpack(pack({})) == {}
    nothing = {4: ImageDetections.empty(), 7: ImageDetections.empty()}
    _assert_equal(unpack(pack(nothing)), nothing)


def test_parts_merge_to_the_whole_in_any_order() -> None:
    whole = _detections(5, list(range(8)))
    odd = {image: found for image, found in whole.items() if image % 2}
    even = {image: found for image, found in whole.items() if not image % 2}
    _assert_equal(merge([odd, even]), whole)
    _assert_equal(merge([even, odd]), whole)
    assert in_order(merge([odd, even]), 8) == list(whole.values())


def test_an_image_in_two_parts_is_refused() -> None:
    with pytest.raises(DataError, match="image 3 in two"):
        merge([{3: ImageDetections.empty()}, {3: ImageDetections.empty()}])


def test_a_missing_or_foreign_image_is_refused() -> None:
    with pytest.raises(DataError, match="images 0 to 2, image 1 is missing"):
        in_order({0: ImageDetections.empty(), 2: ImageDetections.empty()}, 3)
    with pytest.raises(DataError, match="images 0 to 0, found image 4"):
        in_order({0: ImageDetections.empty(), 4: ImageDetections.empty()}, 1)


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "message"),
    [
        (np.zeros((2, 5)), [1, 1], [0, 0], r"boxes: expected shape \[n, 4\], found \[2, 5\]"),
        (np.zeros((2, 4)), [1], [0, 0], r"scores: expected shape \[2\], one a box, found \[1\]"),
        (np.zeros((2, 4)), [1, 1], [0], r"labels: expected shape \[2\], one a box, found \[1\]"),
        (np.zeros(8), [1, 1], [0, 0], r"boxes: expected shape \[n, 4\], found \[8\]"),
    ],
)
def test_detections_whose_shapes_do_not_fit_are_refused(
    boxes: np.ndarray, scores: list, labels: list, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageDetections(boxes, np.array(scores), np.array(labels))


def _without_scores(arrays: dict[str, np.ndarray]) -> None:
    del arrays["scores"]


def _wider_scores(arrays: dict[str, np.ndarray]) -> None:
    arrays["scores"] = arrays["scores"].astype(np.float64)


def _fewer_labels(arrays: dict[str, np.ndarray]) -> None:
    arrays["labels"] = arrays["labels"][:-1]


def _wrong_counts(arrays: dict[str, np.ndarray]) -> None:
    arrays["counts"] = arrays["counts"] + 1


def _twice(arrays: dict[str, np.ndarray]) -> None:
    arrays["images"] = np.zeros_like(arrays["images"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_scores, "part-1: expected the arrays images, counts, boxes, scores, labels, found"),
        (_wider_scores, r"part-1: scores: expected float32 \[2\], found float64 \[2\]"),
        (_fewer_labels, r"part-1: labels: expected int64 \[2\], found int64 \[1\]"),
        (_wrong_counts, "part-1: counts: expected 2 in all, the number of boxes, found 4"),
        (_twice, "part-1: images: expected indices from 0 in ascending order, each once"),
    ],
)
def test_spoiled_arrays_are_refused(spoil: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    one = ImageDetections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    arrays = pack({0: one, 1: one})
    spoil(arrays)
    with pytest.raises(DataError, match=message):
        unpack(arrays, source="part-1")
