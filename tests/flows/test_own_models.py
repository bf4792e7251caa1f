"""Federations whose clients keep models of their own: states, updates, figures and decisions in the store."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tasks.client_eval
import tasks.strategies.base
from infra.settings import S3Settings
from infra.store.weights import WeightStore
from tasks.detectors.roles import roles_of
from tasks.errors import FedbenchError
from tasks.metrics.detections import ImageDetections
from tasks.spec.federation import FederationSpec, Participation, with_fields
from tasks.spec.records import RoundRecord, WeightRef
from tasks.strategies.registry import build_strategy
from tasks.training.evaluation import PartResult
from tasks.training.local import TrainingResult
from tests.flows.empty_federation import SPEC, EmptyFederation, without_prefect_and_learning

State = Mapping[str, Tensor]
KINDS = ("fedbn", "fedper", "ditto")
LOCAL = ("fedbn", "fedper")
CLIENTS = ("3", "4", "5")


def spec_of(kind: str, **fields: Any) -> FederationSpec:
    drawn = SPEC.model_copy(update={"participation": Participation(clients=CLIENTS, clients_per_round=2)})
    return with_fields(drawn, {"strategy.kind": kind, "max_rounds": 4, "patience": 50, **fields}, source="test")


def _train(detector: Any, batches: Any, spec: Any, *, seed: int, client: str, **_: Any) -> TrainingResult:
    """Move every tensor by constants that depend on client and seed. The result also depends on where it starts."""
    step = 1 + zlib.crc32(f"{client} {seed}".encode()) / 2**32
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.9).add_(0.01 * step)
            else:
                tensor.add_(1)
    return TrainingResult(loss=1.0, terms={}, images=0, steps=1, seconds=0.0)


def loss_of(state: State) -> float:
    return float(
        state["layers.0.conv.weight"].sum() + state["layers.0.norm.weight"].sum() + state["layers.15.bias"].sum()
    )


def _evaluate(detector: Any, batches: Any, samples: Any, spec: Any, *, device: str) -> PartResult:
    indices = [index for batch in batches for index in batch.indices]
    sizes = [min(spec.batch_size, len(indices) - start) for start in range(0, len(indices), spec.batch_size)]
    losses = [loss_of(detector.state_dict()) * size for size in sizes]
    return PartResult(losses, len(indices), {index: ImageDetections.empty() for index in indices}, 0.0)


@pytest.fixture(autouse=True)
def _without_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect_and_learning(monkeypatch)
    monkeypatch.setattr(tasks.strategies.base, "train", _train)
    monkeypatch.setattr(tasks.client_eval, "evaluate", _evaluate)


class Run(EmptyFederation):
    """A federation that keeps all objects."""

    def __init__(self, store: S3Settings, home: Path, prefix: str, spec: FederationSpec, **settings: Any) -> None:
        super().__init__(store, home, prefix, "it", spec)
        self.settings = self.settings.model_copy(update={"keep_updates": True, "keep_globals": 100, **settings})

    def state(self, ref: WeightRef) -> dict[str, Tensor]:
        weights = WeightStore(self.objects, self.settings.home / "read", 100)
        return load_file(weights.get(ref.key, ref.sha256, ref.bytes).path)

    def own_model(self, record: RoundRecord, client: str) -> State:
        ref = record.states.get(client)
        own = {} if ref is None else self.state(ref)
        return build_strategy(self.spec).personal_model(self.state(record.model), own)


@pytest.fixture
def run(request: pytest.FixtureRequest, s3_settings: S3Settings, tmp_path: Path, own_prefix: str) -> Run:
    return Run(s3_settings, tmp_path, own_prefix, spec_of(request.param))


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_every_client_is_scored_with_its_own_model(run: Run) -> None:
    records = run.run()
    drawn: set[str] = set()
    for record in records:
        drawn |= {update.client for update in record.updates}
        assert [evaluation.clients for evaluation in record.personal] == [(client,) for client in CLIENTS]
        losses = {}
        for evaluation in record.personal:
            (client,) = evaluation.clients
            losses[client] = evaluation.loss
            assert evaluation.loss == pytest.approx(loss_of(run.own_model(record, client)), rel=1e-6)
        personal = record.metrics.personal
        assert personal is not None
        assert (personal.clients, personal.common) == (3, True)  # this data has one test set for all
        loss = personal.figures["loss"]
        values = [value for value in losses.values() if value is not None]
        assert loss.mean == pytest.approx(sum(values) / 3)
        assert (loss.worst, losses[loss.worst_client]) == (max(values), max(values))
        assert (loss.deviation > 0) == (record.round > 0)
    assert records[-1].states.keys() >= drawn
    assert len(drawn) == 3


@pytest.mark.parametrize("run", LOCAL, indirect=True)
def test_without_a_shared_model_its_figures_are_null_and_the_own_models_decide(run: Run) -> None:
    run.spec = run.spec.model_copy(update={"patience": 1, "patience_metric": "loss"})
    records = run.run()
    for record in records:
        assert record.evaluations == ()
        assert (record.metrics.loss, record.metrics.map50_voc10) == (None, None)
        assert (record.metrics.train_loss is None) == (record.round == 0)
        personal = record.metrics.personal
        assert personal is not None
        assert personal.decides
        assert record.shown.loss == personal.mean("loss")
    means = [record.shown.loss for record in records]
    worse = next(number for number in range(1, len(means)) if means[number] >= min(means[:number]))  # type: ignore[operator, type-var]
    assert (len(records) - 1, records[-1].decision.reason) == (worse, "patience")


@pytest.mark.parametrize("run", LOCAL, indirect=True)
def test_no_object_that_leaves_a_client_has_a_tensor_that_stays(run: Run) -> None:
    records = run.run()
    local = build_strategy(run.spec).local_names(roles_of(run.spec.detector, 7))
    first = run.state(records[0].model)
    for record in records[1:]:
        for update in record.updates:
            assert run.state(update.weights).keys() == first.keys() - local
            assert update.state is not None
            assert run.state(update.state).keys() == local
        model = run.state(record.model)
        assert all(torch.equal(model[name], first[name]) for name in local)


def test_a_first_state_of_ditto_is_the_initial_model_and_kept_until_it_is_newer(
    s3_settings: S3Settings, tmp_path: Path, own_prefix: str
) -> None:
    run = Run(
        s3_settings, tmp_path, own_prefix, spec_of("ditto", **{"participation.clients_per_round": 1}), keep_globals=2
    )
    run.spec = run.spec.model_copy(update={"max_rounds": 9})
    records = run.run()
    initial = records[0].model
    assert records[0].states == dict.fromkeys(CLIENTS, initial)
    last_needed = max(record.round for record in records if initial in record.states.values())
    assert 2 < last_needed < 9
    states: dict[str, State] = {}
    for record in records[1:]:
        (update,) = record.updates
        assert record.plan is not None
        assert record.plan.states == {update.client: records[record.round - 1].states[update.client]}
        start = states.get(update.client)
        expected = {name: tensor.clone() for name, tensor in (start or run_initial(run)).items()}
        _move(expected, update.client, update.seed)
        states[update.client] = expected
    for client, state in states.items():
        ref = records[-1].states[client]
        found = run.state(ref)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    there = set(run.objects.list(run.layout.rounds))
    kept = {record.model.key for record in records if record.round in (0, 8, 9)}
    assert {key for key in there if key.endswith("global.safetensors")} == kept  # round 0 is the best: all are equal


def run_initial(run: Run) -> State:
    from tasks.detectors.registry import build_detector

    return build_detector(run.spec.detector, 7, seed=run.spec.seed).state_dict()


def _move(state: dict[str, Tensor], client: str, seed: int) -> None:
    class Detector:
        def state_dict(self) -> dict[str, Tensor]:
            return state

    _train(Detector(), (), None, seed=seed, client=client)


class Killed(Exception): ...


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    run: Run, s3_settings: S3Settings, tmp_path: Path, own_prefix: str
) -> None:
    expected = run.run()
    count = 0

    def kill(request: Any) -> None:
        nonlocal count
        count += 1
        if count % 4 == 3 and count < 30:
            raise Killed

    again = Run(s3_settings, tmp_path / "again", f"{own_prefix}/again", run.spec)
    records: list[RoundRecord] = []
    while not records:
        try:
            records = again.run(kill, cold=True)
        except Killed:
            continue
    for one, other in zip(records, expected, strict=True):
        assert one.model.sha256 == other.model.sha256
        assert {client: ref.sha256 for client, ref in one.states.items()} == {
            client: ref.sha256 for client, ref in other.states.items()
        }
        assert [item.loss for item in one.personal] == [item.loss for item in other.personal]
        assert one.metrics == other.metrics


def test_a_federation_in_which_nobody_can_be_scored_is_refused(
    s3_settings: S3Settings, tmp_path: Path, own_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.wake_up.own_images_to_score", lambda spec, clients: [])
    run = Run(s3_settings, tmp_path, own_prefix, spec_of("ditto"))
    with pytest.raises(FedbenchError, match=r"wake_up: strategy\.kind ditto scores .* -s evaluation\.on=holdout"):
        run.run()
