"""FedBN, FedPer, FedRep and Ditto: what stays at the client, and what a client's own model is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from tasks.data.batches import Batch
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.roles import Roles, tensor_roles
from tasks.detectors.state import state_of
from tasks.errors import ClientError, FedbenchError, SpecError
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.strategies import DittoSpec, FedAvgSpec, FedBNSpec, FedPerSpec, FedRepSpec
from tasks.spec.training import AdamW, Schedule, TrainingSpec
from tasks.strategies.base import LocalOutcome, LocalTurn, ServerRound, Strategy
from tasks.strategies.ditto import Ditto
from tasks.strategies.fedavg import FedAvg
from tasks.strategies.fedbn import FedBN
from tasks.strategies.fedper import FedPer
from tasks.strategies.fedrep import FedRep
from tasks.strategies.partly_local import PartlyLocal
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.updates import reference_of
from tasks.training.local import TrainingResult, train
from tests.tasks.detectors.tiny_detectors import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]
# Each client's weight, and the batches of one epoch, whose sizes differ between clients.
CLIENTS = {"1": (3, (2, 3)), "2": (5, (4, 2, 1)), "3": (2, (2,))}
EPOCHS = 2
TRAINING = TrainingSpec(
    local_epochs=EPOCHS, optimizer=AdamW(lr=0.05), schedule=Schedule(warmup_steps=2), clip_norm=None, threads=1
)
SPECS = {
    "fedbn": FedBNSpec(),
    "fedper": FedPerSpec(),
    "fedrep": FedRepSpec(head_epochs=1, body_epochs=1),
}
CLASSES: dict[str, type[PartlyLocal[Any]]] = {"fedbn": FedBN, "fedper": FedPer, "fedrep": FedRep}
KEPT = {
    "fedbn": {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
    "fedper": {"head.weight", "head.bias"},
    "fedrep": {"head.weight", "head.bias"},
}


class Small(Detector):
    """A convolution, BatchNorm, dropout and a head that guesses an image's number of objects."""

    width = height = 4
    num_classes = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.body = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(4, 1)
        self.still = False

    def train(self, mode: bool = True) -> Small:
        """Set the mode as in any module; with ``still``, BatchNorm and dropout stay in evaluation mode."""
        super().train(mode)
        if self.still:
            self.norm.eval()
            self.dropout.eval()
        return self

    def head_names(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.body(images.float() / 255)).relu().mean(dim=(2, 3))
        return self.head(self.dropout(x) * self.scale)[:, 0]

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        wanted = torch.tensor([float(len(box)) for box in targets.boxes])
        return {"count": (outputs - wanted).square().mean()}

    def predict(self, outputs: Tensor, **options: Any) -> list[Detections]:
        raise NotImplementedError


def small(state: Mapping[str, Tensor] | None = None) -> Small:
    """Return the detector with the weights ``state``; left out, those of seed 0."""
    torch.manual_seed(0)
    detector = Small()
    if state is not None:
        detector.load_state_dict(dict(state))
    return detector


