"""Decide whether a new global model can be used, and which update to leave out when it cannot.

A single update can lead to a global model that gives no finite loss on any image, although all its values are finite.
No client could train from such a model. So the round drops its largest updates, one after the other, until the model
can be used (:mod:`flows.new_model`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from tasks.handles import Handles
from tasks.partial_sums import by_object
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord
from tasks.spec.records import EvaluationRecord

# A norm is computed in steps of this many values, so that the float64 copies stay small.
_STEP = 1 << 20


def model_fault(evaluations: Sequence[EvaluationRecord], unscored: Sequence[ClientFailure]) -> str | None:
    """Return why the evaluated model cannot be used; None when it can, or when no evaluation decides.

    It cannot be used when more clients report no finite loss on their test sets than report a finite one. The majority
    decides because a silo could report anything: one silo alone can neither have a broken model accepted nor have
    updates dropped. Test sets that were not evaluated, because of a deadline, a lost machine or bad data, do not count.
    A client that is scored on held-out images too has a finite loss if it is finite on both.
    """
    finite = {client for evaluation in evaluations if evaluation.loss is not None for client in evaluation.clients}
    without = {client for evaluation in evaluations if evaluation.loss is None for client in evaluation.clients}
    reasons = {failure.client: failure.reason for failure in unscored if failure.kind == "model-diverged"}
    without |= reasons.keys()
    if len(without) <= len(finite - without):
        return None
    return next(iter(reasons.values()), "the test loss is not finite")


def largest_update(
    handles: Handles, plan: RoundPlan, updates: Sequence[UpdateRecord]
) -> tuple[list[UpdateRecord], float]:
    """Return the update that is farthest from the round's global weights, and its distance.

    Of updates at the same distance, the first in client order is returned. A partial sum is returned as the updates of
    all its clients. The distance is the L2 norm, in float64, over all floating tensors: bad BatchNorm statistics break
    a model as bad parameters do.

    Raises:
        StoreCorrupt, StoreUnavailable: weights cannot be read from the store.
    """
    start = handles.weights.get(plan.model.key, plan.model.sha256, plan.model.bytes).path
    order = {client: number for number, client in enumerate(plan.cohort)}
    distances = []
    for shared in by_object(sorted(updates, key=lambda update: order[update.client])):
        ref = shared[0].weights
        distances.append((distance(handles.weights.get(ref.key, ref.sha256, ref.bytes).path, start), shared))
    largest = max(value for value, _ in distances)
    return next((shared, value) for value, shared in distances if value == largest)


def distance(first: Path, second: Path) -> float:
    """Return the L2 distance, in float64, between the floating tensors of two safetensors files of one model."""
    parts = []
    with safe_open(first, framework="pt") as one, safe_open(second, framework="pt") as other:
        for name in sorted(one.keys()):
            tensor = one.get_tensor(name)
            if tensor.is_floating_point():
                pairs = zip(tensor.view(-1).split(_STEP), other.get_tensor(name).view(-1).split(_STEP), strict=True)
                parts += [float(torch.sum((left.double() - right.double()) ** 2)) for left, right in pairs]
    return math.sqrt(math.fsum(parts))
