"""Fine-tuning after the last round: the clients' models, their figures, and the record of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from flows.round import shard_label
from infra.orchestrator.flow_runs import unsearched
from infra.store.flush import flush
from tasks.errors import FedbenchError
from tasks.fine_tune import fine_tune, read_fine_tuned, stored_models, tuning_plan
from tasks.handles import Handles, current_handles
from tasks.metrics.over_clients import aggregate_metrics
from tasks.plain_text import plain
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord
from tasks.spec.records import FineTunedRecord, RoundRecord
from tasks.spec.turns import TurnReply
from tasks.stop_and_eval import Evaluations, joined, own_images_to_score, stop_and_eval


def tuning_is_due(handles: Handles, spec: FederationSpec, history: Sequence[RoundRecord]) -> bool:
    """Return whether a federation that has stopped has still to fine-tune its last round's model."""
    return spec.fine_tuning is not None and read_fine_tuned(handles, spec, history[-1]) is None


async def fine_tuned(federation: str, spec: FederationSpec, last: RoundRecord) -> FineTunedRecord:
    """Return the record of fine-tuning the model of ``last``, the last round. What is stored is not done again.

    Raises:
        FedbenchError: no client has made a model. The message names the clients and why.
    """
    handles = current_handles()
    done = await asyncio.to_thread(read_fine_tuned, handles, spec, last)
    if done is not None:
        return done
    started = time.monotonic()
    plan = tuning_plan(spec, last, handles.ready)
    stored, reply = await _models(handles, spec, plan)
    updates = stored | {update.client: update for update in reply.updates}
    if not updates:
        reasons = "; ".join(f"client {item.client}: {plain(item.reason)}" for item in reply.failures)
        raise FedbenchError(f"fine-tuning: expected a client's model, found none: {reasons}")
    kept = [updates[client] for client in plan.cohort if client in updates]
    evaluated = await _evaluated(handles, federation, spec, last.round, kept)
    record = FineTunedRecord(
        federation=federation,
        round=last.round,
        spec_digest=spec.digest,
        model=last.model,
        updates=tuple(kept),
        dropped=(*handles.not_ready, *reply.failures, *evaluated.without_personal),
        evaluations=tuple(evaluated.personal),
        metrics=aggregate_metrics(kept, [], personal=evaluated.personal),
        seconds=time.monotonic() - started,
        bytes_up=reply.uploaded + sum(update.bytes_up for update in stored.values()) + evaluated.bytes_up,
        bytes_down=reply.downloaded + evaluated.bytes_down,
        created=datetime.now(UTC),
    )
    await asyncio.to_thread(_write, handles, record)
    return record


async def _models(handles: Handles, spec: FederationSpec, plan: RoundPlan) -> tuple[dict[str, UpdateRecord], TurnReply]:
    """Return the clients' models that were stored before, and the reply of those that are asked for one now."""
    started = time.monotonic()
    handles.reporter.message(f"fine-tuning the model of round {plan.round - 1} at {len(plan.cohort)} clients")
    handles.reporter.phase_started("fine_tune", len(plan.cohort))
    stored = await asyncio.to_thread(stored_models, handles, plan, plan.cohort)
    for client in stored:
        handles.reporter.client_done("fine_tune", client, "taken over from before the interruption")
    shards = [tuple(client for client in shard if client not in stored) for shard in plan.shards]

    async def ask(shard: Sequence[str]) -> TurnReply:
        reply: TurnReply = await fine_tune(spec, unsearched(plan), shard, shard_label(shard))
        for update in reply.updates:
            handles.reporter.client_done("fine_tune", update.client, f"loss {update.train_loss:.3g}")
        return reply

    replies = await asyncio.gather(*(ask(shard) for shard in shards if shard))
    handles.reporter.phase_finished("fine_tune", time.monotonic() - started)
    failures: list[ClientFailure] = [item for reply in replies for item in reply.failures]
    together = TurnReply(
        updates=tuple(update for reply in replies for update in reply.updates),
        failures=tuple(failures),
        downloaded=sum(reply.downloaded for reply in replies),
        uploaded=sum(reply.uploaded for reply in replies),
    )
    return stored, together


async def _evaluated(
    handles: Handles, federation: str, spec: FederationSpec, round_number: int, updates: Sequence[UpdateRecord]
) -> Evaluations:
    """Score each client's model at the client, all at once."""
    started = time.monotonic()
    models = {update.client: update.weights for update in updates}
    scored = own_images_to_score(spec, [info for info in handles.ready if info.client in models])
    handles.reporter.phase_started("stop_and_eval", len(scored))
    ask = partial(stop_and_eval, federation, spec, round_number)
    found = await asyncio.gather(
        *(
            ask(unsearched([info]), models[info.client], f"{shard_label([info.client])} · fine-tuned", on, True)
            for on, info in scored
        )
    )
    handles.reporter.phase_finished("stop_and_eval", time.monotonic() - started)
    return joined(found)


def _write(handles: Handles, record: FineTunedRecord) -> None:
    """Write the record once the models are on the disk, and remove the parts of the evaluations."""
    flush(handles.objects, [update.weights.key for update in record.updates])
    key = handles.layout.fine_tuned_record(record.round)
    handles.objects.put_json(key, record.model_dump(mode="json"))
    flush(handles.objects, [key])
    parts = list(handles.objects.list(handles.layout.evaluations(record.round)))
    if parts:
        handles.objects.delete(parts)
