"""Methods that keep a part of the model at the client: its tensors are in the client's state, and in no update.

The global model keeps the initial values of these tensors, so that every client's first state is the same, and every
object of global weights can be loaded. It is no model to use: a client's own model is the global one with the client's
tensors.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from tasks.detectors.roles import Roles
from tasks.detectors.state import check_finite, state_of
from tasks.errors import ClientError, FedbenchError
from tasks.spec.strategies import PartlyLocalSpec
from tasks.strategies.base import LocalOutcome, LocalTurn, ServerResult, ServerRound, Strategy, turn_roles
from tasks.strategies.sums import Sums
from tasks.training.local import TrainingResult

S = TypeVar("S", bound=PartlyLocalSpec)


class PartlyLocal(Strategy[S]):
    """FedAvg over the tensors that do not stay at the client.

    kept: the tensors that stay, by the field of their role.
    """

    client_state = True
    kept: ClassVar[Literal["normalisation", "head"]]

    def local_names(self, roles: Roles) -> frozenset[str]:
        """Return the names of the tensors that stay at the client.

        Raises:
            FedbenchError: none of them is trained, so that the method would be FedAvg.
        """
        names = frozenset(name for name, role in roles.items() if getattr(role, self.kept))
        if not any(roles[name].trained for name in names):
            raise FedbenchError(
                f"strategy.kind {self.spec.kind}: expected a detector with trained tensors of its {self.kept}, "
                "which stay at the client, found none"
            )
        return names

    def train(self, turn: LocalTurn) -> LocalOutcome:
        local = self.local_names(turn_roles(turn))
        if turn.own:
            load_own(turn, local)
        result = self.train_locally(turn, local)
        state = state_of(turn.detector)
        check_finite(state, client=turn.client)
        own = {name: tensor for name, tensor in state.items() if name in local}
        update = {name: tensor for name, tensor in state.items() if name not in local}
        return LocalOutcome(result, update, own=own)

    def train_locally(self, turn: LocalTurn, local: frozenset[str]) -> TrainingResult:
        """Train the turn's detector, which has the client's own tensors. local: their names."""
        return turn.train()

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        local = self.local_names(round.roles)
        return ServerResult(sums.take() | {name: round.start[name] for name in local})


def load_own(turn: LocalTurn, names: frozenset[str]) -> None:
    """Load the client's state over the weights of the turn's detector.

    Raises:
        ClientError: the state has other tensors than ``names``.
    """
    differing = sorted(names ^ turn.own.keys())
    if differing:
        expected, found = ("it", "none") if differing[0] in names else ("no such tensor", "one")
        raise ClientError(f"client {turn.client}: its state: tensor {differing[0]}: expected {expected}, found {found}")
    turn.detector.load_state_dict(dict(turn.own), strict=False)
