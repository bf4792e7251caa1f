"""Images per second of turns on a GPU, against a bare loop and torchvision's reference recipe. Needs the core alone.

    python -m tests.benchmarks.bench_gpu --street FOLDER                 # on the GPU, at most 480 seconds
    python -m tests.benchmarks.bench_gpu --street FOLDER --out lines.jsonl
    python -m tests.benchmarks.bench_gpu --device cpu --tiny             # tries the program in seconds

Each line is printed, and written to ``--out``, as soon as it is measured, the most important ones first and compilation
last. A figure takes five seconds after its warm-up. FOLDER holds Federated Street in its published form.

- ``turn``: a client's turn as in a federation: images on the GPU, augmentation, loss, clipping, fused optimiser.
- ``bare``: the plainest loop over one batch that is on the GPU already; what the network alone costs.
- ``recipe``: the loop of torchvision's ``references/detection``: a loader with processes that decode each image from
  its file, flips, SGD, float16 with scaled losses for AMP, and the loss read in each step. The detectors are ours.
- ``torchvision``: that loop over torchvision's own ``fasterrcnn_resnet50_fpn``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from tasks.data.batches import Batch
from tasks.data.catalog import load_data
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader, training_loader
from tasks.data.samples import FederatedData, ImageSample, samples_digest
from tasks.detectors.base import Detector, Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.models.evaluate import evaluation_sets, score_sets
from tasks.spec.data import FederatedStreet
from tasks.spec.detector import DetectorSpec, FcosLite0Spec, RandomWeights, YoloV3Spec, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnResNet50Spec
from tasks.spec.federation import FederationSpec
from tasks.spec.training import AdamW, Augmentation, TrainingSpec
from tasks.strategies.mean import WeightedMean
from tasks.strategies.registry import build_strategy
from tasks.training.evaluation import evaluate
from tasks.training.local import train
from tasks.training.optimizers import build_optimizer
from tasks.training.targets import targets_of
from tasks.training.turn import give_back, train_turn, training_batches

LR = 1e-4
CLIENT = "bench"
# The images that turns are measured with, at most: a multiple of the batch sizes, so that compilation sees one shape.
IMAGES = 384


@dataclass(frozen=True)
class Size:
    """How much is measured. detectors: with the batch size of a turn. left: seconds that compilation must have left."""

    detectors: dict[str, tuple[DetectorSpec, int]]
    seconds: float
    warm: int
    rounds: int
    left: float
    backend: str


FULL = Size(
    {
        "yolov3": (YoloV3Spec(width=416, height=416), 16),
        "fcos-lite0": (FcosLite0Spec(weights=RandomWeights(), frozen_blocks=0), 32),
        "faster-rcnn-resnet50-fpn": (FasterRcnnResNet50Spec(), 8),
    },
    seconds=5,
    warm=6,
    rounds=8,
    left=70,
    backend="inductor",
)
_SMALL = {"width": 64, "height": 64}
TINY = Size(
    {
        "yolov3": (YoloV3TinySpec(**_SMALL), 2),
        "fcos-lite0": (FcosLite0Spec(**_SMALL, weights=RandomWeights(), frozen_blocks=0), 2),
        "faster-rcnn-resnet50-fpn": (
            FasterRcnnMobileNetV3Spec(**_SMALL, train_proposals=20, test_proposals=10, sampled_proposals=8),
            2,
        ),
    },
    seconds=0.05,
    warm=1,
    rounds=1,
    left=0,
    backend="eager",
)


@dataclass
class Bench:
    """The data, and where lines go.

    deadline: of the clock; no figure starts after it. failures: figures that raised an error.
    """

    size: Size
    device: str
    data: FederatedData
    deadline: float
    out: TextIO | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0

    def __post_init__(self) -> None:
        self.samples = list(itertools.chain(*self.data.train.values()))[:IMAGES]
        self.cache = ImageCache(4000)
        self.on_device = DeviceImages(self.cache, torch.device(self.device), None if self.device == "cuda" else 10**8)

    @property
    def classes(self) -> int:
        return len(self.data.classes)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def write(self, **fields: Any) -> None:
        line = {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}
        self.lines.append(line)
        for file in (sys.stdout, self.out):
            if file is not None:
                print(json.dumps(line), file=file, flush=True)

    def spec(self, kind: str, amp: bool) -> FederationSpec:
        """Return the specification of the turns of ``kind``. On a CPU, AMP is set past the specification's check."""
        detector, batch_size = self.size.detectors[kind]
        training = TrainingSpec(batch_size=batch_size, optimizer=AdamW(lr=LR), device=self.device)
        spec = FederationSpec(detector=detector, training=training)
        return spec.model_copy(update={"training": training.model_copy(update={"amp": amp})})

    def detector(self, kind: str) -> Detector:
        return build_detector(self.size.detectors[kind][0], self.classes, seed=1)


