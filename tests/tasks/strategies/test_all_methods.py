"""What holds for every additive method: finite, the same bits again, buffers by FedAvg, and bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.data.batches import Batch
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.roles import TensorRole, tensor_roles
from tasks.detectors.state import is_finite, state_of
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import AnyStrategy, FedAvgSpec, StrategySpec
from tasks.strategies.base import ServerRound
from tasks.strategies.registry import build_strategy
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.tensor_file import TensorFile
from tests.tasks.detectors.tiny_detectors import noise
from tests.tasks.strategies.small_federation import (
    COLOURS,
    PLAIN,
    Federation,
    Small,
    State,
    bits,
    copied,
    mapped,
    serve,
    written,
)

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = [spec for spec in get_args(AnyStrategy) if spec.additive]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.model_fields["kind"].default))


def other(spec: StrategySpec) -> Any:
    """Return the method with another value of its first number, or with other weights if it has none."""
    for name, value in spec:
        if isinstance(value, float):
            return spec.model_copy(update={name: value / 2})
    return spec.model_copy(update={"weights": "uniform"})


@every_kind
def test_three_rounds_are_finite_and_give_the_same_bits_again(kind: type[Any]) -> None:
    found = []
    for _ in range(2):
        federation = Federation(kind(), Small(), COLOURS, lr=0.1)
        rounds = []
        for _ in range(3):
            federation.round()
            states = [federation.model, federation.server, federation.shared, *federation.states.values()]
            assert all(is_finite(state) for state in states)
            rounds.append([bits(state) for state in states])
        found.append(rounds)
    assert found[0] == found[1]
    start = Small().state_dict()
    for name in ("frozen.weight", "frozen.bias", "idle"):
        assert torch.equal(federation.model[name], start[name]), name


@every_kind
def test_another_value_of_its_first_field_gives_another_model(kind: type[Any]) -> None:
    first, second = (Federation(spec, Small(), COLOURS, lr=0.1) for spec in (kind(), other(kind())))
    for federation in (first, second):
        for _ in range(2):
            federation.round()
    assert bits(first.model) != bits(second.model)


@every_kind
def test_buffers_are_the_mean_by_the_methods_weights_and_counters_the_maximum(kind: type[Any]) -> None:
    updates: dict[str, State] = {}
    federation = Federation(
        kind(),
        Small(),
        COLOURS,
        lr=0.1,
        change=lambda client, outcome: updates.update({client: copied(outcome.state)}),
    )
    uniform = kind().kind in ("scaffold", "fedexp", "feddyn")
    for number in range(1, 4):
        start = federation.model
        federation.round()
        weights = [1.0, 1.0, 1.0] if uniform else [8.0, 18.0, 7.0]
        mean = serve(FedAvgSpec(), start, list(updates.values()), weights=weights).model
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert torch.equal(federation.model[name], mean[name]), name
        assert int(federation.model["norm.num_batches_tracked"]) == 5 * number
        assert federation.model["norm.num_batches_tracked"].dtype == torch.int64


def noisy(client: int) -> list[Batch]:
    """Return one batch of two images of noise with an object each for client 1, and two batches for client 2."""
    box, label = torch.tensor([[5.0, 10, 37, 42]]), torch.tensor([client])
    return [Batch(noise(2, seed=client + 10 * number), [box] * 2, [label] * 2, [0, 1]) for number in range(client)]


@pytest.fixture(scope="module")
def yolo() -> tuple[Detector, State]:
    """Return a YOLOv3-tiny and its initial state."""
    detector = build_detector(YoloV3TinySpec(width=64, height=64), 3, seed=1)
    return detector, copied(state_of(detector))


@every_kind
def test_a_round_of_yolov3_tiny(kind: type[Any], yolo: tuple[Detector, State]) -> None:
    """One round is finite, changes parameters, and keeps variances positive; two runs give the same bits."""
    detector, start = yolo
    found = []
    for _ in range(2):
        detector.load_state_dict(start)
        federation = Federation(kind(), detector, {"1": noisy(1), "2": noisy(2)}, lr=1e-3)
        federation.round()
        assert is_finite(federation.model)
        assert federation.model.keys() == start.keys()
        for name, role in tensor_roles(detector).items():
            assert federation.model[name].dtype == start[name].dtype
            if role.kind == "parameter" and name.endswith(".weight"):
                assert not torch.equal(federation.model[name], start[name]), name
            if name.endswith("running_var"):
                assert float(federation.model[name].min()) > 0
        found.append([federation.model, federation.server, federation.shared, *federation.states.values()])
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


# --- the server's memory -----------------------------------------------------------------------------------


# Models that the server holds at most: the weighted means and the new states, and FedAdam's step of one tensor.
MODELS = {
    "fedavg": 1, "fedprox": 1, "fedsam": 1, "fedexp": 1, "fednova": 2, "fedavgm": 2, "feddyn": 2, "scaffold": 2,
    "fedadagrad": 3, "fedadam": 3, "fedyogi": 3,
}  # fmt: skip
TENSORS, SIZE = 80, 5000


class Held(TorchDispatchMode):
    """Measures the bytes of tensors that operations have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._keep(tensor)
        return result

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.bytes:
            self.bytes[key] = storage.nbytes()
            self.most = max(self.most, sum(self.bytes.values()))
            weakref.finalize(storage, self.bytes.pop, key, None)


@pytest.fixture
def updates(tmp_path: Path) -> dict[str, Path]:
    """Return the files of a model of many equal tensors, and of three updates of it."""
    generator = torch.Generator().manual_seed(1)
    files = {}
    for client in ("start", "1", "2", "3"):
        state = {f"layer.{number}": torch.randn(SIZE, generator=generator) for number in range(TENSORS)}
        files[client] = written(state, tmp_path / client)
    return files


@every_kind
def test_the_servers_memory_is_a_few_models(kind: type[Any], updates: Mapping[str, Path], tmp_path: Path) -> None:
    """Besides, there are only temporary tensors of the size of a layer. More updates would take no more."""
    method = build_strategy(FederationSpec(strategy=kind(), training=PLAIN))
    roles = {name: TensorRole("parameter", 1.0) for name in TensorFile(updates["start"])}
    server: State = {}
    shared: State = {}
    for _ in range(2):
        last = ServerRound(
            start=TensorFile(updates["start"]),
            clients=3,
            roles_of=lambda: roles,
            server=mapped(server, tmp_path / "server"),
            shared=mapped(shared, tmp_path / "shared"),
        )
        held = Held()
        with held:
            sums = Sums(method)
            for number in ("1", "2", "3"):
                figures = {name: float(number) for name in method.figures}
                sums.accumulate(updates[number], [Counted(number, float(number), figures)])
            result = method.new_model(sums, last)
        server, shared = copied(result.server or {}), copied(result.shared or {})
        assert held.most / (4 * SIZE * TENSORS) == pytest.approx(MODELS[kind().kind], abs=10 / TENSORS)
