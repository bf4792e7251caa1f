"""The measured subjects of the benchmarks of turns: an experiment for each detector, a site, and clocks."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save

from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.site import Site
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import DetectorSpec, FcosLite0Spec, RandomWeights, YoloV3Spec, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnResNet50Spec, FasterRcnnVgg16Spec
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.training import EvaluationSpec, TrainingSpec

CLASSES = 7
# The detectors that a CPU trains in minutes. Tests check their limits; the others are measured only on request.
MEASURED = ("yolov3-tiny", "fcos-lite0", "faster-rcnn-mobilenetv3-320-fpn")
# With the input sizes of the presets; YOLO's at the original's scale.
DETECTORS: dict[str, DetectorSpec] = {
    "yolov3-tiny": YoloV3TinySpec(width=320, height=320, assignment="side-ratio", box_loss="ciou"),
    "yolov3": YoloV3Spec(width=416, height=352),
    "fcos-lite0": FcosLite0Spec(weights=RandomWeights(), frozen_blocks=0),
    "faster-rcnn-mobilenetv3-320-fpn": FasterRcnnMobileNetV3Spec(train_proposals=500, sampled_proposals=64),
    "faster-rcnn-resnet50-fpn": FasterRcnnResNet50Spec(),
    "faster-rcnn-vgg16": FasterRcnnVgg16Spec(),
}


class Seconds(NamedTuple):
    """Seconds by the clock and of the processor. The latter do not count the load of other processes."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> Seconds:
        now = Seconds.now()
        return Seconds(now.wall - self.wall, now.processor - self.processor)


def experiment(detector: str, *, images: int, test_images: int = 5) -> FederationSpec:
    """Return an experiment of five clients. ``images``: number of their training images together."""
    return FederationSpec(
        data=SyntheticStreet(train_images=images, test_images=test_images),
        detector=DETECTORS[detector],
        training=TrainingSpec(batch_size=4),
        evaluation=EvaluationSpec(batch_size=8),
    )


@contextlib.contextmanager
def measured_site(home: Path, spec: FederationSpec) -> Iterator[tuple[Site, WeightRef]]:
    """Yield a site and the first weights, in an S3 server on loopback. torch uses a turn's number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.training.threads)
    settings = Settings(home=home)
    try:
        with EmbeddedServices(settings, prefect=False) as services:
            site = Site(settings.model_copy(update={"s3": services.s3_endpoint()}))
            site.objects.ensure_bucket()
            state = state_of(build_detector(spec.detector, CLASSES, seed=spec.seed))
            stored = site.weights.put("bench/global.safetensors", save(state))
            yield site, WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes)
    finally:
        torch.set_num_threads(threads)


def by_turns(bare: Callable[[], Seconds], whole: Callable[[], Seconds], repeats: int) -> list[tuple[Seconds, Seconds]]:
    """Return measured pairs (bare, whole). Each of the two goes first equally often."""
    pairs = []
    for number in range(repeats):
        if number % 2:
            second = whole()
            pairs.append((bare(), second))
        else:
            first = bare()
            pairs.append((first, whole()))
    return pairs


def ratios(pairs: Sequence[tuple[Seconds, Seconds]]) -> dict[str, float]:
    """Return the ratio of the bare part to the whole: medians over the pairs, and the extremes."""
    walls = [bare.wall / whole.wall for bare, whole in pairs]
    return {
        "ratio": statistics.median(walls),
        "processor_ratio": statistics.median(bare.processor / whole.processor for bare, whole in pairs),
        "least_ratio": min(walls),
        "most_ratio": max(walls),
    }
