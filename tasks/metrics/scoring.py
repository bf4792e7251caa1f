"""Score the detections of one test set by all measures, and make the record of the evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from tasks.metrics.coco import evaluate_coco
from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth, count_objects
from tasks.metrics.voc import evaluate_voc
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import EvaluationSpec, ScoredOn


def evaluation_record(
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    batch_losses: Sequence[float],
    *,
    clients: tuple[str, ...],
    classes: Sequence[str],
    test_digest: str,
    spec: EvaluationSpec,
    started: float,
    on: ScoredOn = "test",
) -> EvaluationRecord:
    """Return the record of the images that ``clients`` share; ``truth`` and ``detections`` run over these images.

    ``batch_losses`` are those of :class:`tasks.training.evaluation.PartResult`; their order changes no bit.
    ``started`` is the ``time.monotonic()`` at the start of the evaluation.

    Raises:
        DataError: lengths, shapes or labels do not fit together.
    """
    threshold, most = spec.score_threshold, spec.max_detections
    voc = evaluate_voc(truth, detections, classes, score_threshold=threshold, max_per_class=most)
    coco = evaluate_coco(truth, detections, classes, score_threshold=threshold, max_per_class=most)
    loss = math.fsum(batch_losses) / len(truth)
    return EvaluationRecord(
        clients=clients,
        on=on,
        test_digest=test_digest,
        test_size=len(truth),
        loss=loss if math.isfinite(loss) else None,
        map50_voc10=voc.map50_voc10,
        map50_voc07=voc.map50_voc07,
        map50_coco=coco.map50_coco,
        map_coco=coco.map_coco,
        recall=voc.recall,
        per_class=voc.per_class,
        per_class_coco=coco.per_class,
        per_class_recall=voc.recall_per_class,
        objects=count_objects(truth, classes),
        score_threshold=threshold,
        seconds=time.monotonic() - started,
    )
