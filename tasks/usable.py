"""Whether a new global model can be used, and which updates to leave out when it cannot.

One update can make a model that gives no finite loss on any image, though all its values are finite. Nobody could
train from it, so the round drops its largest updates, one after the other, until the model can be used
(:mod:`flows.new_model`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from tasks.handles import Handles
from tasks.partial_sums import by_object
from tasks.spec.records import ClientFailure, EvaluationRecord, RoundPlan, UpdateRecord

# Values per step of a norm, so that the float64 copies stay small.
_STEP = 1 << 20


def model_fault(evaluations: Sequence[EvaluationRecord], unscored: Sequence[ClientFailure]) -> str | None:
    """Why the evaluated model cannot be used; None when it can, or when nobody could tell.

    It cannot when more clients say that it has no finite loss on their test sets than say that it has one. An
    evaluation is its silo's word: one alone can neither pass off a dead model, nor have updates dropped.
    Test sets that were not evaluated, because of a deadline, a lost machine or bad data, say nothing about the model.
    """
    finite = {client for evaluation in evaluations if evaluation.loss is not None for client in evaluation.clients}
    without = {client for evaluation in evaluations if evaluation.loss is None for client in evaluation.clients}
    reasons = {failure.client: failure.reason for failure in unscored if failure.kind == "model-diverged"}
    if len(without | reasons.keys()) <= len(finite):
        return None
    return next(iter(reasons.values()), "the test loss is not finite")


def largest_update(
    handles: Handles, plan: RoundPlan, updates: Sequence[UpdateRecord]
) -> tuple[list[UpdateRecord], float]:
    """The update that is farthest from the round's global weights, and how far; of equals the first in client order.

    A partial sum is one update, of all its clients. The distance is the L2 norm, in float64, over all floating
    tensors: BatchNorm's statistics spoil a model as well as its parameters do.

    Raises:
        StoreCorrupt, StoreUnavailable: weights cannot be had.
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
    """L2 norm, in float64, of the difference between the floating tensors of two safetensors files of one model."""
    parts = []
    with safe_open(first, framework="pt") as one, safe_open(second, framework="pt") as other:
        for name in sorted(one.keys()):
            tensor = one.get_tensor(name)
            if tensor.is_floating_point():
                pairs = zip(tensor.view(-1).split(_STEP), other.get_tensor(name).view(-1).split(_STEP), strict=True)
                parts += [float(torch.sum((left.double() - right.double()) ** 2)) for left, right in pairs]
    return math.sqrt(math.fsum(parts))
