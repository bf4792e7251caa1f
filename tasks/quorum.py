"""Which updates are enough for a round, and with which weights they count."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import FedbenchError
from tasks.partial_sums import by_object
from tasks.plain_text import plain
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord
from tasks.spec.shares import Weight, limiting_factors, lowered


def quorum(spec: FederationSpec, cohort: int) -> int:
    """Return the number of updates that a round needs: ``min_updates``, by default more than half of the cohort."""
    return spec.participation.min_updates or cohort // 2 + 1


def require_quorum(
    spec: FederationSpec, plan: RoundPlan, updates: Sequence[UpdateRecord], dropped: Sequence[ClientFailure]
) -> None:
    """
    Raises:
        FedbenchError: there are too few updates. The message names each missing client and why it is missing. The
            round stays open.
    """
    needed, share = quorum(spec, len(plan.cohort)), spec.participation.max_weight_share
    if len(updates) < needed:
        rule = f"participation.min_updates is {needed}"
    elif counted_weights(spec, plan, updates) is None:
        rule = f"too few for participation.max_weight_share ({share:g})"
    else:
        return
    reasons = "; ".join(f"client {failure.client} ({failure.kind}): {plain(failure.reason)}" for failure in dropped)
    raise FedbenchError(
        f"round {plan.round}: {len(updates)} of {len(plan.cohort)} updates came, {rule}; missing: {reasons}"
        + how_to_go_on(plan, dropped)
    )


def how_to_go_on(plan: RoundPlan, dropped: Sequence[ClientFailure]) -> str:
    """Return the command that discards the refused updates; empty if ``aggregate`` refused none.

    A refused update is in the store and would be refused again whenever the round is resumed.
    """
    clients = dict.fromkeys(failure.client for failure in dropped if failure.phase == "aggregate")
    if not clients:
        return ""
    options = "".join(f" --retrain {client}" for client in clients)
    return f"; to discard stored updates and train again: fedbench resume {plan.federation}{options}"


def counted_weights(spec: FederationSpec, plan: RoundPlan, updates: Sequence[UpdateRecord]) -> dict[str, Weight] | None:
    """Return the weight of each of ``updates`` by client, if these are all that count.

    The plan's weights keep to ``max_weight_share`` within the whole cohort. When clients are dropped, the shares of the
    others grow, so the limit is applied again over ``updates``. The weight of a partial sum is lowered as a whole.

    Returns None when there are too few updates for the limit; the round then fails like one below its quorum.
    """
    weights = {update.client: plan.weight_of(update) for update in updates}
    share = spec.participation.max_weight_share
    if share is None:
        return weights
    objects = [[weights[update.client] for update in shared] for shared in by_object(updates)]
    factors = limiting_factors([(sum(parts), max(parts)) for parts in objects], share)
    if factors is None:
        return None
    for shared, factor in zip(by_object(updates), factors, strict=True):
        weights |= {update.client: lowered(weights[update.client], factor) for update in shared}
    return weights