def copied(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


INITIAL = copied(small().state_dict())


def batches_of(client: str, number: int) -> list[Batch]:
    """Return the batches of a client's turn in round ``number``, all epochs in a row."""
    generator = torch.Generator().manual_seed(100 * number + int(client))
    batches = []
    for size in CLIENTS[client][1] * EPOCHS:
        images = torch.randint(256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator)
        counts = torch.randint(4, (size,), generator=generator).tolist()
        boxes = [torch.zeros(count, 4) for count in counts]
        batches.append(Batch(images, boxes, [torch.zeros(count).long() for count in counts], list(range(size))))
    return batches


def turn(client: str, number: int, x: State, own: State) -> LocalTurn:
    return LocalTurn(
        client,
        small(x),
        TRAINING,
        lambda: batches_of(client, number),
        seed=1000 * number + int(client),
        learning_rate=0.05 / number,
        warmup_steps=TRAINING.schedule.warmup_steps if number == 1 else 0,
        model=x,
        own=own,
    )


@dataclass
class Federation:
    """Rounds of a method in this process. own: the clients' states, which begin as in a federation."""

    strategy: Strategy[Any]
    x: State = field(default_factory=lambda: copied(INITIAL))
    own: dict[str, State] = field(default_factory=dict)
    updates: list[State] = field(default_factory=list)
    outcomes: list[LocalOutcome] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        if self.strategy.begins_with_model:
            self.own = {client: copied(INITIAL) for client in CLIENTS}

    def round(self, *clients: str) -> None:
        self.number += 1
        roles = tensor_roles(small())
        local = self.strategy.local_names(roles)
        reference = {name: spec for name, spec in reference_of(self.x).items() if name not in local}
        sums = Sums(self.strategy, reference)
        for client in clients or tuple(CLIENTS):
            outcome = self.strategy.train(turn(client, self.number, self.x, self.own.get(client, {})))
            self.outcomes.append(outcome)
            self.updates.append(copied(outcome.state))
            if outcome.own is not None:
                self.own[client] = copied(outcome.own)
            sums.accumulate_state(outcome.state, Counted(client, CLIENTS[client][0]))
        server = ServerRound(copied(self.x), len(CLIENTS), lambda: roles)
        self.x = copied(self.strategy.new_model(sums, server).model)

    def own_model(self, client: str) -> State:
        return self.strategy.personal_model(self.x, self.own.get(client, {}))


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def keeping(kind: str, names: str) -> PartlyLocal[Any]:
    """Return the method ``kind``, but keeping "all" or "no" tensors at the client."""

    def local_names(self: PartlyLocal[Any], roles: Roles) -> frozenset[str]:
        return frozenset(roles) if names == "all" else frozenset()

    changed = type("Changed", (CLASSES[kind],), {"local_names": local_names})
    method: PartlyLocal[Any] = changed(SPECS[kind], TRAINING)
    return method


def locally(kind: str, client: str, number: int, start: State) -> State:
    """Return the weights of one turn from ``start``, trained as the method ``kind`` does, but without it."""
    batches, detector = batches_of(client, number), small(start)

    def run(chosen: list[Batch]) -> TrainingResult:
        warmup = TRAINING.schedule.warmup_steps if number == 1 else 0
        seed = 1000 * number + int(client)
        return train(detector, chosen, TRAINING, lr=0.05 / number, warmup_steps=warmup, seed=seed, client=client)

    if kind == "fedrep":
        half = len(batches) // EPOCHS
        body = [parameter for name, parameter in detector.named_parameters() if not name.startswith("head.")]
        head = list(detector.head.parameters())
        detector.still = True
        for parameter in body:
            parameter.requires_grad_(False)
        run(batches[:half])
        detector.still = False
        for parameter in body:
            parameter.requires_grad_(True)
        for parameter in head:
            parameter.requires_grad_(False)
        run(batches[half:])
    else:
        run(batches)
    return copied(state_of(detector))


@pytest.mark.parametrize("kind", SPECS)
def test_no_tensor_that_stays_is_ever_in_an_update(kind: str) -> None:
    federation = Federation(CLASSES[kind](SPECS[kind], TRAINING))
    for _ in range(3):
        federation.round()
    assert all(update.keys() == INITIAL.keys() - KEPT[kind] for update in federation.updates)
    assert all(own.keys() == KEPT[kind] for own in federation.own.values())
    for name in INITIAL:
        same = torch.equal(federation.x[name], INITIAL[name])
        assert same == (name in KEPT[kind]), name  # the global model keeps the initial values of what stays
    ones = [federation.own_model(client) for client in CLIENTS]
    for name in INITIAL:
        equal = all(torch.equal(one[name], ones[0][name]) for one in ones)
        assert equal == (name not in KEPT[kind]) or name.endswith("num_batches_tracked"), name


@pytest.mark.parametrize("kind", SPECS)
def test_what_stays_is_loaded_in_the_next_round(kind: str) -> None:
    federation = Federation(CLASSES[kind](SPECS[kind], TRAINING))
    federation.round()
    own, x = copied(federation.own["2"]), copied(federation.x)
    federation.round("1", "3")  # client 2 does not take part, and keeps its state
    assert_same_bits(federation.own["2"], own)
    x = copied(federation.x)
    federation.round("2")
    assert_same_bits(federation.own_model("2"), {**federation.x, **federation.own["2"]})
    trained = locally(kind, "2", 3, {**x, **own})
    assert_same_bits(federation.own_model("2"), trained)  # it is alone in the round, so the mean is its own


@pytest.mark.parametrize("kind", SPECS)
def test_nothing_local_has_the_bits_of_fedavg(kind: str) -> None:
    federation = Federation(keeping(kind, "no"))
    plain = copied(INITIAL)
    for number in (1, 2, 3):
        federation.round()
        mean = Sums(FedAvg(FedAvgSpec(), TRAINING))
        for client, (weight, _) in CLIENTS.items():
            mean.accumulate_state(locally(kind, client, number, plain), Counted(client, weight))
        plain = copied(mean.take())
        assert_same_bits(federation.x, plain)
    if kind != "fedrep":
        average = Federation(FedAvg(FedAvgSpec(), TRAINING))
        for _ in range(3):
            average.round()
        assert_same_bits(federation.x, average.x)


@pytest.mark.parametrize("kind", SPECS)
def test_nothing_shared_has_the_weights_of_training_alone(kind: str) -> None:
    federation = Federation(keeping(kind, "all"))
    alone = dict.fromkeys(CLIENTS, INITIAL)
    for number in (1, 2, 3):
        federation.round()
        for client in CLIENTS:
            alone[client] = locally(kind, client, number, alone[client])
            assert_same_bits(federation.own_model(client), alone[client])
    assert all(not update for update in federation.updates)
    assert_same_bits(federation.x, INITIAL)


def test_the_kinds_that_keep_a_part_are_not_fedavg() -> None:
    models = []
    for kind, spec in SPECS.items():
        federation = Federation(CLASSES[kind](spec, TRAINING))
        federation.round()
        federation.round()
        models.append(federation.own_model("1"))
    average = Federation(FedAvg(FedAvgSpec(), TRAINING))
    average.round()
    average.round()
    models.append(average.x)
    weights = {tuple(model["body.weight"].flatten().tolist()) for model in models}
    assert len(weights) == len(models)


def test_fedrep_trains_the_head_with_the_body_as_it_was_then_the_body_alone() -> None:
    seen: list[tuple[State, bool, bool]] = []

    class Watched(FedRep):
        def train_locally(self, turn: LocalTurn, local: frozenset[str]) -> TrainingResult:
            modes: list[tuple[bool, bool]] = []

            def note(module: nn.Module, *_: Any) -> None:
                modes.append((turn.detector.norm.training, turn.detector.training))  # type: ignore[union-attr]
                states.append(copied(turn.detector.state_dict()))

            states: list[State] = []
            hook = turn.detector.body.register_forward_pre_hook(note)  # type: ignore[union-attr]
            result = super().train_locally(turn, local)
            hook.remove()
            seen.extend((state, *mode) for state, mode in zip(states, modes, strict=True))
            assert all(parameter.requires_grad for parameter in turn.detector.parameters())
            return result

    federation = Federation(Watched(FedRepSpec(), TRAINING))
    federation.round("2")
    steps = len(CLIENTS["2"][1])
    assert len(seen) == 2 * steps
    first, second = seen[:steps], seen[steps:]
    assert [norm for _, norm, _ in seen] == [False] * steps + [True] * steps
    assert all(whole for *_, whole in seen)
    for state, *_ in (*first, second[0]):
        assert all(torch.equal(state[name], INITIAL[name]) for name in INITIAL.keys() - KEPT["fedrep"])
    assert not torch.equal(second[0][0]["head.weight"], INITIAL["head.weight"])
    assert all(torch.equal(state["head.weight"], second[0][0]["head.weight"]) for state, *_ in second)
    assert torch.equal(federation.own["2"]["head.weight"], second[0][0]["head.weight"])
    result = federation.outcomes[0].result
    assert (result.steps, result.images, len(result.rates)) == (2 * steps, 2 * sum(CLIENTS["2"][1]), 2 * steps)


@pytest.mark.parametrize(("head", "body"), [(2, 1), (1, 2)])
def test_fedrep_trains_head_and_body_for_as_many_epochs_as_its_fields_say(head: int, body: int) -> None:
    detector, epoch = small(INITIAL), batches_of("2", 1)[: len(CLIENTS["2"][1])]
    training = TRAINING.model_copy(update={"local_epochs": head + body})
    modes: list[bool] = []
    detector.body.register_forward_pre_hook(lambda *_: modes.append(detector.norm.training))
    one = LocalTurn("2", detector, training, lambda: epoch * (head + body), 7, 0.05, 0, model=INITIAL)
    result = FedRep(FedRepSpec(head_epochs=head, body_epochs=body), training).train(one).result
    assert modes == [False] * head * len(epoch) + [True] * body * len(epoch)
    assert result.steps == len(modes)


def test_ditto_shares_the_bits_of_fedavg() -> None:
    ditto, average = Federation(Ditto(DittoSpec(), TRAINING)), Federation(FedAvg(FedAvgSpec(), TRAINING))
    for clients in ((), ("1", "3"), ()):
        ditto.round(*clients)
        average.round(*clients)
        assert_same_bits(ditto.x, average.x)
    assert [one.result.loss for one in ditto.outcomes] == [one.result.loss for one in average.outcomes]


def test_ditto_without_proximity_has_the_bits_of_training_alone() -> None:
    federation = Federation(Ditto(DittoSpec(proximity=0), TRAINING))
    alone = dict.fromkeys(CLIENTS, INITIAL)
    for number in (1, 2, 3):
        federation.round()
        for client in CLIENTS:
            alone[client] = locally("ditto", client, number, alone[client])
            assert_same_bits(federation.own_model(client), alone[client])


def test_a_client_first_drawn_in_round_three_begins_with_the_initial_model() -> None:
    federation = Federation(Ditto(DittoSpec(proximity=0), TRAINING))
    federation.round("1")
    federation.round("1", "2")
    federation.round("3")
    assert_same_bits(federation.own_model("3"), locally("ditto", "3", 3, INITIAL))
    with pytest.raises(ClientError, match="client 3: its state: expected a model of its own, found none"):
        federation.strategy.train(turn("3", 4, federation.x, {}))


def test_ditto_is_held_near_the_global_model_that_a_turn_starts_from() -> None:
    """One SGD step: ``v - η (∇F(v) + λ (v - x))``, with the gradient at ``v``."""
    x, v = copied(INITIAL), {name: tensor + 1 for name, tensor in INITIAL.items()}
    v["norm.num_batches_tracked"] = INITIAL["norm.num_batches_tracked"].clone()
    training = TRAINING.model_copy(
        update={"optimizer": FederationSpec.model_validate({"training": {"optimizer": {"kind": "sgd", "momentum": 0,
                "weight_decay": 0}}}).training.optimizer}
    )  # fmt: skip
    batches = batches_of("3", 1)[:1]
    models = {}
    for proximity in (0.0, 0.5):
        one = LocalTurn("3", small(x), training, lambda: batches, 7, 0.1, 0, model=x, own=v)
        models[proximity] = Ditto(DittoSpec(proximity=proximity), training).train(one).own
    for name in ("body.weight", "head.bias", "scale"):
        expected = models[0.0][name] - 0.1 * 0.5 * (v[name] - x[name])  # type: ignore[index]
        torch.testing.assert_close(models[0.5][name], expected)  # type: ignore[index]


def test_proximity_matters_and_a_large_one_holds() -> None:
    distances = []
    for proximity in (0.0, 0.1, 2.0):
        federation = Federation(Ditto(DittoSpec(proximity=proximity), TRAINING.model_copy(update={"optimizer": SGD})))
        for _ in range(4):
            federation.round()
        own = federation.own_model("2")
        distances.append(float(sum((own[name] - federation.x[name]).square().sum() for name in ("body.weight",))))
    assert distances[0] > distances[1] > distances[2] > 0


SGD = FederationSpec.model_validate(
    {"training": {"optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0, "weight_decay": 0}}}
).training.optimizer


@pytest.mark.parametrize("kind", [*SPECS, "ditto"])
def test_a_state_of_another_detector_is_refused(kind: str) -> None:
    federation = Federation(Ditto(DittoSpec(), TRAINING) if kind == "ditto" else CLASSES[kind](SPECS[kind], TRAINING))
    federation.round()
    own = federation.own["1"]
    missing = min(own)
    with pytest.raises(ClientError, match=f"client 1: its state: tensor {missing}: expected it, found none"):
        federation.strategy.train(turn("1", 2, federation.x, {n: t for n, t in own.items() if n != missing}))
    with pytest.raises(ClientError, match="client 1: its state: tensor zz: expected no such tensor, found one"):
        federation.strategy.train(turn("1", 2, federation.x, own | {"zz": torch.zeros(1)}))


# Tensors of each detector's head.
HEADS = {
    "yolov3": {"layers.81", "layers.93", "layers.105"},
    "yolov3-tiny": {"layers.15", "layers.22"},
    "fcos-lite0": {"class_output", "box_output"},
    "faster-rcnn": {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
}


@pytest.mark.parametrize("kind", TINY)
def test_every_detector_names_its_head_and_its_normalisation(kind: str) -> None:
    detector = build_detector(TINY[kind], 3, seed=1)
    roles = tensor_roles(detector)
    layers = HEADS[kind if kind in HEADS else "faster-rcnn"]
    assert {name for name, role in roles.items() if role.head} == {
        f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")
    }
    assert not any(role.head and role.normalisation for role in roles.values())
    for name, role in roles.items():
        if "running" in name or role.kind == "counter":
            assert role.normalisation, name
    assert any(role.normalisation for role in roles.values()) == ("vgg16" not in kind)
    fedbn = FedBN(FedBNSpec(), TRAINING)
    if "vgg16" in kind:
        with pytest.raises(FedbenchError, match=r"strategy\.kind fedbn: expected a detector with trained tensors"):
            fedbn.local_names(roles)
    else:
        assert fedbn.local_names(roles)


def test_a_detector_without_a_named_head_is_refused() -> None:
    roles = {name: tensor for name, tensor in tensor_roles(small()).items() if not tensor.head}
    with pytest.raises(FedbenchError, match=r"strategy\.kind fedper: .* trained tensors of its head, .* found none"):
        FedPer(FedPerSpec(), TRAINING).local_names(roles)


COCO = {"detector.weights": {"kind": "torchvision-hub"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"strategy.kind": "fedbn", "detector.kind": "faster-rcnn-vgg16"},
            "strategy.kind fedbn: expected a detector with normalisation layers, found detector.kind faster-rcnn-vgg16",
        ),
        (
            {
                "strategy.kind": "fedbn",
                "detector.kind": "faster-rcnn-resnet50-fpn",
                "detector.norm": "frozen-batch-norm",
                **COCO,
            },
            "expected a detector with trained normalisation layers, found detector.norm frozen-batch-norm",
        ),
        (
            {
                "strategy.kind": "fedbn",
                "detector.kind": "faster-rcnn-mobilenetv3-320-fpn",
                "detector.norm": "batch-norm",
                "detector.frozen_layers": 6,
                **COCO,
            },
            "expected a detector with trained normalisation layers, found detector.frozen_layers 6",
        ),
        (
            {"strategy.kind": "fedrep"},
            "strategy.head_epochs 1 and strategy.body_epochs 1: expected a sum of training.local_epochs, found 1",
        ),
        (
            {"strategy.kind": "fedper", "participation.partial_sums": True},
            "participation.partial_sums: expected a strategy that adds updates only, found strategy.kind fedper",
        ),
        (
            {"strategy.kind": "ditto", "participation.partial_sums": True},
            "participation.partial_sums: expected a strategy that adds updates only, found strategy.kind ditto",
        ),
    ],
)
def test_a_refusal_prints_the_options_that_make_it_run(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        with_fields(FederationSpec(), fields, source="-s")
    assert message in str(error.value)
    options = {name: yaml.safe_load(value) for name, value in re.findall(r"-s (\S+)=(\S+)", str(error.value))}
    assert options
    with_fields(FederationSpec(), fields | options, source="-s")
