"""Phase 8, ``decide``: decide whether the federation stops after this round."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.metrics.over_rounds import best_round
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Metrics


def rounds_without_progress(history: Sequence[Metrics], metric: str) -> int:
    """Return the number of rounds since the best value of ``metric``. A round without a value counts as no progress."""
    sign = -1 if metric == "loss" else 1
    best, since = None, 0
    for metrics in history:
        value = getattr(metrics, metric)
        if value is not None and (best is None or sign * value > best):
            best, since = sign * value, 0
        else:
            since += 1
    return since


def decide_stop(spec: FederationSpec, round_number: int, history: Sequence[Metrics]) -> Decision:
    """Return whether to stop after ``round_number``, why, and the best round. ``history``: metrics from round 0 on.

    The figures on held-out images decide if the rounds score them, else those on the test sets. If the method has no
    complete shared model, they are the means over the clients' own models.
    """
    history = [metrics.on(spec.evaluation.decides).deciding for metrics in history]
    best, value = best_round(history, spec.best_metric)
    reached = getattr(history[-1], spec.target_metric)
    reason = None
    if spec.target_map is not None and reached is not None and reached >= spec.target_map:
        reason = "target_map"
    elif spec.patience is not None and rounds_without_progress(history, spec.patience_metric) >= spec.patience:
        reason = "patience"
    elif round_number >= spec.max_rounds:
        reason = "max_rounds"
    return Decision.model_validate(
        {
            "stop": reason is not None,
            "reason": reason,
            "on": spec.evaluation.decides,
            "best_round": best,
            "best_map50_voc10": history[best].map50_voc10,
            "best_metric": spec.best_metric,
            "best_value": value,
        }
    )


@task(name="decide", task_run_name="decide · round {round_number}", cache_policy=NO_CACHE, persist_result=False)
async def decide(spec: FederationSpec, round_number: int, history: Sequence[Metrics]) -> Decision:
    """Return :func:`decide_stop`'s decision, as the round's last phase before its commit."""
    return decide_stop(spec, round_number, history)
