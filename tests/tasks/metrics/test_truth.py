"""Truth is read from a safetensors object as it was written. Difficult objects count for a test set's digest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.data.samples import ImageSample, samples_digest
from tasks.errors import DataError
from tasks.metrics.truth import Truth, count_objects, pack_truth, unpack_truth

TRUTH: dict[int, Truth] = {
    4: (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None),
    1: (np.array([[1, 2, 3, 4], [5, 6, 7.5, 8]], np.float32), np.array([2, 0]), np.array([True, False])),
    3: (np.array([[0, 0, 9, 9]], np.float32), np.array([1]), None),
}


def test_pack_and_unpack_through_a_file(tmp_path: Path) -> None:
    save_file(pack_truth(TRUTH), tmp_path / "part.safetensors")
    read = unpack_truth(load_file(tmp_path / "part.safetensors"))
    assert list(read) == [1, 3, 4]
    for image, (boxes, labels, difficult) in TRUTH.items():
        np.testing.assert_array_equal(read[image][0], boxes)
        np.testing.assert_array_equal(read[image][1], labels)
        expected = [False] * len(labels) if difficult is None else difficult
        np.testing.assert_array_equal(np.asarray(read[image][2]), expected)
        assert [array.dtype for array in read[image] if array is not None] == [np.float32, np.int64, np.bool_]
    assert unpack_truth(pack_truth({})) == {}


def test_objects_are_counted_by_class_without_difficult_ones() -> None:
    assert count_objects(list(TRUTH.values()), ["ant", "bee", "cow", "dog"]) == {"ant": 1, "bee": 1, "cow": 0, "dog": 0}
    with pytest.raises(DataError, match="image 1: truth: labels: expected class indices from 0 to 1, found 2"):
        count_objects(list(TRUTH.values()), ["ant", "bee"])


def test_spoiled_arrays_are_refused() -> None:
    arrays = pack_truth(TRUTH)
    with pytest.raises(DataError, match="part-1: expected the arrays images, counts, boxes, labels, difficult, found"):
        unpack_truth({name: array for name, array in arrays.items() if name != "difficult"}, source="part-1")
    with pytest.raises(DataError, match=r"part-1: difficult: expected bool \[3\], found float32 \[3\]"):
        unpack_truth(arrays | {"difficult": np.zeros(3, np.float32)}, source="part-1")


def _sample(difficult: list[bool] | None) -> ImageSample:
    boxes = np.array([[0, 0, 9, 9], [5, 5, 9, 9]], np.float32)
    marks = None if difficult is None else np.array(difficult)
    return ImageSample(Path("a.jpg"), 10, 10, boxes, np.array([0, 1]), "a", "0" * 64, marks)


def test_test_sets_with_other_difficult_objects_do_not_share_an_evaluation() -> None:
    marks: list[list[bool] | None] = [None, [True, False], [False, True], [True, True]]
    assert len({samples_digest([_sample(difficult)]) for difficult in marks}) == 4
    assert samples_digest([_sample(None)]) == samples_digest([_sample([False, False])])
