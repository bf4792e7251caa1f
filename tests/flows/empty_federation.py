"""Small federations in this process, with real rounds, phases, site and store, but without Prefect and learning.

Flows and tasks are called as plain functions. Instead of training, a client adds a constant to the weights, which
depends on client and seed, so no two updates are equal, and then what a federated method's states ask for. An
evaluation reads its batches and detects nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from prefect.utilities.annotations import quote

import flows.federation
import flows.fine_tuning
import flows.new_model
import flows.round
import tasks.client_eval
import tasks.training.turn
from flows.coordinator.preflight import claim_name
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from tasks.detectors import yolo_network
from tasks.detectors.yolo_network import Conv
from tasks.handles import Handles, set_handles
from tasks.metrics.detections import ImageDetections
from tasks.site import Site
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.records import RoundRecord
from tasks.spec.training import EvaluationSpec, TrainingSpec
from tasks.take_turn import PHASES
from tasks.training.evaluation import PartResult
from tasks.training.local import TrainingResult
from tasks.training.optimizers import planned_rates
from tasks.training.rules import LocalRule
from tests.unused_handles import no_turn, nothing_left

SPEC = FederationSpec(
    max_rounds=3,
    data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64),
    detector=YoloV3TinySpec(width=64, height=64),
    training=TrainingSpec(batch_size=4, threads=1),
    evaluation=EvaluationSpec(batch_size=4),
    participation=Participation(clients=("3", "4", "5")),
)


class Here:
    """Slots that run turns in this process, one after the other. ``after`` is called with each answered request."""

    count = 1

    def __init__(self, site: Site, after: Callable[[Any], None]) -> None:
        self.site, self.after = site, after

    async def run(self, turn: Callable[[Any], Any], request: Any, *, deadline: float | None = None) -> Any:
        reply = PHASES[request.phase](self.site, request)
        self.after(request)
        return reply

    def split(self, clients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(clients),)

    async def open(self, coordinator: str) -> None: ...

    async def close(self) -> None: ...


@dataclasses.dataclass
class Said:
    """A reporter that records its messages and the retried clients."""

    messages: list[str] = dataclasses.field(default_factory=list)
    retried: list[str] = dataclasses.field(default_factory=list)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def client_retried(self, phase: str, client: str, attempt: int, reason: str) -> None:
        self.retried.append(client)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: None


class EmptyFederation:
    """The federation ``name`` below ``prefix`` in a real store. ``home`` contains this machine's cache of weights."""

    def __init__(self, store: S3Settings, home: Path, prefix: str, name: str, spec: FederationSpec = SPEC) -> None:
        self.settings = Settings(home=home, s3=store.model_copy(update={"prefix": prefix}))
        self.objects = ObjectStore(self.settings.s3)
        self.layout = FederationLayout(prefix, name)
        self.spec = spec
        self.said = Said()
        self.went_back: list[int] = []
        self.site = Site(self.settings.model_copy(update={"home": home / "site"}))

    def run(self, after: Callable[[Any], None] = lambda request: None, *, cold: bool = False) -> list[RoundRecord]:
        """Claim the name, run to the end and return the records. With ``cold``, this machine's cache is empty at first.

        The site has its own cache, like a silo.
        """
        settings, site = self.settings, self.site
        if cold:
            settings = settings.model_copy(update={"home": settings.home / uuid4().hex})
            site.weights = WeightStore(self.objects, settings.home / "site", 100)
        for line in claim_name(self.objects, self.layout, self.spec):
            self.said.message(line)
        handles = Handles(
            settings=settings,
            objects=self.objects,
            weights=WeightStore(self.objects, settings.home / "cache" / "weights", 100),
            layout=self.layout,
            slots=Here(site, after),
            take_turn=no_turn,
            reporter=self.said,
            committed=lambda record: None,
            started=lambda run: None,
            finished=nothing_left,
            went_back=lambda records: self.went_back.append(len(records)),
        )

        async def run() -> None:
            set_handles(handles)
            await flows.federation.rounds(self.layout.federation, self.spec)

        asyncio.run(run())
        return handles.history


def without_prefect_and_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call flows and tasks as plain functions and replace training and evaluation, until ``monkeypatch`` is undone."""
    for module, names in (
        (flows.federation, ("wake_up", "initial_round", "federated_round")),
        (flows.round, ("check_client_resource", "request_update", "stop_and_eval", "decide")),
        (flows.new_model, ("aggregate",)),
        (flows.fine_tuning, ("fine_tune", "stop_and_eval")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, _direct(getattr(module, name)))
    flow_run = SimpleNamespace(get_id=lambda: str(uuid4()))
    monkeypatch.setattr(flows.federation, "runtime", SimpleNamespace(flow_run=flow_run))
    monkeypatch.setattr(flows.federation, "tag_run", _nothing)
    monkeypatch.setattr(flows.federation, "RunArtifacts", _NoArtifacts)
    monkeypatch.setattr(flows.round, "show_clients", _nothing)
    monkeypatch.setattr(tasks.training.turn, "train", _train)
    monkeypatch.setattr(tasks.client_eval, "evaluate", _evaluate)
    narrow = [
        dataclasses.replace(layer, filters=max(layer.filters // 16, 4)) if isinstance(layer, Conv) else layer
        for layer in yolo_network.YOLOV3_TINY_LAYERS
    ]
    monkeypatch.setattr(yolo_network, "YOLOV3_TINY_LAYERS", tuple(narrow))


def _direct(called: Any) -> Callable[..., Any]:
    async def call(*arguments: Any) -> Any:
        return await called.fn(*(item.unquote() if isinstance(item, quote) else item for item in arguments))

    return call


async def _nothing(*arguments: Any) -> None: ...


class _NoArtifacts:
    def __init__(self, *arguments: Any) -> None:
        self.begin = self.round_committed = self.finish = _nothing


def _train(
    detector: Any, batches: Any, spec: Any, *, lr: float, warmup_steps: int, seed: int, client: str, rule: LocalRule
) -> TrainingResult:
    """Add the client's constant, and take one step by what the method adds to a gradient of zero."""
    rule.begin(detector)
    rule.correct_gradient()
    with torch.no_grad():
        next(detector.parameters()).add_(1e-3 * zlib.crc32(f"{client} {seed}".encode()) / 2**32)
        for parameter in detector.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-lr)
                parameter.grad = None
    rates = planned_rates(len(batches), spec.accumulate, lr, warmup_steps)
    return TrainingResult(loss=1.0, terms={}, images=0, steps=1, seconds=0.0, rates=rates)


def _evaluate(detector: Any, batches: Any, samples: Any, spec: Any, *, device: str, **_: Any) -> PartResult:
    loss = float(next(detector.parameters()).detach().sum())
    indices = [index for batch in batches for index in batch.indices]
    losses = [loss] * -(-len(indices) // spec.batch_size)
    return PartResult(losses, len(indices), {index: ImageDetections.empty() for index in indices}, 0.0)
