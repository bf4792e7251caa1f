"""The checks of turns on a GPU. They need the learning core alone; one also runs the program where it is installed.

A check is a function of the device and an empty folder. It raises AssertionError, or :class:`Skipped`. Those that are
marked ``anywhere`` also run on a CPU, so that their own code can be tried without a GPU.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.data.augment import change_pixels, draw
from tasks.data.augment_batch import apply_to_batch
from tasks.data.batches import Batch, Batches
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader, training_loader
from tasks.detectors.base import Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.errors import ClientError
from tasks.spec.federation import FederationSpec
from tasks.spec.training import Augmentation
from tasks.strategies.registry import build_strategy
from tasks.training.evaluation import evaluate
from tasks.training.local import train
from tasks.training.optimizers import build_optimizer
from tasks.training.turn import LocalOutcome, LocalTurn, give_back, train_turn, training_batches
from tests.gpu.scenes import CLASSES, DETECTORS, SIDE, samples_in, turn_spec

ROOT = Path(__file__).resolve().parents[2]
LR = 1e-3
# Detectors in whose steps the host never waits for the GPU, and variants of their losses.
WITHOUT_WAITING: dict[str, dict[str, Any]] = {
    "fcos-lite0": {},
    "yolov3": {"assignment": "best-prior", "box_loss": "squared-error"},
    "yolov3-tiny": {"assignment": "side-ratio", "box_loss": "ciou"},
}


class Skipped(Exception):
    """The check cannot run here; the message says why."""


@dataclass(frozen=True)
class Check:
    """A check, its name, and whether it also runs on a CPU."""

    name: str
    run: Callable[[str, Path], None]
    anywhere: bool


CHECKS: list[Check] = []


def check(*, anywhere: bool = False, **cases: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the function to the checks, once for each combination of ``cases``."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for values in itertools.product(*cases.values()):
            chosen = dict(zip(cases, values, strict=True))
            words = ", ".join(str(value) if isinstance(value, str) else f"{k}={value}" for k, value in chosen.items())
            name = function.__name__ + (f"[{words}]" if words else "")
            CHECKS.append(Check(name, functools.partial(function, **chosen), anywhere))
        return function

    return add


def spec_of(kind: str, device: str, *, amp: bool = False, strategy: Any = None, **training: Any) -> FederationSpec:
    """Return the specification of a small turn. On a CPU, mixed precision is set past the specification's check."""
    spec = turn_spec(kind, device=device, training=training, strategy=strategy)
    return spec.model_copy(update={"training": spec.training.model_copy(update={"amp": amp})})


def take_turn(
    spec: FederationSpec, folder: Path, *, images: int = 12, held: bool = True, states: Mapping[str, Any] | None = None
) -> LocalOutcome:
    """Return the outcome of a turn from the seed's weights. held: whether images stay on the device."""
    device = spec.training.device
    samples = samples_in(folder, images)
    detector = build_detector(spec.detector, CLASSES, seed=1)
    model = {name: tensor.clone() for name, tensor in state_of(detector).items()}
    cache = ImageCache(50)
    on_device = None
    if held:
        on_device = DeviceImages(cache, torch.device(device), None if device == "cuda" else 50_000_000)
    outcome = train_turn(
        build_strategy(spec),
        spec,
        samples,
        detector,
        cache,
        client="1",
        round=2,
        seed=7,
        learning_rate=LR,
        model=model,
        on_device=on_device,
        **(states or {}),
    )
    assert math.isfinite(outcome.result.loss)
    assert outcome.result.images == images * spec.training.local_epochs
    assert len(outcome.result.rates) == outcome.result.steps
    assert all(
        tensor.device.type == "cpu" and tensor.dtype == model[name].dtype for name, tensor in outcome.state.items()
    )
    assert any(not torch.equal(outcome.state[name], model[name]) for name in outcome.state)
    return outcome


def truth() -> Targets:
    """Return the objects of three images of ``SIDE`` pixels: two, none and one."""
    boxes = torch.tensor([[5.0, 10, 37, 42], [26, 20, 60, 54]])
    labels = torch.tensor([0, 2])
    return Targets([boxes, boxes[:0], boxes[:1]], [labels, labels[:0], labels[:1]])


def noise(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)


