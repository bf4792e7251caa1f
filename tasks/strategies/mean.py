"""The weighted mean of updates, one at a time: ``w = Σ n_k w_k / Σ n_k`` (arXiv 1602.05629, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from tasks.errors import ClientError, FedbenchError
from tasks.strategies.updates import Reference, check_tensors, check_update, read_reference, reference_of

# Values per step of the mean. A temporary of 256 KiB stays in the processor's cache; a whole tensor would not.
_STEP = 1 << 16
# Half of float32's largest value. The difference of two values up to this size is finite, so no step can overflow.
_LARGEST = torch.finfo(torch.float32).max / 2


class WeightedMean:
    """Streaming weighted mean: one accumulator, one update at a time, tensor by tensor from its mapped file.

    It is a running mean, ``w += n_k / N (w_k - w)``, with N the number of images so far (Welford's recurrence). The
    mean of one client is its weights bit for bit, and so is the mean of clients with equal weights. Each of the three
    operations is rounded by itself, so the bits depend on the order of the updates but not on threads or vector width.
    Add updates in client order.

    Floating tensors, BatchNorm's statistics included, are averaged, and the result is float32. Integers and booleans
    (``num_batches_tracked``) are not averaged; the result is the maximum over clients. Memory holds the accumulator
    and the pages of one mapped update, whatever the number of clients.

    ``reference``: name, shape and type of each tensor of an update; left out, the first update's apply to the others.
    """

    def __init__(self, reference: Reference | None = None) -> None:
        self._reference = reference
        self._state: dict[str, torch.Tensor] = {}
        self._weight: float = 0
        self._clients: set[str] = set()

    def accumulate(self, file: Path, weight: float, *, client: str) -> None:
        """Add the update in the safetensors file ``file``. ``weight``: its number of training images, unless limited.

        Raises:
            ClientError: a tensor has another shape or type, NaN, a value that is infinite or beyond half of float32's
                range, or a negative variance (the message names the client and the tensor); or the client has a second
                update, or no positive weight. The accumulator has not changed.
        """
        self._check_turn(weight, client)
        reference = self._reference
        if reference is None:
            reference = read_reference(file, client=client)
        check_update(reference, file, client=client)
        with safe_open(file, framework="pt") as update:
            self._add(reference, update.get_tensor, weight, client)

    def accumulate_state(self, state: Mapping[str, torch.Tensor], weight: float, *, client: str) -> None:
        """Add a copy of an update that is in memory, on the CPU. The result's bits are those of :meth:`accumulate`.

        Raises:
            ClientError: as :meth:`accumulate`.
        """
        self._check_turn(weight, client)
        found = reference_of(state)
        reference = found if self._reference is None else self._reference
        check_tensors(reference, found, client=client)
        self._add(reference, state.__getitem__, weight, client)

    def _check_turn(self, weight: float, client: str) -> None:
        if client in self._clients:
            raise ClientError(f"client {client}: expected one update in a round, found a second")
        if weight <= 0:
            raise ClientError(f"client {client}: expected a weight of more than 0, found {weight}")

    def _add(self, reference: Reference, tensor_of: Callable[[str], torch.Tensor], weight: float, client: str) -> None:
        check_values(reference, tensor_of, client=client)
        # All checks are done before the first change: an update counts whole or not at all.
        self.add_checked(reference, tensor_of, weight, client=client)

    def add_checked(
        self, reference: Reference, tensor_of: Callable[[str], torch.Tensor], weight: float, *, client: str
    ) -> None:
        """Add an update whose tensors fit ``reference`` and whose values :func:`check_values` has accepted.

        weight: more than 0. tensor_of: returns a tensor of the update by its name.
        """
        part = weight / (self._weight + weight)
        for name in reference:
            tensor = tensor_of(name)
            if name not in self._state:
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                self._state[name] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
            elif tensor.is_floating_point():
                _move_towards(self._state[name], tensor, part)
            else:
                torch.maximum(self._state[name], tensor, out=self._state[name])
        self._reference = reference
        self._weight += weight
        self._clients.add(client)

    def result(self) -> dict[str, torch.Tensor]:
        """Return the mean, by tensor's name. It is not copied: the accumulator is empty afterwards.

        Raises:
            FedbenchError: no update was accumulated.
        """
        if not self._clients:
            raise FedbenchError("aggregation: expected at least one update, found none")
        state, self._state, self._weight, self._clients = self._state, {}, 0, set()
        return state


def check_values(reference: Reference, tensor_of: Callable[[str], torch.Tensor], *, client: str) -> None:
    """Check the values of an update's floating tensors.

    Raises:
        ClientError: NaN, a value that is infinite or beyond half of float32's range, or a negative variance.
    """
    for name, (_, dtype) in reference.items():
        if dtype.is_floating_point:
            _check_tensor(tensor_of(name), name, client)


def _check_tensor(tensor: torch.Tensor, name: str, client: str) -> None:
    if not tensor.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(tensor))  # one pass; NaN in the tensor gives NaN
    if not (low >= -_LARGEST and high <= _LARGEST):
        worst = low if low != low or low < -_LARGEST else high
        raise ClientError(
            f"client {client}: tensor {name}: expected finite values up to {_LARGEST:.3g} in size, found {worst:.3g}"
        )
    # A variance below 0 has no root, so this one value breaks the model, whatever the rest of the update is.
    if low < 0 and name.rpartition(".")[2] == "running_var":
        raise ClientError(f"client {client}: tensor {name}: expected variances of at least 0, found {low:.3g}")


def _move_towards(mean: torch.Tensor, tensor: torch.Tensor, part: float) -> None:
    """``mean += part * (tensor - mean)`` in place.

    It does not use ``lerp_`` or ``add_(alpha=)``: a fused multiply-add rounds differently from its two operations, and
    whether an element gets one may depend on how the tensor is divided among threads.
    """
    for left, right in zip(mean.view(-1).split(_STEP), tensor.reshape(-1).split(_STEP), strict=True):
        difference = right.to(torch.float32, copy=True).sub_(left)
        left.add_(difference.mul_(part))
