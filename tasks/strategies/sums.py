"""The sums of a round's updates that a method's server needs: weighted means of the models, and who is in them.

Most methods need one mean. SCAFFOLD and FedNova need the same models in a second mean with other weights. A partial sum
(:mod:`tasks.partial_sums`) holds every mean: the tensors of the first under their own names, those of another one under
its name and a slash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from safetensors import safe_open
from torch import Tensor

from tasks.errors import ClientError, FedbenchError
from tasks.strategies.mean import WeightedMean, check_values
from tasks.strategies.updates import Reference, check_tensors, check_update, read_reference, reference_of

State = dict[str, Tensor]
# The name of the mean whose weights are those of the clients.
MODEL = "model"


@dataclass(frozen=True)
class Counted:
    """A client whose update counts: its weight, and the figures that it reported with the update."""

    client: str
    weight: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Weighting(Protocol):
    """What :class:`Sums` needs of a method."""

    means: ClassVar[tuple[str, ...]]

    def weights_of(self, client: Counted) -> dict[str, float]:
        """Return the weight of a client's update in each of ``means``. All are 0 if the client's weight is."""


class Sums:
    """The means of ``strategy``, to which updates are added one at a time, in client order.

    reference: name, shape and type of each tensor of a client's update; left out, the first update's apply.
    counted: the clients that were added, in their order.
    """

    def __init__(self, strategy: Weighting, reference: Reference | None = None) -> None:
        self._strategy = strategy
        self._reference = reference
        self._means = {name: WeightedMean(reference) for name in strategy.means}
        self._weights = dict.fromkeys(strategy.means, 0.0)
        self._unweighted: State = {}
        self.counted: list[Counted] = []

    def accumulate(self, file: Path, clients: Sequence[Counted], *, partial_sum: bool = False) -> None:
        """Add the object in the safetensors file ``file``: a client's update, or the partial sum of ``clients``.

        A client of weight 0 counts, but adds nothing.

        Raises:
            ClientError: as :meth:`tasks.strategies.mean.WeightedMean.accumulate`. Nothing has changed.
        """
        label = ", ".join(client.client for client in clients)
        reference = self._reference
        if reference is None:
            reference = read_reference(file, client=label)
            if partial_sum:
                reference = {name: spec for name, spec in reference.items() if _mean_of(name) is None}
        expected = {
            f"{prefix}{name}": spec for prefix in self._prefixes(partial_sum) for name, spec in reference.items()
        }
        check_update(expected, file, client=label)
        with safe_open(file, framework="pt") as update:
            self._add(reference, expected, update.get_tensor, clients, label, partial_sum=partial_sum)

    def accumulate_state(self, state: Mapping[str, Tensor], client: Counted) -> None:
        """Add a copy of one client's update that is in memory, on the CPU.

        Raises:
            ClientError: as :meth:`tasks.strategies.mean.WeightedMean.accumulate_state`. Nothing has changed.
        """
        found = reference_of(state)
        reference = found if self._reference is None else self._reference
        check_tensors(reference, found, client=client.client)
        self._add(reference, reference, state.__getitem__, [client], client.client, partial_sum=False)
        self._unweighted = {} if self.weight() else _copied(state)

    def _add(
        self,
        reference: Reference,
        expected: Reference,
        tensor_of: Callable[[str], Tensor],
        clients: Sequence[Counted],
        label: str,
        *,
        partial_sum: bool,
    ) -> None:
        seen = {client.client for client in self.counted}
        if twice := [client.client for client in clients if client.client in seen]:
            raise ClientError(f"client {twice[0]}: expected one update in a round, found a second")
        check_values(expected, tensor_of, client=label)
        weights = dict.fromkeys(self._means, 0.0)
        for client in clients:
            for name, weight in self._strategy.weights_of(client).items():
                weights[name] += weight
        if not all(0 <= weight < math.inf for weight in weights.values()):
            raise ClientError(f"client {label}: expected weights of at least 0, found {weights}")
        if any(weights.values()):
            for (name, mean), prefix in zip(self._means.items(), self._all_prefixes(partial_sum), strict=True):
                mean.add_checked(reference, _named(tensor_of, prefix), weights[name], client=label)
        self._reference = reference
        self._count(clients, weights)

    def _count(self, clients: Sequence[Counted], weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            self._weights[name] += weight
        self.counted += clients

    def _all_prefixes(self, partial_sum: bool) -> list[str]:
        return [f"{name}/" if partial_sum and name != MODEL else "" for name in self._means]

    def _prefixes(self, partial_sum: bool) -> list[str]:
        return list(dict.fromkeys(self._all_prefixes(partial_sum)))

    def weight(self, name: str = MODEL) -> float:
        """Return the sum of all weights in the mean ``name``."""
        return self._weights[name]

    def take(self, name: str = MODEL) -> State:
        """Return the mean ``name``, float32 except counters, and forget it.

        Raises:
            FedbenchError: no update was added, or none with a weight.
        """
        if not self._weights[name]:
            raise FedbenchError(f"aggregation: expected an update with a weight of more than 0, found none ({name})")
        return self._means[name].result()

    def partial_sum(self) -> State:
        """Return the tensors of a partial sum: every mean, as :meth:`accumulate` reads it.

        If all its clients have the weight 0, the means are the last one's model, which then adds nothing.
        """
        found: State = {}
        for name, prefix in zip(self._means, self._all_prefixes(True), strict=True):
            mean = self.take(name) if self.weight() else _copied(self._unweighted)  # a file may hold no tensor twice
            found |= {f"{prefix}{tensor}": value for tensor, value in mean.items()}
        return found


def _copied(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def _mean_of(name: str) -> str | None:
    """Return the name of the mean that a partial sum's tensor belongs to; None for the first mean."""
    mean, slash, _ = name.partition("/")
    return mean if slash else None


def _named(tensor_of: Callable[[str], Tensor], prefix: str) -> Callable[[str], Tensor]:
    return lambda name: tensor_of(f"{prefix}{name}")
