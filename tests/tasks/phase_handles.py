"""Handles for the tests of phases: real store, weights and slots, and a reporter that keeps the calls it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.turns.local import LocalSlots
from tasks.handles import Handles
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import RoundPlan, UpdateRecord, WeightRef
from tasks.spec.turns import TurnReply
from tests.records import round_plan, update_record
from tests.unused_handles import no_turn, nothing_left


@dataclass
class Notes:
    """A reporter that keeps every call as (method, arguments)."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def make_handles(
    objects: ObjectStore, folder: Path, name: str, *, take_turn: Callable[[Any], TurnReply] = no_turn, slots: int = 2
) -> tuple[Handles, Notes]:
    """Return handles and their reporter. Slots start their processes when they are first used."""
    notes = Notes()
    handles = Handles(
        settings=Settings(home=folder),
        objects=objects,
        weights=WeightStore(objects, folder / "cache", 100),
        layout=FederationLayout("phases", name),
        slots=LocalSlots(slots, [], {"FEDBENCH_TEST_FOLDER": str(folder)}),
        take_turn=take_turn,
        reporter=notes,
        committed=lambda record: None,
        started=lambda run: None,
        finished=nothing_left,
    )
    return handles, notes


def put_state(handles: Handles, key: str, state: dict[str, torch.Tensor]) -> WeightRef:
    stored = handles.weights.put(key, save(state))
    return WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes)


def make_plan(handles: Handles, spec: FederationSpec, model: WeightRef, cohort: tuple[str, ...]) -> RoundPlan:
    """Return the plan of round 3 of the handles' federation."""
    return round_plan(
        *cohort,
        federation=handles.layout.federation,
        round=3,
        spec_digest=spec.digest,
        model=model,
        shards=(cohort,),
        seeds={client: 100 + int(client) for client in cohort},
        learning_rate=0.01,
    )


def make_update(handles: Handles, plan: RoundPlan, client: str, weights: WeightRef, **changes: Any) -> UpdateRecord:
    """Return the update that answers ``plan`` for ``client``, with ``changes``."""
    asked = {
        "federation": plan.federation,
        "round": plan.round,
        "spec_digest": plan.spec_digest,
        "model": plan.model.sha256,
        "seed": plan.seeds.get(client, 0),
        "weights": weights,
    }
    return update_record(
        client, **{**asked, "steps": 3, "train_seconds": 0.9, "bytes_down": 5, "host": "here", **changes}
    )
