"""A round as one client sees it: its own model's evaluations and figures in place of the federation's."""

from __future__ import annotations

from tasks.metrics.over_clients import aggregate_metrics
from tasks.spec.records import RoundRecord


def of_client(record: RoundRecord, client: str) -> RoundRecord:
    """Return ``record`` with the evaluations of the client's own model, and with their figures and its train loss."""
    evaluations = tuple(item for item in record.personal if item.clients == (client,))
    updates = [update for update in record.updates if update.client == client]
    metrics = aggregate_metrics(updates, evaluations)
    return record.model_copy(update={"evaluations": evaluations, "personal": (), "metrics": metrics})