class Timed:
    """Batches until ``seconds`` after ``warm`` batches, and the clock of what is done with them."""

    def __init__(self, bench: Bench, batches: Iterable[Batch]) -> None:
        self._bench, self._batches = bench, batches
        self.images, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[Batch]:
        size, started = self._bench.size, 0.0
        for number, batch in enumerate(self._batches):
            if number == size.warm:
                _wait(self._bench.device)
                started = time.perf_counter()
            elif number > size.warm and time.perf_counter() - started >= size.seconds:
                break
            if number >= size.warm:
                self.images += len(batch.indices)
            yield batch
        _wait(self._bench.device)
        self.seconds = time.perf_counter() - started

    @property
    def rate(self) -> float:
        return self.images / self.seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def endless(make: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
    """Yield the batches of ``make(1)``, ``make(2)``, …"""
    for number in itertools.count(1):
        yield from make(number)


def turn_batches(bench: Bench, spec: FederationSpec) -> Iterator[Batch]:
    return endless(
        lambda number: training_batches(
            bench.cache, spec, bench.samples, round=number, client=CLIENT, on_device=bench.on_device
        )
    )


def turn(bench: Bench, kind: str, amp: bool, change: Callable[[Detector], None] = lambda detector: None) -> float:
    """Return images per second of a turn's training. change: made to the detector before."""
    spec, detector = bench.spec(kind, amp), bench.detector(kind).to(bench.device)
    change(detector)
    batches = Timed(bench, turn_batches(bench, spec))
    train(detector, batches, spec.training, lr=LR, warmup_steps=0, seed=1, client=CLIENT)
    return batches.rate


def bare(bench: Bench, kind: str, amp: bool, change: Callable[[Detector], None] = lambda detector: None) -> float:
    """Return images per second of the plainest loop over one batch."""
    spec, detector = bench.spec(kind, amp), bench.detector(kind).to(bench.device).train()
    change(detector)
    optimizer = build_optimizer(detector, spec.training.optimizer, LR)
    batch = next(turn_batches(bench, spec))
    images, targets = batch.images.to(bench.device), targets_of(batch).to(torch.device(bench.device))
    batches = Timed(bench, itertools.repeat(batch))
    for _ in batches:
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=amp):
            outputs = detector(images)
        loss = torch.stack(list(detector.loss(outputs, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batches.rate


def recipe_batches(bench: Bench, spec: FederationSpec) -> Iterable[Batch]:
    """Return batches of many epochs in a row, so that the loader's processes start once."""
    workers = 0 if bench.device == "cpu" else min(8, os.cpu_count() or 1)
    return training_loader(
        bench.samples,
        width=spec.detector.width,
        height=spec.detector.height,
        batch_size=spec.training.batch_size,
        epochs=1000,
        seed=1,
        round=1,
        client=CLIENT,
        augmentation=Augmentation(scale=0, translate=0, color=0),
        workers=workers,
        cache=ImageCache(0),
    )


def recipe(bench: Bench, kind: str, amp: bool) -> float:
    """Return images per second of the reference recipe's loop."""
    detector = bench.detector(kind).to(bench.device).train()

    def loss_of(batch: Batch) -> Tensor:
        images = batch.images.to(bench.device)
        boxes, labels = ([item.to(bench.device) for item in items] for items in (batch.boxes, batch.labels))
        targets = Targets(boxes, labels)
        with torch.autocast(bench.device, enabled=amp):
            outputs = detector(images)
        return torch.stack(list(detector.loss(outputs, targets).values())).sum()

    return _recipe_loop(bench, bench.spec(kind, amp), detector, loss_of, amp)


def torchvision_recipe(bench: Bench, amp: bool) -> float:
    """Return images per second of the recipe with torchvision's own Faster R-CNN at our input size."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, fasterrcnn_resnet50_fpn

    spec = bench.spec("faster-rcnn-resnet50-fpn", amp)
    tiny = isinstance(spec.detector, FasterRcnnMobileNetV3Spec)
    build = fasterrcnn_mobilenet_v3_large_320_fpn if tiny else fasterrcnn_resnet50_fpn
    sides = {"min_size": spec.detector.height, "max_size": spec.detector.width}
    model = build(weights=None, weights_backbone=None, num_classes=1 + bench.classes, **sides).to(bench.device).train()

    def loss_of(batch: Batch) -> Tensor:
        images = [image.to(bench.device).float() / 255 for image in batch.images]
        truth = [
            {"boxes": boxes.to(bench.device), "labels": labels.to(bench.device) + 1}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        with torch.autocast(bench.device, enabled=amp):
            terms = model(images, truth)
            return torch.stack(list(terms.values())).sum()

    return _recipe_loop(bench, spec, model, loss_of, amp)


def _recipe_loop(
    bench: Bench, spec: FederationSpec, model: nn.Module, loss_of: Callable[[Batch], Tensor], amp: bool
) -> float:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(bench.device, enabled=amp)
    batches = Timed(bench, recipe_batches(bench, spec))
    for batch in batches:
        loss = loss_of(batch)
        loss.item()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return batches.rate


def evaluation(bench: Bench, kind: str) -> float:
    """Return images per second of an evaluation, detections included, once its images are decoded."""
    spec, detector = bench.spec(kind, False), bench.detector(kind)
    size: dict[str, Any] = {"width": spec.detector.width, "height": spec.detector.height}
    batch_size = spec.evaluation.batch_on(bench.device)
    loader = EvaluationLoader(
        bench.samples, **size, batch_size=batch_size, cache=bench.cache, on_device=bench.on_device, threads=8
    )
    list(loader)
    batches = Timed(bench, itertools.chain.from_iterable(itertools.repeat(loader)))
    evaluate(detector, batches, bench.samples, spec.evaluation, device=bench.device)
    return batches.rate


def channels_last(detector: Detector) -> None:
    detector.to(memory_format=torch.channels_last)


def compiled(backend: str, detector: Detector) -> None:
    detector.forward = torch.compile(detector.forward, backend=backend, dynamic=False)  # type: ignore[method-assign]


def measure(bench: Bench, figure: str, kind: str, amp: bool, call: Callable[[], float], **fields: Any) -> float | None:
    """Measure a figure, and write its line with the peak of the GPU's memory. None: no time, or an error."""
    if bench.left() < bench.size.seconds:
        return None
    cuda = bench.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started, rate, error = time.perf_counter(), None, None
    try:
        rate = call()
    except Exception as found:  # the others are still worth measuring
        error = f"{type(found).__name__}: {str(found)[:300]}"
        bench.failures += 1
    line = {"figure": figure, "detector": kind, "amp": amp, "batch_size": bench.size.detectors[kind][1], **fields}
    line |= {"images_per_second": rate} if error is None else {"error": error}
    if cuda:
        line["peak_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    bench.write(**line, took_seconds=time.perf_counter() - started)
    give_back(bench.device)
    return rate


def compare(bench: Bench, kind: str, amp: bool) -> None:
    """Measure a turn, the bare loop and the recipe, and write their ratios."""
    rates = {
        "turn": measure(bench, "turn", kind, amp, partial(turn, bench, kind, amp)),
        "bare": measure(bench, "bare", kind, amp, partial(bare, bench, kind, amp)),
        "recipe": measure(bench, "recipe", kind, amp, partial(recipe, bench, kind, amp)),
    }
    if kind.startswith("faster"):
        call = partial(torchvision_recipe, bench, amp)
        rates["torchvision"] = measure(bench, "torchvision", kind, amp, call)
    own = rates.pop("turn")
    known = {f"turn_over_{name}": own / rate for name, rate in rates.items() if own is not None and rate is not None}
    if known:
        bench.write(figure="ratios", detector=kind, amp=amp, **known)


def curve(bench: Bench, kind: str = "fcos-lite0") -> None:
    """Train a few rounds of FedAvg over all devices. Write each round's loss, figures and seconds."""
    spec = bench.spec(kind, bench.device == "cuda")
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"batch_size": 4})})
    detector, method = bench.detector(kind), build_strategy(spec)
    model = {name: tensor.clone() for name, tensor in state_of(detector).items()}
    started = time.perf_counter()
    for number in range(1, bench.size.rounds + 1):
        if bench.left() < 4 * bench.size.seconds:
            return
        mean, losses, begun = WeightedMean(), [], time.perf_counter()
        for client, samples in bench.data.train.items():
            detector.load_state_dict(model)
            outcome = train_turn(
                method,
                spec,
                samples,
                detector,
                bench.cache,
                client=client,
                round=number,
                seed=number,
                learning_rate=1e-3,
                model=model,
                on_device=bench.on_device,
            )
            losses.append(outcome.result.loss)
            mean.accumulate_state(outcome.state, len(samples), client=client)
        model = mean.result()
        detector.load_state_dict(model)
        trained = time.perf_counter() - begun
        sets = evaluation_sets(bench.data, bench.data.classes)
        scored = score_sets(detector, sets, bench.data.classes, spec.evaluation, device=bench.device)
        bench.write(
            figure="round",
            detector=kind,
            round=number,
            train_loss=sum(losses) / len(losses),
            map50_voc10=float(scored[0][0].map50_voc10 or 0),
            train_seconds=trained,
            seconds_since_start=time.perf_counter() - started,
        )


