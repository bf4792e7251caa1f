"""What ``--json`` prints of federations: mappings whose fields docs/json.md lists. They stay between versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from tasks.metrics.over_rounds import costs_by_round
from tasks.spec.federation import FederationSpec
from tasks.spec.records import FineTunedRecord, Metrics, PersonalMetrics, RoundRecord
from tasks.spec.training import ScoredOn

VERSION = 1
# The figures of a model, each a number from 0 to 1, or the loss.
FIGURES = ("loss", "map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall")
_BY_CLASS = ("per_class", "per_class_coco", "per_class_recall")


def spec_document(spec: FederationSpec | None) -> dict[str, Any]:
    """Return what a specification says in short; nulls for None."""
    if spec is None:
        return dict.fromkeys(("digest", "seed", "data", "detector", "method", "max_rounds"))
    return {
        "digest": spec.digest,
        "seed": spec.seed,
        "data": spec.data.kind,
        "detector": spec.detector.kind,
        "method": spec.strategy.label,
        "max_rounds": spec.max_rounds,
    }


def course_document(records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return how far a federation is, and when its rounds were: from the records of its committed rounds."""
    last = records[-1] if records else None
    return {
        "rounds": None if last is None else last.round,
        "clients": None if last is None else len(last.clients),
        "best": None if last is None else best_document(last),
        "started": _time(started(records)),
        "updated": _time(updated(records)),
        "seconds": seconds(records),
    }


def best_document(last: RoundRecord) -> dict[str, Any] | None:
    """Return the best round so far by the last round's record; None before any round has a figure."""
    decision = last.decision
    if decision.best is None:
        return None
    return {
        "round": decision.best_round,
        "metric": decision.best_metric,
        "on": decision.on,
        "value": decision.best,
    }


def started(records: Sequence[RoundRecord]) -> datetime | None:
    """Return when round 0 began; None before its commit."""
    return records[0].committed - timedelta(seconds=sum(records[0].seconds.values())) if records else None


def updated(records: Sequence[RoundRecord]) -> datetime | None:
    """Return when the last round was committed; None before the first."""
    return records[-1].committed if records else None


def seconds(records: Sequence[RoundRecord]) -> float | None:
    """Return the wall time of all committed rounds, without the pauses between them; None before the first."""
    return sum(sum(record.seconds.values()) for record in records) if records else None


def run_document(
    name: str, state: str, spec: FederationSpec, records: Sequence[RoundRecord], tuned: FineTunedRecord | None = None
) -> dict[str, Any]:
    """Return a federation with its whole specification and every round."""
    last = records[-1] if records else None
    costs = costs_by_round(records, spec.training.local_epochs)
    exchanged = [0, *(item.exchanged for item in costs)]
    return {
        "version": VERSION,
        "name": name,
        "state": state,
        **spec_document(spec),
        **course_document(records),
        "stopped_by": None if last is None else last.decision.reason,
        "image_passes": costs[-1].passes if costs else None,
        "exchanged_bytes": costs[-1].exchanged if costs else None,
        "moved_bytes": costs[-1].moved if costs else None,
        "environment": None if last is None else last.environment.model_dump(mode="json"),
        "specification": spec.model_dump(mode="json"),
        "by_round": [
            _round_document(record, exchanged[number + 1] - exchanged[number]) for number, record in enumerate(records)
        ],
        "fine_tuned": None if tuned is None else _own_document(tuned.shown),
    }


def _round_document(record: RoundRecord, exchanged: int) -> dict[str, Any]:
    return {
        "round": record.round,
        "committed": _time(record.committed),
        "cohort": list(record.plan.cohort) if record.plan is not None else [],
        "counted": [update.client for update in record.updates],
        "dropped": [
            {"client": item.client, "phase": item.phase, "kind": item.kind, "reason": item.reason}
            for item in record.dropped
        ],
        "train_loss": record.metrics.train_loss,
        "test": _part_document(record, "test"),
        "holdout": _part_document(record, "holdout"),
        "seconds": sum(record.seconds.values()),
        "phase_seconds": dict(record.seconds),
        "exchanged_bytes": exchanged,
        "up_bytes": record.bytes_up,
        "down_bytes": record.bytes_down,
    }


def _part_document(record: RoundRecord, part: ScoredOn) -> dict[str, Any] | None:
    """Return the figures on a part of the data; None if the round did not score it."""
    if part not in record.scored_on:
        return None
    return {**figures_document(record.metrics.on(part)), "own_models": _own_document(record.metrics.on(part).personal)}


def figures_document(metrics: Metrics) -> dict[str, Any]:
    """Return the figures of the shared model, and those by class; null where there is none."""
    return {name: getattr(metrics, name) for name in FIGURES} | {
        name: dict(getattr(metrics, name)) for name in _BY_CLASS
    }


def _own_document(own: PersonalMetrics | None) -> dict[str, Any] | None:
    """Return the spread over clients of each figure of their own models; None if there are no such models."""
    if own is None:
        return None
    return {"clients": own.clients, "common": own.common} | {
        "figures": {name: spread.model_dump(mode="json") for name, spread in own.figures.items()}
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
