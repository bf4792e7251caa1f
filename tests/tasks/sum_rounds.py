"""Round 3 of three clients in one turn with partial sums: phases and store are real, a script replaces training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.client_update
from infra.errors import DeadlineExceeded, SlotLost
from infra.store.objects import ObjectStore
from tasks.aggregate import aggregate_updates
from tasks.client_update import Trained, client_update
from tasks.errors import ClientError
from tasks.handles import set_handles
from tasks.request_update import request_update
from tasks.site import Site
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import UpdateRecord
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.strategies.base import Strategy
from tasks.training.local import TrainingResult
from tests.tasks.phase_handles import make_handles, make_plan, put_state

State = dict[str, torch.Tensor]
SUMS = Participation(partial_sums=True, shards=1, turn_retries=2)
SPEC = FederationSpec(participation=SUMS)
SIZES = {"1": 10, "2": 30, "3": 7, "4": 1, "5": 212}


class Here:
    """A slot that runs turns in this process. A turn raises SlotLost to act as if its process had died."""

    count = 1

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []

    async def run(self, turn: Callable[[Any], Any], argument: Any, *, deadline: float | None = None) -> Any:
        self.deadlines.append(deadline)
        return turn(argument)

    def split(self, clients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(clients),)

    async def open(self, coordinator: str) -> None: ...

    async def close(self) -> None: ...


def client_state(client: str) -> State:
    number = float(client)
    return {"w": torch.tensor([number, -number, number / 3]), "n": torch.tensor(int(client))}


class Round:
    """A round whose clients follow ``script``: the actions of a client (ok, die, hang, client-error, nan), then ok.

    A key such as ``record 2.json`` gives actions for writes of that record: ``die`` loses the slot. ``turns`` gives
    actions for whole turns: ``reply lost`` loses the slot after the turn's work.
    """

    def __init__(
        self, site: Site, objects: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        self.handles, self.notes = make_handles(objects, folder, name, take_turn=self.take_turn)
        self.here = Here()
        self.handles.slots = self.here
        self.site, self.spec = site, SPEC
        model = put_state(self.handles, self.handles.layout.global_weights(2), client_state("0"))
        self.plan = make_plan(self.handles, SPEC, model, ("1", "2", "3")).model_copy(update={"partial_sums": True})
        self.script: dict[str, list[str]] = {}
        self.attempts: list[str] = []
        self.turns: list[str] = []
        self.tamper: Callable[[TurnReply], TurnReply] = lambda reply: reply
        monkeypatch.setattr(tasks.client_update, "train_client", self.train)
        put_json = site.objects.put_json

        def watched(key: str, document: Any) -> None:
            if (action := self.script.get("record " + key.rpartition("/")[2], [])) and action.pop(0) == "die":
                raise SlotLost("slot 1: its process ended in the middle of a turn")
            put_json(key, document)

        monkeypatch.setattr(site.objects, "put_json", watched)

    def train(self, site: Site, request: UpdateRequest, client: str, strategy: Strategy[Any]) -> tuple[Trained, State]:
        self.attempts.append(client)
        # Tests check that a running turn has stored nothing.
        self.in_store_while_training = list(self.handles.objects.list(self.handles.layout.updates(3)))
        actions = self.script.get(client, [])
        action = actions.pop(0) if actions else "ok"
        if action == "die":
            raise SlotLost("slot 1: its process ended in the middle of a turn")
        if action == "hang":
            raise DeadlineExceeded("over its deadline; its process was ended")
        if action == "client-error":
            raise ClientError(f"client {client}: bad image")
        state = client_state(client)
        if action == "nan":
            state["w"] = torch.tensor([1.0, float("nan"), 1.0])
        return Trained(client, SIZES[client], TrainingResult(float(client), {}, 1, 2, 0.5), 0.6, 4), state

    def take_turn(self, request: UpdateRequest) -> TurnReply:
        reply = client_update(self.site, request)
        if self.turns and self.turns.pop(0) == "reply lost":
            raise SlotLost("slot 1: its process ended after its work")
        return self.tamper(reply)

    def run(self) -> TurnReply:
        async def run() -> TurnReply:
            set_handles(self.handles)
            return await request_update.fn(self.spec, self.plan, 3, self.plan.cohort, "clients 1, 2, 3")

        return asyncio.run(run())

    def objects(self) -> list[str]:
        folder = self.handles.layout.updates(3)
        return sorted(key.removeprefix(folder) for key in self.handles.objects.list(folder))

    def mean(self, updates: Sequence[UpdateRecord]) -> State:
        new = aggregate_updates(self.handles, self.spec, self.plan, updates)
        assert new.counted == list(updates)
        assert new.dropped == []
        return new.result.model


def assert_mean_of(clients: str, found: State) -> None:
    total = sum(SIZES[client] for client in clients)
    exact = sum(SIZES[client] * client_state(client)["w"].double() for client in clients) / total
    torch.testing.assert_close(found["w"].double(), exact, rtol=1e-6, atol=1e-7)
    assert int(found["n"]) == max(int(client) for client in clients)
