"""The types of errors of a detector, and how much average precision each costs: TIDE.

Bolya, Foley, Hays and Hoffman, *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020, arXiv
2008.08115. Each wrong detection has one type, and each object that no detection finds may be missed. An oracle corrects
all errors of one type; the average precision that this adds is the type's ΔAP. Where
the paper leaves a choice, this follows the authors' program (tidecv 1.0.1). With its average precision replaced by the
one here, the program gave the same numbers and the same ΔAP of all types on hundreds of random scenes in which objects
of one class do not overlap. It is not used, because it has had no release since 2020 and computes COCO's average
precision. Here average precision is that of the federation: PASCAL VOC's of 2010 at IoU 0.5, with boxes that span whole
pixels and with difficult objects ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tasks.metrics.detections import ImageDetections
from tasks.metrics.matching import Matches, overlaps, rows_by_image
from tasks.metrics.truth import Truth
from tasks.metrics.voc import average_precision_voc10, recall_and_precision

ErrorType = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)
# What each type means, for a reader of a report.
MEANINGS: dict[ErrorType, str] = {
    "classification": "in the right place, but of the wrong class",
    "localisation": "of the right class, but in a poor place",
    "both": "of the wrong class and in a poor place",
    "duplicate": "right, but a better-scored detection has the object",
    "background": "where no object is",
    "missed": "objects that no detection finds, not even nearly",
}
_NO_ERROR = -1


@dataclass(frozen=True, eq=False)
class DetectionErrors:
    """The errors among the n detections of ``matches``, and the missed ones of its m objects.

    kinds: int8 [n], an index into :data:`ERROR_TYPES`, -1 for a detection that is right or ignored.
    corrects: int64 [n], the object that the detection finds once its class or place is corrected, else -1.
    missed: bool [m].
    """

    matches: Matches
    classes: tuple[str, ...]
    kinds: npt.NDArray[np.int8]
    corrects: npt.NDArray[np.int64]
    missed: npt.NDArray[np.bool_]

    def count(self, kind: ErrorType) -> int:
        """Return how many detections have the type, or how many objects are missed."""
        return int((self.missed if kind == "missed" else self.kinds == ERROR_TYPES.index(kind)).sum())

    @cached_property
    def average_precision(self) -> float | None:
        """The mean average precision of the detections as they are (``map50_voc10``); None without objects."""
        return self.fixed()

    def fixed(self, *kinds: ErrorType) -> float | None:
        """Return the mean average precision if the errors of ``kinds`` are corrected, all at once.

        A detection of the wrong class gets the class of its object, a poorly placed one the object's box. If the
        object has been found already, or a better-scored one of these detections finds it, the detection is removed.
        Detections of the other types are removed. Missed objects are not counted.
        """
        matches = self.matches
        kept, right, labels = ~matches.ignored, matches.right.copy(), matches.labels.copy()
        for kind in kinds:
            rows = np.flatnonzero(self.kinds == ERROR_TYPES.index(kind))
            corrected = rows[self.corrects[rows] >= 0]
            kept[rows] = False
            kept[corrected] = right[corrected] = True
            labels[corrected] = matches.object_labels[self.corrects[corrected]]
        counted = matches.counted & ~self.missed if "missed" in kinds else matches.counted
        return self._mean(kept, right, labels, counted)

    def gain(self, kind: ErrorType) -> float | None:
        """Return the type's ΔAP: what correcting all errors of this type alone adds; None without objects."""
        return _difference(self.fixed(kind), self.average_precision)

    @property
    def false_positives(self) -> int:
        """The number of wrong detections."""
        return int((self.kinds != _NO_ERROR).sum())

    @property
    def false_negatives(self) -> int:
        """The number of objects that no detection finds."""
        return int((self.matches.counted & ~self.matches.found).sum())

    @property
    def false_positive_gain(self) -> float | None:
        """ΔAP of false positives: what removing all wrong detections adds; None without objects."""
        matches = self.matches
        return _difference(
            self._mean(matches.right, matches.right, matches.labels, matches.counted), self.average_precision
        )

    @property
    def false_negative_gain(self) -> float | None:
        """ΔAP of false negatives: what not counting the objects that are not found adds; None without objects."""
        matches = self.matches
        return _difference(
            self._mean(~matches.ignored, matches.right, matches.labels, matches.counted & matches.found),
            self.average_precision,
        )

    def _mean(self, kept: np.ndarray, right: np.ndarray, labels: np.ndarray, counted: np.ndarray) -> float | None:
        """Return the mean over the classes that have objects before any correction.

        If none of a class's objects is counted any more, its average precision is 0 while it has wrong detections.
        Without any the class is left out; if that leaves no class, nothing is wrong, and the mean is 1.
        """
        classes = len(self.classes)
        before = self.matches.wanted(classes)
        after = np.bincount(self.matches.object_labels[counted], minlength=classes)
        values = []
        for label in np.flatnonzero(before):
            of_class = right[kept & (labels == label)]
            if after[label]:
                values.append(average_precision_voc10(*recall_and_precision(of_class, int(after[label]))))
            elif len(of_class):
                values.append(0.0)
        if values:
            return float(np.mean(values))
        return 1.0 if before.any() else None


