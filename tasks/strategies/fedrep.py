"""FedRep: as FedPer, but a turn trains the head first, for some epochs, and then the body, for the others.

Collins et al., *Exploiting Shared Representations for Personalized Federated Learning*, arXiv 2102.07078, Algorithm 1.
While the head is trained, the body is frozen and its normalisation in evaluation mode, so that its statistics stay.
Each of the two phases has a fresh optimiser and, in round 1, the warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from tasks.data.batches import Batch
from tasks.detectors.base import Detector
from tasks.spec.strategies import FedRepSpec
from tasks.strategies.base import LocalTurn
from tasks.strategies.partly_local import PartlyLocal
from tasks.training.local import TrainingResult
from tasks.training.rules import LocalRule, trained_parameters


class StillBody(LocalRule):
    """Sets the layers of the body to evaluation mode: those with tensors of their own, none of the head's, and dropout.

    Other modules stay in training mode, because a detector's loss may depend on it.
    """

    def __init__(self, head: frozenset[str]) -> None:
        self._head = head

    def begin(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            names = {f"{name}.{tensor}" if name else tensor for tensor in tensors}
            if (name and names and not names & self._head) or isinstance(module, _DropoutNd):
                module.eval()


class FedRep(PartlyLocal[FedRepSpec]):
    """Each client keeps its head, which a turn trains before the body."""

    kept = "head"

    def train_locally(self, turn: LocalTurn, local: frozenset[str]) -> TrainingResult:
        batches, head = turn.batches(), turn.detector.head_names()
        of_head = len(batches) // self.training.local_epochs * self.spec.head_epochs
        order = iter(batches)
        body = frozenset(trained_parameters(turn.detector)) - head
        first = _train_only(turn, head, islice(order, of_head), StillBody(head))
        return merged(first, _train_only(turn, body, order, LocalRule()))


def _train_only(turn: LocalTurn, names: frozenset[str], batches: Iterable[Batch], rule: LocalRule) -> TrainingResult:
    with _frozen_but(turn.detector, names):
        return turn.train(rule, batches)


@contextmanager
def _frozen_but(detector: Detector, names: frozenset[str]) -> Iterator[None]:
    """Train only the parameters ``names`` in the block. A parameter that the detector does not train stays frozen."""
    frozen = [parameter for name, parameter in trained_parameters(detector).items() if name not in names]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def merged(one: TrainingResult, other: TrainingResult) -> TrainingResult:
    """Return the result of two trainings of one turn, the second after the first."""
    images = one.images + other.images

    def mean(first: float, second: float) -> float:
        return (first * one.images + second * other.images) / images

    terms = {name: mean(one.terms.get(name, 0.0), other.terms.get(name, 0.0)) for name in {**one.terms, **other.terms}}
    return TrainingResult(
        mean(one.loss, other.loss),
        terms,
        images,
        one.steps + other.steps,
        one.seconds + other.seconds,
        one.rates + other.rates,
    )


METHOD = FedRep
