"""Which clients take part in a round, and how failing clients are handled."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from tasks.spec.base import MOST, MOST_CLIENTS, AddedLater, ClientId, Frozen
from tasks.spec.shares import least_clients


class Participation(Frozen, title="Participation"):
    """The rules by which clients take part in a round, and by which failing clients are handled."""

    clients: tuple[ClientId, ...] | None = Field(
        None, description="Devices that take part; left out, all devices of the data set."
    )
    min_clients: int | None = Field(
        None, ge=1, le=MOST_CLIENTS, description="Clients that must be ready before round 1; left out, more than half."
    )
    wake_up_deadline: float = Field(120, gt=0, le=MOST, description="Seconds to wait for min_clients.")
    clients_per_round: int | None = Field(
        None, ge=1, le=MOST_CLIENTS, description="Number of clients drawn in each round; left out, all ready clients."
    )
    check_load: bool = Field(False, description="Enforce max_load. Meant for clients with machines of their own.")
    max_load: float = Field(0.4, gt=0, le=1e6, description="A client qualifies if its load per core is below this.")
    min_qualified: float = Field(0.5, ge=0, lt=1, description="More than this part of the drawn clients must qualify.")
    max_draws: int = Field(
        10,
        ge=1,
        le=100,
        description="Draws before the round fails; the wait between draws grows by a second, up to ten.",
    )
    min_updates: int | None = Field(
        None,
        ge=1,
        le=MOST_CLIENTS,
        description="Quorum: a round with fewer updates fails; left out, more than half of the cohort.",
    )
    turn_retries: int = Field(
        2, ge=0, le=20, description="How often a turn that is lost with its machine is run again."
    )
    turn_deadline: float | None = Field(
        None,
        gt=0,
        le=MOST,
        description="Seconds after which a client's turn is ended; left out: no limit. With partial_sums, the whole "
        "turn is ended after this many seconds for each of its clients.",
    )
    evaluation_deadline: Annotated[float | None, AddedLater()] = Field(
        None,
        gt=0,
        le=MOST,
        description="Seconds after which a turn of evaluation is ended, and its test set left out of the round's "
        "figures; left out: no limit.",
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=MOST_CLIENTS,
        description="Number of turns that a round's clients are packed into, balanced by images; left out, one turn "
        "for each client.",
    )
    partial_sums: Annotated[bool, AddedLater()] = Field(
        False,
        description="Store one weighted sum for each turn instead of an update for each client. Needs a strategy that "
        "only adds updates.",
    )
    max_weight_share: Annotated[float | None, AddedLater()] = Field(
        None,
        gt=0,
        le=1,
        description="Largest part of a round's model and figures that one client may count for; the others share the "
        "rest in proportion to their images. Left out: each client counts by the number of images that it reports.",
    )

    @model_validator(mode="after")
    def _check(self) -> Participation:
        if self.clients is not None:
            if not self.clients or len(set(self.clients)) != len(self.clients):
                raise ValueError("clients: expected at least one client, each named once")
            most = len(self.clients)
            for field in ("min_clients", "clients_per_round", "min_updates"):
                value = getattr(self, field)
                if value is not None and value > most:
                    raise ValueError(f"{field}: expected at most {most}, the number of clients, found {value}")
        if self.min_updates and self.clients_per_round and self.min_updates > self.clients_per_round:
            raise ValueError(
                f"min_updates: expected at most clients_per_round ({self.clients_per_round}), found {self.min_updates}"
            )
        if self.clients is not None or self.clients_per_round is not None:
            fault = self.share_fault(len(self.clients or ()))
            if fault is not None:
                raise ValueError(fault)
        return self

    def share_fault(self, clients: int) -> str | None:
        """Return why a round cannot keep to ``max_weight_share``, or None if it can.

        clients: number of clients; ``clients_per_round`` comes first if it is set.
        """
        count, share = self.clients_per_round or clients, self.max_weight_share
        if share is None or count >= least_clients(share):
            return None
        return (
            f"max_weight_share: expected at least {math.ceil(1e4 / count) / 1e4:g}, an equal share for each of {count} "
            f"clients, found {share:g}"
        )