def find_errors(
    matches: Matches,
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    foreground: float = 0.5,
    background: float = 0.1,
) -> DetectionErrors:
    """Return the errors of the ``detections`` of a whole test set, which ``matches`` compares with the ``truth``.

    foreground: IoU from which a detection is in an object's place, TIDE's tf; that of ``matches``. background: IoU up
    to which it is not even near, TIDE's tb. The first type that fits counts:

    - localisation: of the objects of its class, the one that it overlaps most by at least ``background`` and less than
      ``foreground``;
    - classification: it overlaps an object of another class by at least ``foreground``;
    - duplicate: it overlaps an object of its class by at least ``foreground``, and another detection has this object;
    - background: it overlaps no object by more than ``background``;
    - both: any other.

    An object is missed if no detection is right about it, and none would be with the right class or place. Difficult
    objects have no part in this.
    """
    kinds = np.full(len(matches.labels), _NO_ERROR, np.int8)
    targets = np.full(len(matches.labels), -1, np.int64)
    wrong = ~matches.right & ~matches.ignored
    starts = np.searchsorted(matches.object_images, np.arange(len(truth)))
    for image, rows in enumerate(rows_by_image(matches, wrong, len(truth))):
        boxes = np.asarray(truth[image][0], np.float64).reshape(-1, 4)
        numbers = starts[image] + np.arange(len(boxes))
        numbers = numbers[matches.counted[numbers]]
        if not len(numbers):
            kinds[rows] = ERROR_TYPES.index("background")
            continue
        found = detections[image].boxes[matches.places[rows]]
        for part, overlap in overlaps(found, boxes[numbers - starts[image]]):
            chosen = rows[part]
            same = matches.labels[chosen, None] == matches.object_labels[None, numbers]
            own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
            own_most, other_most = own.max(axis=1), other.max(axis=1)
            localisation = (own_most >= background) & (own_most < foreground)
            classification = other_most >= foreground
            names = np.select(
                [
                    localisation,
                    classification,
                    matches.objects[chosen] >= 0,
                    np.maximum(own_most, other_most) <= background,
                ],
                [ERROR_TYPES.index(name) for name in ("localisation", "classification", "duplicate", "background")],
                ERROR_TYPES.index("both"),
            )
            kinds[chosen] = names
            targets[chosen] = np.select(
                [localisation, classification], [numbers[own.argmax(axis=1)], numbers[other.argmax(axis=1)]], -1
            )
    usable = np.zeros(len(matches.counted), np.bool_)
    usable[targets[targets >= 0]] = True
    return DetectionErrors(
        matches,
        tuple(classes),
        kinds,
        _best_corrections(targets, matches.found),
        matches.counted & ~matches.found & ~usable,
    )


def _best_corrections(targets: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the target of the best-scored detection of each object that is not found yet, -1 for other detections."""
    corrects = np.full(len(targets), -1, np.int64)
    rows = np.flatnonzero(targets >= 0)
    rows = rows[~found[targets[rows]]]
    _, first = np.unique(targets[rows], return_index=True)
    corrects[rows[first]] = targets[rows[first]]
    return corrects


def _difference(fixed: float | None, before: float | None) -> float | None:
    return None if fixed is None or before is None else fixed - before
