"""The truth that an evaluation compares an image's detections with."""

from __future__ import annotations

import numpy as np

from tasks.data.samples import ANY_CLASS, ImageSample
from tasks.metrics.truth import Truth


def truth_of(sample: ImageSample, classes: int) -> Truth:
    """Return the truth of an image: its objects, then its ignore regions as difficult objects.

    classes: number of classes, for each of which a region of any class stands.
    """
    regions = sample.regions
    if regions is None:
        return sample.boxes, sample.labels, sample.difficult
    every = np.arange(classes, dtype=np.int64)
    labels = [every if label == ANY_CLASS else np.array([label], np.int64) for label in regions.labels.tolist()]
    boxes = np.repeat(regions.boxes, [len(each) for each in labels], axis=0)
    difficult = np.zeros(len(sample.labels), np.bool_) if sample.difficult is None else sample.difficult
    return (
        np.concatenate([sample.boxes, boxes]),
        np.concatenate([sample.labels, *labels]),
        np.concatenate([difficult, np.ones(len(boxes), np.bool_)]),
    )
