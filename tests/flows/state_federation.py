"""Small federations of SCAFFOLD and FedAdam without Prefect and learning: methods that keep states."""

from __future__ import annotations

from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.records import RoundRecord
from tasks.spec.strategies import FedAdamSpec, ScaffoldSpec
from tasks.spec.training import Sgd, TrainingSpec
from tests.flows.empty_federation import SPEC

CLIENTS = ("2", "3", "4", "5")
PLAIN_SGD = TrainingSpec(batch_size=4, threads=1, optimizer=Sgd(momentum=0.0), clip_norm=None)
# Two of four clients are drawn in a round, so that the last round's record names states of earlier rounds too.
SCAFFOLD: FederationSpec = SPEC.model_copy(
    update={
        "max_rounds": 4,
        "strategy": ScaffoldSpec(),
        "training": PLAIN_SGD,
        "participation": Participation(clients=CLIENTS, clients_per_round=2),
    }
)
FEDADAM: FederationSpec = SPEC.model_copy(update={"max_rounds": 4, "strategy": FedAdamSpec()})


def bits(records: list[RoundRecord]) -> list[object]:
    """Return the digests of weights, updates and states, and the figures, of each round."""
    return [
        (
            record.round,
            record.model.sha256,
            [ref.sha256 for ref in (record.server, record.shared) if ref is not None],
            {client: (ref.key.rpartition("/rounds/")[2], ref.sha256) for client, ref in record.states.items()},
            record.metrics,
            record.decision,
            [(update.client, update.weights.sha256, update.started_from) for update in record.updates],
        )
        for record in records
    ]


def drawn_last(records: list[RoundRecord], client: str) -> int:
    """Return the last round in which ``client`` was counted."""
    return max(record.round for record in records if client in {update.client for update in record.updates})
