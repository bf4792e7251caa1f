"""What a federated method changes in local training: the gradient, or how many gradients a step takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn


class LocalRule:
    """The hooks of :func:`tasks.training.local.train`. This one changes nothing, as in FedAvg.

    twice: a step takes two gradients, so the batches of a step are kept for :meth:`second_gradient`.
    """

    twice: ClassVar[bool] = False

    def begin(self, model: nn.Module) -> None:
        """Called before the first step, with the model on its device and its weights from the server."""

    def correct_gradient(self) -> None:
        """Change the gradients before they are clipped and the optimiser uses them."""

    def second_gradient(self, model: nn.Module, again: Callable[[], None]) -> None:
        """Replace the gradients of a step. Called only with ``twice``.

        again: passes the step's batches again, from the same random state; the gradients add to those there are.
        """


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by the name of their tensor in the model's state."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def add_to_gradient(parameter: nn.Parameter, term: Tensor) -> None:
    """Add ``term`` to the gradient of ``parameter``, which may have none. ``term`` is not changed.

    An optimiser leaves a parameter without a gradient as it is, but one whose gradient is 0 gets weight decay and
    momentum. So a term of 0 makes no gradient: the step has the bits of a step without the term. Only for a parameter
    without a gradient does the host wait for a GPU here; every trained parameter of our detectors gets one.
    """
    if parameter.grad is None:
        if term.any():
            parameter.grad = term.clone()
    else:
        parameter.grad.add_(term)
