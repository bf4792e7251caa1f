"""The interface of federated methods: what a client does in its turn, and how the server makes the next model.

A method is one file of this folder, named after its kind. It has both halves, the formula and the paper. Its class
overrides what differs from FedAvg, and is the file's ``METHOD``. In formulas, ``x`` is the global model at the start of
the round, ``y_i`` the model that client ``i`` returns, ``Δ_i = y_i - x``, ``p_i`` the client's share of the weight,
``n`` the number of clients that count, ``N`` that of the federation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from tasks.detectors.roles import Roles, tensor_roles
from tasks.detectors.state import check_finite, state_of
from tasks.errors import ClientError
from tasks.spec.strategies import StrategySpec
from tasks.spec.training import TrainingSpec
from tasks.strategies.sums import MODEL, Counted, State, Sums
from tasks.training.local import TrainingResult
from tasks.training.rules import LocalRule
from tasks.training.turn import LocalOutcome, LocalTurn, Tensors

S = TypeVar("S", bound=StrategySpec)


@dataclass(frozen=True)
class ServerRound:
    """What the server has at the end of a round, beside the updates.

    start: ``x``. server, shared: the states that the last round left; empty before there is one.
    clients: ``N``, the number of clients of the federation.
    """

    start: Tensors
    clients: int
    roles_of: Callable[[], Roles]
    server: Tensors = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)

    @property
    def roles(self) -> Roles:
        """Return the roles of the model's tensors. Finding them builds the detector once, which FedAvg need not do."""
        return self.roles_of()


@dataclass(frozen=True)
class ServerResult:
    """The next global model, and the server's new states: its own, and the one that clients read. None: it has none."""

    model: State
    server: State | None = None
    shared: State | None = None


@dataclass(frozen=True)
class Planned:
    """What the server knows about a client's turn when its update comes.

    rates: learning rate of each step of the turn. start: ``x``. update: ``y_i``; None in a partial sum, which holds no
    single client's model.
    """

    learning_rate: float
    rates: tuple[float, ...]
    start: Tensors
    roles_of: Callable[[], Roles]
    update: Tensors | None = None


def check_figure(client: Counted, name: str, expected: float) -> None:
    """Check a figure to a relative 1e-6.

    Raises:
        ClientError: the figure is another one.
    """
    found = client.figures[name]
    if not expected * (1 - 1e-6) <= found <= expected * (1 + 1e-6):
        raise ClientError(f"client {client.client}: figures: {name}: expected {expected:.9g}, found {found:.9g}")


class Strategy(Generic[S]):
    """A federated method. This class is FedAvg; methods override what they change.

    means: names of the weighted means of the updates that the server needs; each takes a model's memory, as does each
    model of the server's new state. FedAvg, FedProx, FedSAM and FedExP hold one model.
    figures: names of the numbers that a client sends with its update.
    client_state: whether a client keeps a state from its last counted round to its next.
    begins_with_model: whether the first state of every client is the initial global model. Round 0's record names that
        object as the state of each client, so that it is kept until each has a newer one.
    """

    means: ClassVar[tuple[str, ...]] = (MODEL,)
    figures: ClassVar[tuple[str, ...]] = ()
    client_state: ClassVar[bool] = False
    begins_with_model: ClassVar[bool] = False

    def __init__(self, spec: S, training: TrainingSpec) -> None:
        self.spec = spec
        self.training = training

    # The client's half.

    def train(self, turn: LocalTurn) -> LocalOutcome:
        """Train one client.

        Raises:
            ClientError: the loss, or a value of the trained state, is NaN or infinite.
        """
        result = turn.train(self.rule(turn))
        state = state_of(turn.detector)
        check_finite(state, client=turn.client)
        own = self.new_client_state(turn, state, result) if self.client_state else None
        if own is not None:
            check_finite(own, client=turn.client)
        return LocalOutcome(result, state, self.figures_of(turn, state, result), own)

    def rule(self, turn: LocalTurn) -> LocalRule:
        """Return what the method changes in a local step."""
        return LocalRule()

    def figures_of(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> dict[str, float]:
        """Return the numbers for the server, by the names in ``figures``. state: ``y_i``."""
        return {}

    def new_client_state(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> State:
        """Return the state that the client keeps, if this round counts. state: ``y_i``."""
        raise NotImplementedError

    def local_names(self, roles: Roles) -> frozenset[str]:
        """Return the names of the tensors that stay at the client: they are in its state, but in no update.

        Called only if the method has no complete shared model.
        """
        return frozenset()

    def personal_model(self, model: Tensors, own: Tensors) -> State:
        """Return a client's own model, if the method keeps one. model: the global one. own: the client's state."""
        return {**model, **own}

    # The server's half.

    def weights_of(self, client: Counted) -> dict[str, float]:
        """Return the weight of a client's update in each of ``means``. All are 0 if the client's weight is."""
        return {MODEL: client.weight}

    def check_figures(self, client: Counted, planned: Planned) -> None:
        """Check the figures that a client reports, as far as the server can know them.

        Raises:
            ClientError: a figure is wrong. The message names the client and the figure.
        """

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        """Return the next global model and the server's new states."""
        return ServerResult(sums.take())


def stepped(mean: State, round: ServerRound, step: Callable[[str, Tensor], Tensor]) -> State:
    """Replace the parameters of ``mean``, the mean ``ȳ`` of the updates, by ``ȳ + (s - Δ)`` with ``Δ = ȳ - x``.

    step: returns the server's step ``s`` for a parameter's name and its ``Δ``, float32, which it may not change.

    Buffers and counters stay as they are. Where ``s`` is ``Δ``, the bits of ``ȳ`` stay: ``x + Δ`` would have others.
    """
    for name, role in round.roles.items():
        if role.kind == "parameter":
            change = mean[name] - round.start[name].float()
            correction = step(name, change) - change
            mean[name] = torch.where(correction == 0, mean[name], mean[name] + correction)
    return mean


def turn_roles(turn: LocalTurn) -> Roles:
    """Return the roles of the tensors of the turn's detector."""
    return tensor_roles(turn.detector)
