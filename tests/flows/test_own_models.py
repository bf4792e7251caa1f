"""Federations whose clients keep models of their own: states, updates, figures and decisions in the store."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import flows.federation
import flows.round
import tasks.client_eval
import tasks.training.turn
from flows.commands.open_model import open_model
from flows.views.mlflow_run import without_shared_model
from infra.leftovers.store import Retention, federation_leftovers
from infra.settings_groups import S3Settings
from infra.store.weights import WeightStore
from tasks.detectors.roles import roles_of
from tasks.errors import FedbenchError, SpecError
from tasks.metrics.detections import ImageDetections
from tasks.metrics.own_record import of_client
from tasks.original.rounds_csv import rounds_csv
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.participation import Participation
from tasks.spec.plans import WeightRef
from tasks.spec.records import FineTunedRecord, RoundRecord
from tasks.strategies.registry import build_strategy
from tasks.training.evaluation import PartResult
from tasks.training.local import TrainingResult
from tests.flows.empty_federation import SPEC, EmptyFederation, without_prefect_and_learning
from tests.records import client_info, round_record

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


def _evaluate(detector: Any, batches: Any, samples: Any, spec: Any, *, device: str, **_: Any) -> PartResult:
    indices = [index for batch in batches for index in batch.indices]
    sizes = [min(spec.batch_size, len(indices) - start) for start in range(0, len(indices), spec.batch_size)]
    losses = [loss_of(detector.state_dict()) * size for size in sizes]
    return PartResult(losses, len(indices), {index: ImageDetections.empty() for index in indices}, 0.0)


async def _no_page(*arguments: Any) -> None: ...


@pytest.fixture(autouse=True)
def _without_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect_and_learning(monkeypatch)
    monkeypatch.setattr(flows.federation, "show_clients", _no_page)
    monkeypatch.setattr(tasks.training.turn, "train", _train)
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


def test_the_initial_model_stays_while_a_kept_round_names_it_as_a_state(
    s3_settings: S3Settings, tmp_path: Path, own_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 1 is the best. Round 0 is neither best nor among the last, and the other clients' states are its model."""
    fields = {"participation.clients_per_round": 1, "max_rounds": 5}
    run = Run(s3_settings, tmp_path, own_prefix, spec_of("ditto", **fields), keep_globals=1)
    initial = loss_of(run_initial(run))

    def evaluate(detector: Any, batches: Any, samples: Any, spec: Any, *, device: str, **_: Any) -> PartResult:
        part = _evaluate(detector, batches, samples, spec, device=device)
        if loss_of(detector.state_dict()) == initial:
            return part
        right = {}
        for index in part.detections:
            boxes, labels = samples[index].boxes, samples[index].labels
            right[index] = ImageDetections(boxes, np.ones(len(boxes), np.float32), labels)
        return replace(part, detections=right)

    monkeypatch.setattr(tasks.client_eval, "evaluate", evaluate)
    records = run.run()
    assert [record.decision.best_round for record in records[1:]] == [1] * 5
    assert sum(ref == records[0].model for ref in records[1].states.values()) == 2
    kept = {records[number].model.key for number in (0, 1, 5)}
    assert {key for key in run.objects.list(run.layout.rounds) if key.endswith("global.safetensors")} == kept
    for client in CLIENTS:
        assert open_model(f"it@{client}", run.settings).title == f"it@{client}, round 1"


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


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_a_command_opens_a_clients_own_model(run: Run) -> None:
    records = run.run()
    best = records[-1].decision.best_round
    for number in (None, 2):
        record = records[best if number is None else number]
        opened = open_model("it@4", run.settings, number)
        assert opened.title == f"it@4, round {record.round}"
        expected = run.own_model(record, "4")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.detector.state_dict().items())
        assert opened.record is not None
        assert opened.record.evaluations == tuple(item for item in record.personal if item.clients == ("4",))
        assert opened.card.clients == ("4",)
        assert opened.card.metrics["loss"] == opened.record.evaluations[0].loss
        assert opened.card.notes[0] == "The own model of client 4, not the federation's shared model."
    lines = rounds_csv(of_client(record, "4") for record in records).splitlines()
    assert len(lines) == len(records)
    losses = [line.split(",")[1] for line in lines[1:]]
    took_part = [any(update.client == "4" for update in record.updates) for record in records[1:]]
    assert losses == ["1.0" if took else "" for took in took_part]
    if run.spec.strategy.shared_model:
        assert open_model("it", run.settings).client is None
    else:
        with pytest.raises(SpecError, match=r"it: expected a client's own model, .* the run has it@3, it@4, it@5$"):
            open_model("it", run.settings)
    with pytest.raises(SpecError, match=r"it@9: no such client in round 2; the run has it@3, it@4, it@5"):
        open_model("it@9", run.settings, 2)


@pytest.mark.parametrize("run", ["fedavg"], indirect=True)
def test_a_run_without_own_models_has_none_to_open(run: Run) -> None:
    run.run()
    with pytest.raises(
        SpecError, match=r"it@3: expected a run whose clients keep .* found strategy\.kind fedavg and no"
    ):
        open_model("it@3", run.settings)


def test_the_note_on_a_model_that_is_not_registered_names_the_clients_models() -> None:
    record = round_record(clients=[client_info(client) for client in "12345"])
    assert without_shared_model("street", spec_of("fedbn"), record) == (
        "no model is registered: strategy.kind fedbn has no complete shared model. The clients' own are street@1, "
        "street@2, street@3 and 2 more, for fedbench evaluate, predict, serve, save-model and register"
    )