def run(bench: Bench) -> None:
    """Measure everything, the most important figures first."""
    decode(bench)
    kinds, gpu = list(bench.size.detectors), bench.device == "cuda"
    for kind in kinds:
        compare(bench, kind, True)
    for kind in kinds:
        measure(bench, "turn", kind, True, partial(turn, bench, kind, True, channels_last), channels_last=True)
    for kind in kinds:
        compare(bench, kind, False)
    try:
        curve(bench)
    except Exception as error:
        bench.failures += 1
        bench.write(figure="round", error=f"{type(error).__name__}: {str(error)[:300]}")
    for kind in kinds:
        measure(bench, "evaluation", kind, False, partial(evaluation, bench, kind))
    for kind in kinds[:2] if gpu else kinds[1:2]:
        if bench.left() < bench.size.left:
            break
        torch.compiler.reset()
        change = partial(compiled, bench.size.backend)
        measure(bench, "turn", kind, True, partial(turn, bench, kind, True, change), compiled=True)
    bench.write(figure="end", lines=len(bench.lines) + 1, failures=bench.failures, seconds_left=bench.left())


def decode(bench: Bench) -> None:
    """Bring the measured images to the device, at the size of each detector, and write how long it took."""
    started = time.perf_counter()
    fits = [
        bench.on_device.hold(bench.samples, width=spec.width, height=spec.height, threads=min(16, os.cpu_count() or 1))
        for spec, _ in bench.size.detectors.values()
    ]
    bench.write(
        figure="decode",
        images=len(bench.samples),
        held=all(fits),
        megabytes=bench.on_device.bytes / 1e6,
        took_seconds=time.perf_counter() - started,
        device=torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
        torch=str(torch.__version__),
    )


