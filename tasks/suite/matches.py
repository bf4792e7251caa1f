"""Which detections of a test set are right, by image, in a form whose mAP is fast to compute for many draws of images.

An image that is drawn twice counts as two images. Its detections are right or wrong as before, because a detection is
compared with the objects of its own image alone. So boxes are compared once, and a draw only repeats rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks.metrics.matching import Matches

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_NUMBERS = 1 << 22  # of an array: draws times right detections of a class


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """A class's detections that are right or wrong, best first, down to the last right one; and its objects by image.

    ``image`` int64 [n]; ``right`` bool [n]; ``objects`` float64 [images]. Later detections are all wrong, so they
    change neither recall nor the highest precision at any recall.
    """

    image: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.float64]

    @cached_property
    def between(self) -> csr_matrix:
        """Return how many detections each image has from one right detection to the next, [right, images].

        The next one is counted, the one before is not. The array is sparse: most images have none.
        """
        from scipy.sparse import csr_matrix  # here, so that the core loads without it

        next_right: npt.NDArray[np.int64] = np.cumsum(self.right) - self.right
        shape = (int(self.right.sum()), len(self.objects))
        return csr_matrix((np.ones(len(self.image)), (next_right, self.image)), shape=shape)


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """The matches of one model on ``images`` images. test_set: digest of these images."""

    images: int
    test_set: str
    classes: tuple[ClassMatches, ...]

    @classmethod
    def of(cls, matched: Matches, *, images: int, classes: int, test_set: str) -> ImageMatches:
        """Return ``matched`` by class. images, classes: their numbers. test_set: digest of the images."""
        found = []
        for label in range(classes):
            rows = np.flatnonzero((matched.labels == label) & ~matched.ignored)
            right = matched.right[rows]
            rows = rows[: np.flatnonzero(right)[-1] + 1] if right.any() else rows[:0]
            objects = matched.object_images[(matched.object_labels == label) & matched.counted]
            of_image = np.bincount(objects, minlength=images).astype(np.float64)
            found.append(ClassMatches(matched.images[rows], matched.right[rows], of_image))
        return cls(images, test_set, tuple(found))

    def mean_average_precision(self, times: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
        """Return VOC 2010's mAP for each draw, [draws].

        times: how often each draw has each image, [draws, images]; None: one draw with each image once.

        The mean is over the classes that have an object in the draw; it is NaN without any. Equal scores of one image
        count as if each drawn copy of the better one came first.
        """
        drawn = np.ones((1, self.images)) if times is None else times
        step = max(1, _NUMBERS // max(1, max((int(item.right.sum()) for item in self.classes), default=1)))
        parts = [self._of_draws(drawn[start : start + step]) for start in range(0, len(drawn), step)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _of_draws(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total, count = np.zeros(len(times)), np.zeros(len(times))
        for item in self.classes:
            objects = times @ item.objects
            there = objects > 0
            total += np.where(there, _average_precision(item, times, np.where(there, objects, 1.0)), 0.0)
            count += there
        with np.errstate(invalid="ignore"):
            return np.asarray(total / count)


def _average_precision(
    item: ClassMatches, times: npt.NDArray[np.float64], objects: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return a class's AP for each draw, [draws]. objects: the draw's number of objects, at least 1.

    The highest precision at any recall is that after a right detection, so only these are looked at.
    """
    of_right = times[:, item.image[item.right]]
    hits, all_so_far = np.cumsum(of_right, axis=1), np.cumsum((item.between @ times.T).T, axis=1)
    precision = np.divide(hits, all_so_far, out=np.zeros_like(hits), where=all_so_far > 0)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((of_right * highest).sum(axis=1) / objects)