def tuned_of(run: Run, round_number: int) -> FineTunedRecord:
    document = run.objects.get_json(run.layout.fine_tuned_record(round_number))
    return FineTunedRecord.model_validate(document)


@pytest.fixture
def tuning(s3_settings: S3Settings, tmp_path: Path, own_prefix: str) -> Run:
    return Run(s3_settings, tmp_path, own_prefix, spec_of("fedavg", **{"max_rounds": 2, "fine_tuning.epochs": 3}))


def test_after_the_last_round_each_client_tunes_the_global_model(tuning: Run) -> None:
    epochs: list[int] = []

    def watch(request: Any) -> None:
        if getattr(request, "tuning", False):
            epochs.append(request.spec.training.local_epochs)

    records = tuning.run(watch)
    plain = Run(tuning.settings.s3, tuning.settings.home / "plain", f"{tuning.layout.prefix}/plain", spec_of("fedavg"))
    plain.spec = plain.spec.model_copy(update={"max_rounds": 2})
    assert [record.model.sha256 for record in plain.run()] == [record.model.sha256 for record in records]
    assert epochs == [3, 3, 3]
    tuned = tuned_of(tuning, 2)
    assert tuned.model == records[-1].model
    assert [update.client for update in tuned.updates] == list(CLIENTS)
    for update in tuned.updates:
        expected = {name: tensor.clone() for name, tensor in tuning.state(records[-1].model).items()}
        _move(expected, update.client, update.seed)
        found = tuning.state(update.weights)
        assert update.weights.key == tuning.layout.fine_tuned_weights(2, update.client)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        (evaluation,) = [item for item in tuned.evaluations if item.clients == (update.client,)]
        assert evaluation.loss == pytest.approx(loss_of(found), rel=1e-6)
        opened = open_model(f"it@{update.client}", tuning.settings)
        assert opened.title == f"it@{update.client}, fine-tuned from round 2"
        assert all(torch.equal(opened.detector.state_dict()[name], tensor) for name, tensor in found.items())
        assert opened.record is not None
        assert opened.record.evaluations == (evaluation,)
    assert tuned.shown is not None
    assert (tuned.shown.clients, tuned.shown.decides, tuned.shown.common) == (3, False, True)
    with pytest.raises(SpecError, match="--round 1: expected 2, the last round, whose model the clients fine-tuned"):
        open_model("it@3", tuning.settings, 1)
    assert not tuning.objects.list(tuning.layout.evaluations(2))
    assert not [key for key in tuning.objects.list(tuning.layout.rounds) if "/0003/" in key]
    tuning.run(lambda request: pytest.fail("the federation has nothing left to do"))


def test_tuning_that_is_killed_goes_on_and_an_extended_federation_tunes_again(
    tuning: Run, tmp_path: Path, own_prefix: str
) -> None:
    tuning.run()
    expected = tuned_of(tuning, 2)
    again = Run(tuning.settings.s3, tmp_path / "again", f"{own_prefix}/again", tuning.spec)
    trained: list[str] = []
    kills = 0

    def kill(request: Any) -> None:
        nonlocal kills
        if getattr(request, "tuning", False):
            trained.extend(request.clients)
        if trained and kills < 3:
            kills += 1
            raise Killed

    done = False
    while not done:
        try:
            again.run(kill, cold=True)
            done = True
        except Killed:
            continue
    assert kills == 3
    assert sorted(trained) == list(CLIENTS)  # none is trained twice
    found = tuned_of(again, 2)
    assert [update.weights.sha256 for update in found.updates] == [item.weights.sha256 for item in expected.updates]
    assert found.metrics == expected.metrics
    again.spec = again.spec.model_copy(update={"max_rounds": 3})
    records = again.run()
    assert (len(records), tuned_of(again, 3).model) == (4, records[3].model)
    assert tuned_of(again, 2) == found
    assert set(again.objects.list(again.layout.fine_tuned(2))) >= {update.weights.key for update in found.updates}
    entries = again.objects.entries(again.layout.root)
    leftovers = federation_leftovers(
        again.layout, entries, [0], Retention(older_than=timedelta()), datetime.now(UTC) + timedelta(days=30)
    )
    assert not [leftover.key for leftover in leftovers if "/fine-tuned/" in leftover.key]


def test_nobody_tunes_a_model_that_is_not_complete() -> None:
    with pytest.raises(SpecError, match=r"fine_tuning: expected null, .* strategy\.kind fedper .* -s fine_tuning=null"):
        spec_of("fedper", **{"fine_tuning.epochs": 3})
    spec_of("fedper", fine_tuning=None)


def test_a_run_that_is_killed_right_after_a_commit_leaves_no_part_of_an_evaluation(
    s3_settings: S3Settings, tmp_path: Path, own_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(s3_settings, tmp_path, own_prefix, spec_of("ditto"), keep_updates=False)
    with monkeypatch.context() as patched:
        patched.setattr(flows.round, "clear_up", _killed)
        with pytest.raises(Killed):
            run.run()
    assert run.objects.list(run.layout.evaluations(0))
    run.run()
    left = [key for key in run.objects.list(run.layout.rounds) if "/evaluations/" in key or "/updates/" in key]
    assert left == []


def _killed(*arguments: Any) -> None:
    raise Killed
