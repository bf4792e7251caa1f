"""Bootstrap intervals of a mean difference over seeds, and over seeds and test images together.

Few seeds allow only a rough interval. A bootstrap interval over n seeds never reaches beyond the least and the greatest
difference. Even this widest one holds the true mean with a probability of only 1 − 2^(1−n) if differences scatter
evenly around it: 75 % with three seeds, 94 % with five. With one or two seeds there is none.

The interval over seeds and images also draws the test images anew: how much would the difference move if other images
of the same kind had been the test set? Each image is drawn as often in both runs, because both were scored on the same
images. The images of one camera resemble each other, which drawing them one by one does not see. So the interval holds
for further images of these cameras, not for other cameras.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tasks.suite.matches import ImageMatches

CONFIDENCE = 0.95
LEAST_SEEDS = 3
SEED = 20_100_521  # of the draws, so that a report is the same each time
OVER_SEEDS, OVER_IMAGES = 9999, 1999  # resamples
_BATCH = 500  # resamples at a time: they are in memory together

Interval = tuple[float, float]
Statistic = Callable[..., npt.NDArray[np.float64]]


def seed_interval(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % bootstrap interval of the mean of ``differences``, one a seed; None with fewer than three."""
    if len(differences) < LEAST_SEEDS:
        return None
    return _bootstrap((np.asarray(differences, np.float64),), _mean, OVER_SEEDS)


def image_interval(pairs: Sequence[tuple[ImageMatches, ImageMatches]], *, seeds: bool) -> Interval | None:
    """Return the 95 % bootstrap interval of the mean difference in mAP, for other draws of the test images.

    pairs: for each seed, the method's matches and those of what it is compared with, on the same images.
    seeds: draw the seeds anew too; without, they stay as they are. With fewer than three seeds they always stay.

    Returns None if there are no pairs, or not all are of the same images.
    """
    if not pairs or len({(matches.images, matches.test_set) for pair in pairs for matches in pair}) != 1:
        return None
    images = np.arange(pairs[0][0].images)

    def by_seed(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the differences, [seeds, draws], for draws of image numbers, [draws, n]."""
        times = _times(drawn, len(images))
        return np.stack([method.mean_average_precision(times) - other.mean_average_precision(times)
                         for method, other in pairs])  # fmt: skip

    def of_images(drawn: npt.NDArray[np.int64], axis: int = -1) -> npt.NDArray[np.float64]:
        whole = np.atleast_2d(drawn)
        return _shaped(by_seed(whole).mean(axis=0), drawn)

    def of_both(seed: npt.NDArray[np.int64], drawn: npt.NDArray[np.int64], axis: int = -1) -> npt.NDArray[np.float64]:
        whole = np.atleast_2d(drawn)
        chosen = np.broadcast_to(np.atleast_2d(seed), (len(whole), np.shape(seed)[-1]))
        found = by_seed(whole)[chosen, np.arange(len(whole))[:, None]]
        return _shaped(found.mean(axis=1), drawn)

    if seeds and len(pairs) >= LEAST_SEEDS:
        return _bootstrap((np.arange(len(pairs)), images), of_both, OVER_IMAGES)
    return _bootstrap((images,), of_images, OVER_IMAGES)


def _bootstrap(data: tuple[npt.NDArray[np.generic], ...], statistic: Statistic, resamples: int) -> Interval | None:
    """Return the BCa interval; the percentile interval where BCa has none, as with equal values.

    Returns None if a draw has no value, because its images have no object.
    """
    from scipy.stats import bootstrap  # here, so that the core loads without it

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that BCa has no interval, which the loop sees itself
            found = bootstrap(
                data, statistic, n_resamples=resamples, confidence_level=CONFIDENCE, method=method, vectorized=True,
                batch=_BATCH, random_state=np.random.default_rng(SEED),
            ).confidence_interval  # fmt: skip
        low, high = float(found.low), float(found.high)
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    return None


def _mean(values: npt.NDArray[np.float64], axis: int = -1) -> npt.NDArray[np.float64]:
    return np.asarray(np.mean(values, axis=axis))


def _times(drawn: npt.NDArray[np.int64], images: int) -> npt.NDArray[np.float64]:
    """Return how often each image was drawn, [draws, images]."""
    rows = np.arange(len(drawn))[:, None] * images
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * images).reshape(-1, images).astype(np.float64)


def _shaped(values: npt.NDArray[np.float64], drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return one value for one draw, else all."""
    return np.asarray(values[0]) if np.ndim(drawn) == 1 else values
