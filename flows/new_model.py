"""A round's new global model: aggregate the updates, evaluate the model, and repeat without updates that spoil it.

Usually one attempt is enough. A model is never committed if it has values that are not finite, or if the clients at
which its loss is not finite outnumber those at which it is. Then the largest update is dropped, and the rest is
aggregated and evaluated again, until the model can be used or too few updates are left.
Every step depends only on the plan and the stored updates, so an interrupted round decides the same when it resumes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from infra.orchestrator.flow_runs import unsearched
from tasks.aggregate import aggregate
from tasks.hand_out import report_failures
from tasks.handles import Handles
from tasks.metrics.scored import ScoredImages
from tasks.quorum import require_quorum
from tasks.replies import failure_of
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.records import EvaluationRecord
from tasks.stop_and_eval import Evaluations
from tasks.usable import largest_update, model_fault

# Evaluates a model of these updates. The text is a suffix for the names of the tasks.
Evaluate = Callable[[WeightRef, Sequence[UpdateRecord], str], Awaitable[Evaluations]]


@dataclass(frozen=True)
class NewModel:
    """A round's new global model, with the updates and evaluations that count.

    dropped: clients whose updates do not count. unscored: clients without an evaluation.
    personal, without_personal: the same for the clients' own models, if the method keeps any.
    server, shared: the server's new states, if the method keeps any.
    scored: truth and detections of the images that decide.
    """

    model: WeightRef
    updates: list[UpdateRecord]
    dropped: list[ClientFailure]
    evaluations: list[EvaluationRecord]
    unscored: list[ClientFailure]
    bytes_down: int
    bytes_up: int
    server: WeightRef | None = None
    shared: WeightRef | None = None
    personal: list[EvaluationRecord] = field(default_factory=list)
    without_personal: list[ClientFailure] = field(default_factory=list)
    scored: list[ScoredImages] = field(default_factory=list)


async def usable_model(
    handles: Handles,
    spec: FederationSpec,
    plan: RoundPlan,
    updates: Sequence[UpdateRecord],
    dropped: Sequence[ClientFailure],
    evaluate: Evaluate,
    lap: Callable[[str], None],
) -> NewModel:
    """Aggregate ``updates`` without those that make the model unusable, and return the model.

    dropped: clients that were dropped before, for the message about a missed quorum.
    lap: called with the name of each phase when it ends.

    Raises:
        FedbenchError: too few updates are left. The round stays open; the message says how to go on.
    """
    refused: list[ClientFailure] = []
    left = list(updates)
    attempt, bytes_down, bytes_up = 1, 0, 0
    while True:
        suffix = f" · attempt {attempt}" if attempt > 1 else ""
        new = await aggregate(
            spec, unsearched(plan), unsearched(left), unsearched([*dropped, *refused]), f"round {plan.round}{suffix}"
        )
        refused += new.dropped
        lap("aggregate")
        if new.model is None:
            fault = "not all of its values are finite"
        else:
            evaluated = await evaluate(new.model, new.counted, suffix)
            bytes_down, bytes_up = bytes_down + evaluated.bytes_down, bytes_up + evaluated.bytes_up
            lap("stop_and_eval")
            if spec.strategy.shared_model:
                spoiled = model_fault(evaluated.records, evaluated.unscored)
            else:
                spoiled = model_fault(evaluated.personal, evaluated.without_personal)
            if spoiled is None:
                return NewModel(
                    new.model,
                    new.counted,
                    refused,
                    evaluated.records,
                    evaluated.unscored,
                    bytes_down,
                    bytes_up,
                    new.server,
                    new.shared,
                    evaluated.personal,
                    evaluated.without_personal,
                    evaluated.scored,
                )
            fault = spoiled
            handles.weights.forget({new.model.sha256} - {update.weights.sha256 for update in new.counted})
        largest, size = await asyncio.to_thread(largest_update, handles, plan, new.counted)
        spoilers = _spoilers(largest, size, len(new.counted), fault)
        report_failures(handles, spoilers)
        refused += spoilers
        left = [update for update in new.counted if update not in largest]
        require_quorum(spec, plan, left, [*dropped, *refused])
        attempt += 1


def _spoilers(largest: Sequence[UpdateRecord], size: float, of: int, fault: str) -> list[ClientFailure]:
    together = f", with {len(largest) - 1} other clients in its partial sum" if len(largest) > 1 else ""
    reason = (
        f"the new global model of {of} updates cannot be used ({fault}); this update is the farthest from the last "
        f"model (L2 norm {size:.6g}{together})"
    )
    return [failure_of("aggregate", update.client, reason) for update in largest]