def drawn(folder: Path) -> FederatedData:
    """Return eight small images of two clients, and four test images."""
    from tests.gpu.scenes import CLASSES, samples_in

    samples: Sequence[ImageSample] = samples_in(folder, 12)
    test = tuple(samples[8:])
    return FederatedData(
        "drawn",
        samples_digest(samples),
        tuple(f"class {number}" for number in range(CLASSES)),
        {"1": tuple(samples[:4]), "2": tuple(samples[4:8])},
        {"1": test, "2": test},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--street", type=Path, help="the folder of Federated Street in its published form")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and images, to try the program")
    parser.add_argument("--seconds", type=float, default=480, help="no figure starts after so many")
    parser.add_argument("--out", type=Path, help="a file to which lines are added too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, for torch finds no CUDA device, found cuda")
    if options.street is None and not options.tiny:
        parser.error("--street: expected the folder of Federated Street, or --tiny, found neither")
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            data = drawn(Path(folder))
        else:
            data = load_data(FederatedStreet(), root_of=lambda name: options.street, cache=Path(folder))
        out = options.out.open("a", encoding="utf-8") if options.out else None
        try:
            bench = Bench(TINY if options.tiny else FULL, options.device, data, deadline, out)
            run(bench)
        finally:
            if out is not None:
                out.close()
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
