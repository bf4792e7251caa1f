"""A training step of the laptop detector on one thread, against the same with torch's own depthwise gradients.

    pytest tests/benchmarks/bench_depthwise.py         # checks the limit
    python -m tests.benchmarks.bench_depthwise         # prints the figures

Both alternate, and the median ratio counts.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from tasks.detectors import efficientnet_lite
from tasks.detectors.base import Detector
from tasks.detectors.depthwise import torchs_own
from tasks.detectors.registry import build_detector
from tests.benchmarks.figures_text import line
from tests.benchmarks.measured_detectors import CLASSES, DETECTORS, Seconds, by_turns, ratios

# Medians of 1.12 to 1.22 were measured; another machine's oneDNN may take another way.
FASTER_AT_LEAST = 1.05
BATCH, STEPS, REPEATS = 4, 4, 9


def steps(detector: Detector, images: Tensor) -> Seconds:
    """Take a few steps of the network, forward and back, without the detector's loss."""
    started = Seconds.now()
    for _ in range(STEPS):
        outputs = detector(images)
        detector.zero_grad()
        (outputs.logits.square().mean() + outputs.boxes.mean()).backward()
    return started.since()


def measure() -> dict[str, float]:
    detector = build_detector(DETECTORS["fcos-lite0"], CLASSES, seed=1).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (BATCH, 3, detector.height, detector.width), dtype=torch.uint8, generator=generator)

    def plain() -> Seconds:
        with mock.patch.object(efficientnet_lite, "depthwise_same", torchs_own):
            return steps(detector, images)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps(detector, images)
        return ratios(by_turns(plain, lambda: steps(detector, images), REPEATS))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.benchmark
def test_a_step_is_faster_than_with_torchs_own_gradients() -> None:
    figures = measure()
    print(line(figures))
    assert figures["processor_ratio"] >= FASTER_AT_LEAST


if __name__ == "__main__":
    print(line(measure()))
