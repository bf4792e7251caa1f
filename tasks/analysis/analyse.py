"""All that a report says about the detections of a model: curves, confusion and types of errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.analysis.confusion import BACKGROUND, MISSED, Confusion, confusion_matrix
from tasks.analysis.curves import Curve, best_threshold, class_curves
from tasks.analysis.error_types import ERROR_TYPES, DetectionErrors, find_errors
from tasks.metrics.scored import ScoredModel

# Scores from here on count in the confusion matrix of a model without a right detection.
FALLBACK_THRESHOLD = 0.3


@dataclass(frozen=True, eq=False)
class DetectionAnalysis:
    """The analysis of a model's detections in ``images`` images of ``sets`` sets, all pooled.

    With several sets (clients' own test sets, or own models), its average precision is not the mean over the sets,
    which a round's figures are.
    """

    images: int
    sets: int
    curves: list[Curve]
    confusion: Confusion
    errors: DetectionErrors

    def as_json(self) -> dict[str, Any]:
        """Return the figures for JSON: null where there is none. Curves are left out; a table of them is long."""
        errors, confusion = self.errors, self.confusion
        return {
            "images": self.images,
            "sets": self.sets,
            "map50_voc10": errors.average_precision,
            "errors": {kind: {"count": errors.count(kind), "gain": errors.gain(kind)} for kind in ERROR_TYPES},
            "false_positive_gain": errors.false_positive_gain,
            "false_negative_gain": errors.false_negative_gain,
            "confusion": {
                "threshold": confusion.threshold,
                "rows": [*confusion.classes, BACKGROUND],
                "columns": [*confusion.classes, MISSED],
                "counts": confusion.counts.tolist(),
            },
        }


def analyse(scored: ScoredModel) -> DetectionAnalysis:
    """Return the analysis of the detections of all of the model's sets, pooled.

    The confusion matrix has the detections at or above the score with the highest F1 on these very images.

    Raises:
        DataError: a shape does not fit, or a label is not one of the classes.
    """
    matches, classes = scored.matches, scored.classes
    threshold = best_threshold(matches)
    return DetectionAnalysis(
        images=len(scored.truth),
        sets=len(scored.sets),
        curves=class_curves(matches, classes),
        confusion=confusion_matrix(
            matches,
            scored.truth,
            scored.detections,
            classes,
            threshold=FALLBACK_THRESHOLD if threshold is None else threshold,
        ),
        errors=find_errors(matches, scored.truth, scored.detections, classes),
    )
