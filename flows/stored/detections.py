"""Keep the detections of a round's model in the store, and read them."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import StoreCorrupt
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.analysis.analyse import DetectionAnalysis, analyse
from tasks.errors import DataError
from tasks.handles import Handles
from tasks.metrics.scored import MOST_BYTES, ScoredImages, ScoredModel
from tasks.metrics.voc import evaluate_voc
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord


def keep_scored(handles: Handles, spec: FederationSpec, record: RoundRecord, sets: Sequence[ScoredImages]) -> None:
    """Write the truth and detections of ``sets``, which the model of ``record`` was scored on. Without sets do nothing.

    This comes before the commit, so that a committed round has them. Retention removes them with the global weights.
    """
    if not sets:
        return
    scored = ScoredModel(
        tuple(spec.class_order(record.clients[0].class_counts)),
        spec.evaluation.score_threshold,
        spec.evaluation.max_detections,
        tuple(sets),
        personal=not spec.strategy.shared_model,
    )
    handles.objects.put_bytes(handles.layout.detections(record.round), scored.to_bytes())


def read_scored(objects: ObjectStore, layout: FederationLayout, record: RoundRecord) -> ScoredModel | None:
    """Return the truth and detections of the images that the model of ``record`` was scored on.

    None: the store does not have them, because retention removed them, no image was scored, or an earlier version of
    fedbench ran the round.

    Raises:
        DataError: they are damaged, or their figures are not those of ``record``.
    """
    key = layout.detections(record.round)
    size = objects.size(key)
    if size is None:
        return None
    try:
        scored = ScoredModel.from_bytes(objects.get_bytes(key, MOST_BYTES), source=key)
    except StoreCorrupt as error:
        raise DataError(str(error)) from None
    _check_figures(scored, record, key)
    return scored


def read_analysis(objects: ObjectStore, layout: FederationLayout, record: RoundRecord) -> DetectionAnalysis | None:
    """Return the analysis of the detections of the round's model, on the images whose figures are shown.

    None, and errors: as :func:`read_scored`.
    """
    scored = read_scored(objects, layout, record)
    return None if scored is None else analyse(scored.on(record.shown_on))


def _check_figures(scored: ScoredModel, record: RoundRecord, key: str) -> None:
    """
    Raises:
        DataError: a set has another ``map50_voc10`` than in ``record``, or an evaluation of ``record`` has no set.
    """
    evaluations = record.personal if scored.personal else record.evaluations
    recorded = [(item.on, item.clients, item.test_digest, item.per_class) for item in evaluations]
    found = [
        (
            item.on,
            item.clients,
            item.digest,
            evaluate_voc(
                item.truth,
                item.detections,
                scored.classes,
                score_threshold=scored.score_threshold,
                max_per_class=scored.max_detections,
            ).per_class,
        )
        for item in scored.sets
    ]
    if found != recorded:
        raise DataError(f"{key}: expected detections with the figures of round {record.round}, found others")