@contextmanager
def exact() -> Iterator[None]:
    """Compute convolutions and products in float32, without TensorFloat-32, in this block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def terms_on(kind: str, device: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the terms of the loss of one batch on ``device``, and the gradients of their sum."""
    place = torch.device(device)
    spec = turn_spec(kind, device="cpu")
    detector = build_detector(spec.detector, CLASSES, seed=1).to(place).train(not kind.startswith("faster"))
    targets = truth().to(place) if place.type == "cuda" else truth().moved(place)
    terms = detector.loss(detector(noise(3).to(place)), targets)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {
        name: parameter.grad.cpu() for name, parameter in detector.named_parameters() if parameter.grad is not None
    }
    return {name: float(term.detach()) for name, term in terms.items()}, gradients


@check(anywhere=True, kind=list(DETECTORS))
def loss_equals_the_cpus(device: str, folder: Path, kind: str) -> None:
    """The proposals of Faster R-CNN, drawn from nearly equal scores, may differ; only the terms of its RPN must not."""
    with exact():
        expected, slopes = terms_on(kind, "cpu")
        found, gradients = terms_on(kind, device)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isfinite(found[name])
        if not kind.startswith("faster") or name in ("objectness", "rpn_box"):
            assert abs(found[name] - value) <= 1e-3 * abs(value) + 1e-5, (name, found[name], value)
    if not kind.startswith("faster"):
        one, other = (torch.cat([grads[name].flatten() for name in slopes]) for grads in (slopes, gradients))
        similarity = float(nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
        assert similarity > 0.999, similarity


@check(anywhere=True, kind=list(DETECTORS), amp=[False, True])
def a_turn_trains(device: str, folder: Path, kind: str, amp: bool) -> None:
    take_turn(spec_of(kind, device, amp=amp), folder)


@check(anywhere=True, kind=list(WITHOUT_WAITING))
def amp_computes_in_bfloat16(device: str, folder: Path, kind: str) -> None:
    spec = spec_of(kind, device, amp=True)
    seen: set[torch.dtype] = set()
    detector = build_detector(spec.detector, CLASSES, seed=1)
    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    losses = []
    for amp in (False, True):
        seen.clear()
        training = spec.training.model_copy(update={"amp": amp})
        detector.load_state_dict(build_detector(spec.detector, CLASSES, seed=1).state_dict())
        batch = Batch(noise(3), truth().boxes, truth().labels, [0, 1, 2])
        losses.append(train(detector, [batch], training, lr=LR, warmup_steps=0, seed=1, client="1").loss)
        assert seen == {torch.bfloat16 if amp else torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in detector.parameters())
    assert abs(losses[1] - losses[0]) <= 0.05 * losses[0], losses


@check(anywhere=True, kind=["yolov3-tiny", "fcos-lite0", "faster-rcnn-mobilenetv3-320-fpn"], amp=[False, True])
def a_turn_trains_at_several_scales(device: str, folder: Path, kind: str, amp: bool) -> None:
    take_turn(spec_of(kind, device, amp=amp, multi_scale=(64, 128), batch_size=1), folder, images=24)


@check(anywhere=True, optimizer=["sgd", "adam", "adamw"])
def the_optimiser_is_fused_on_a_gpu(device: str, folder: Path, optimizer: str) -> None:
    spec = spec_of("yolov3-tiny", device, optimizer={"kind": optimizer, "lr": LR})
    detector = build_detector(spec.detector, CLASSES, seed=1).to(device)
    assert bool(build_optimizer(detector, spec.training.optimizer, LR).defaults["fused"]) is (device == "cuda")
    take_turn(spec, folder)


@check(anywhere=True)
def a_loss_that_is_not_finite_is_reported_with_its_batch(device: str, folder: Path) -> None:
    spec = spec_of("fcos-lite0", device)
    detector = build_detector(spec.detector, CLASSES, seed=1)
    good = Batch(noise(2), truth().boxes[:2], truth().labels[:2], [0, 1])
    batches = iter([good, good, good, good])

    def spoiled() -> Iterator[Batch]:
        for number, batch in enumerate(batches, 1):
            if number == 3:
                with torch.no_grad():
                    detector.class_output.bias.fill_(math.nan)  # type: ignore[union-attr, operator]
            yield batch

    reported = ""
    try:
        train(detector, spoiled(), spec.training, lr=LR, warmup_steps=0, seed=1, client="7")
    except ClientError as error:
        reported = str(error)
    assert reported == "client 7: training loss is nan at batch 3", reported


class Watched:
    """Batches in whose steps, after the first two, the host must not wait for the GPU: torch raises an error."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        try:
            for number, batch in enumerate(self._batches):
                if number == 2:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")


def watched_turn(spec: FederationSpec, folder: Path, *, held: bool) -> None:
    """Take a turn in whose steps the host must not wait. Methods with states get some."""
    samples = samples_in(folder, 24)
    detector = build_detector(spec.detector, CLASSES, seed=1)
    model = {name: tensor.clone() for name, tensor in state_of(detector).items()}
    cache = ImageCache(50)
    on_device = DeviceImages(cache, torch.device(spec.training.device), 50_000_000) if held else None
    method = build_strategy(spec)
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    drift = {name: 1e-3 * torch.ones_like(model[name]) for name in trained}
    has_states = spec.strategy.kind in ("scaffold", "feddyn")
    turn = LocalTurn(
        "1",
        detector,
        spec.training,
        lambda: Watched(training_batches(cache, spec, samples, round=2, client="1", on_device=on_device)),
        seed=7,
        learning_rate=LR,
        warmup_steps=3,
        model=model,
        shared=drift if spec.strategy.kind == "scaffold" else {},
        own=drift if has_states else {},
    )
    try:
        outcome = method.train(turn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.result.steps >= 5


@check(kind=list(WITHOUT_WAITING), amp=[False, True], held=[True, False])
def the_host_waits_in_no_step(device: str, folder: Path, kind: str, amp: bool, held: bool) -> None:
    spec = spec_of(kind, device, amp=amp)
    fields = spec.detector.model_copy(update=WITHOUT_WAITING[kind])
    watched_turn(spec.model_copy(update={"detector": fields}), folder, held=held)


@check(kind=["fcos-lite0", "yolov3-tiny"], method=["fedprox", "scaffold", "feddyn", "fedsam"])
def the_host_waits_in_no_step_of_a_method(device: str, folder: Path, kind: str, method: str) -> None:
    strategies: dict[str, dict[str, Any]] = {"fedprox": {"mu": 0.1}, "fedsam": {"rho": 0.05}}
    fields = {"kind": method, **strategies.get(method, {})}
    training: dict[str, Any] = {}
    if method == "scaffold":
        training = {"optimizer": {"kind": "sgd", "lr": LR, "momentum": 0}, "clip_norm": None}
    spec = spec_of(kind, device, **training)
    strategy = turn_spec(kind, device=device, training=training, strategy=fields).strategy
    watched_turn(spec.model_copy(update={"strategy": strategy}), folder, held=True)


@check(kind=["fcos-lite0", "yolov3-tiny"])
def the_host_waits_in_no_step_at_several_scales(device: str, folder: Path, kind: str) -> None:
    watched_turn(spec_of(kind, device, multi_scale=(64, 128), accumulate=2, batch_size=2), folder, held=True)


@check(kind=["faster-rcnn-mobilenetv3-320-fpn"])
def waiting_is_noticed(device: str, folder: Path, kind: str) -> None:
    """Faster R-CNN's steps wait, so the checks above can fail."""
    noticed = ""
    try:
        watched_turn(spec_of(kind, device), folder, held=True)
    except RuntimeError as error:
        noticed = str(error)
    assert "synchroniz" in noticed, noticed


@check(anywhere=True)
def augmentation_equals_the_cpus(device: str, folder: Path) -> None:
    """Pixels are close, and objects are the same."""
    import numpy as np

    samples = samples_in(folder, 24, width=160, height=120)
    images = torch.stack([torch.from_numpy(ImageCache(0).get(one, width=160, height=120)) for one in samples])
    draws = [draw(Augmentation(), np.random.default_rng(number)) for number in range(len(samples))]
    found = apply_to_batch(images.to(device), draws).cpu()
    expected = torch.stack([change_pixels(image, one) for image, one in zip(images, draws, strict=True)])
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 5, difference.max()
    assert difference.float().mean() < 0.2, difference.float().mean()

    def batches(held: bool) -> Batches:
        cache = ImageCache(0)
        on_device = DeviceImages(cache, torch.device(device), 50_000_000) if held else None
        options: dict[str, Any] = {"width": 64, "height": 64, "batch_size": 5, "epochs": 2, "seed": 1, "round": 1}
        options |= {"client": "1", "augmentation": Augmentation(), "workers": 0, "cache": cache}
        return training_loader(samples, **options, on_device=on_device)

    for one, other in zip(batches(False), batches(True), strict=True):
        assert one.indices == other.indices
        assert other.images.device.type == device
        for first, second in ((one.boxes, other.boxes), (one.labels, other.labels)):
            assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        assert (one.images.int() - other.images.cpu().int()).abs().max() <= 5


@check(anywhere=True)
def held_and_loaded_images_train_alike(device: str, folder: Path) -> None:
    spec = spec_of("fcos-lite0", device, loader_workers=2)
    losses = [take_turn(spec, folder, images=24, held=held).result.loss for held in (True, False)]
    assert abs(losses[0] - losses[1]) <= 0.02 * losses[1], losses


@check(anywhere=True, kind=list(DETECTORS))
def evaluation_equals_the_cpus(device: str, folder: Path, kind: str) -> None:
    spec = turn_spec(kind, device="cpu")
    samples = samples_in(folder, 70)
    detector = build_detector(spec.detector, CLASSES, seed=1)
    size: dict[str, Any] = {"width": SIDE, "height": SIDE, "batch_size": spec.evaluation.batch_on("cuda")}
    found = []
    with exact():
        for place in ("cpu", device):
            held = DeviceImages(ImageCache(0), torch.device(place), 50_000_000)
            loader = EvaluationLoader(samples, **size, cache=ImageCache(0), on_device=held)
            found.append(evaluate(detector, loader, samples, spec.evaluation, device=place))
    cpu, other = found
    assert cpu.images == other.images == 70
    assert len(other.batch_losses) == 2
    assert cpu.detections.keys() == other.detections.keys()
    assert all(item.boxes.dtype == item.scores.dtype == "float32" for item in other.detections.values())
    if not kind.startswith("faster"):  # see loss_equals_the_cpus
        one, two = math.fsum(cpu.batch_losses), math.fsum(other.batch_losses)
        assert abs(one - two) <= 1e-3 * abs(one), (one, two)


@check()
def memory_is_given_back_after_a_turn(device: str, folder: Path) -> None:
    spec = spec_of("yolov3", device)
    left = []
    for _ in range(3):
        take_turn(spec, folder)
        gc.collect()
        give_back(device)
        left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert left[1][0] == left[2][0], left
    assert left[2][0] <= left[0][0] + 1_000_000, left
    assert left[2][1] <= left[2][0] + 64_000_000, left  # nothing but blocks that are in use


IN_A_PROCESS = """
import sys
from pathlib import Path
from tests.gpu.checks import spec_of, take_turn
print(take_turn(spec_of("fcos-lite0", sys.argv[1]), Path(sys.argv[2]), images=40).result.loss)
"""


@check(anywhere=True)
def two_processes_share_the_device(device: str, folder: Path) -> None:
    """Two turns at the same time give what each gives alone, nearly."""
    processes = []
    for number in range(2):
        own = folder / str(number)
        own.mkdir()
        command = [sys.executable, "-c", IN_A_PROCESS, device, str(own)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True))
    losses = [float(process.communicate(timeout=300)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    alone = take_turn(spec_of("fcos-lite0", device), folder, images=40).result.loss
    assert all(abs(loss - alone) <= 0.02 * alone for loss in losses), (losses, alone)


BEFORE_A_FORK = """
import os, sys
from pathlib import Path
import torch
from tests.gpu.checks import spec_of, take_turn
assert not torch.cuda.is_initialized(), "importing initialised CUDA"
number = os.fork()
if number == 0:
    take_turn(spec_of("fcos-lite0", "cuda"), Path(sys.argv[1]))
    os._exit(0)
assert os.waitpid(number, 0)[1] == 0, "a child could not use the GPU"
assert not torch.cuda.is_initialized()
torch.zeros(1, device="cuda")
number = os.fork()
if number == 0:
    try:
        torch.zeros(1, device="cuda")
    except RuntimeError as error:
        os._exit(0 if "fork" in str(error) else 2)
    os._exit(3)
assert os.waitpid(number, 0)[1] == 0, "CUDA before the fork did not keep the child from it"
"""


@check()
def cuda_is_forbidden_before_the_fork(device: str, folder: Path) -> None:
    """Imports leave CUDA alone, so that a forked child can use it. After a call in the parent, no child can."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_A_FORK, str(folder)],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@check(anywhere=True)
def a_run_takes_turns_in_two_slots(device: str, folder: Path) -> None:
    missing = [name for name in ("prefect", "mlflow", "boto3", "typer") if find_spec(name) is None]
    if missing:
        raise Skipped(f"needs {', '.join(missing)}")
    command = [sys.executable, "-m", "flows.cli", "run", "smoke", "--name", "two", "--slots", "2", "--max-rounds", "1"]
    done = subprocess.run(
        [*command, "-s", f"training.device={device}", "--quiet"],
        cwd=ROOT,
        env={**_environment(), "FEDBENCH_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
