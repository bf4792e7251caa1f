"""A client's local training: plain PyTorch over one model and one loader."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.data.loading import Batch
from tasks.detectors.base import Detector, Targets
from tasks.errors import ClientError
from tasks.spec.training import TrainingSpec
from tasks.training.multi_scale import input_size, resize
from tasks.training.optimizers import build_optimizer, set_learning_rate


@dataclass(frozen=True)
class TrainingResult:
    """A turn's result. Loss and terms are means over all images of all local epochs.

    ``seconds`` is the wall time of the loop, loading included.
    """

    loss: float
    terms: dict[str, float]
    images: int
    steps: int
    seconds: float


def train(
    detector: Detector,
    batches: Iterable[Batch],
    spec: TrainingSpec,
    *,
    lr: float,
    warmup_steps: int,
    seed: int,
    client: str,
) -> TrainingResult:
    """Train ``detector`` in place with a fresh optimiser.

    A step is taken every ``spec.accumulate`` batches and after the last; its gradient is the mean over its batches.
    torch's global generators are seeded with ``seed`` for the training, and restored after it.

    Raises:
        ClientError: the loss is NaN or infinite; the message names the client and the batch.
    """
    device = torch.device(spec.device)
    detector.to(device).train()
    optimizer = build_optimizer(detector, spec.optimizer, lr)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=spec.amp)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
    images = steps = waiting = 0
    started = time.perf_counter()

    def step() -> None:
        nonlocal steps, waiting
        if steps < warmup_steps:
            set_learning_rate(optimizer, lr * (steps + 1) / warmup_steps)
        scaler.unscale_(optimizer)
        if waiting < spec.accumulate:
            # At the end of a turn a step has fewer batches than each loss was divided by.
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(spec.accumulate / waiting)
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        set_learning_rate(optimizer, lr)
        steps, waiting = steps + 1, 0

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number, batch in enumerate(batches):
            inputs = batch.images.to(device, non_blocking=True)
            targets = Targets(batch.boxes, batch.labels).to(device)
            if spec.multi_scale is not None:
                size = input_size(detector.width, detector.height, spec.multi_scale, seed=seed, step=steps)
                inputs, targets = resize(inputs, targets, size)
            with torch.autocast(device.type, enabled=spec.amp):
                outputs = detector(inputs)
            terms = detector.loss(outputs, targets)
            loss = torch.stack(list(terms.values())).sum()
            value = loss.item()
            if not math.isfinite(value):
                raise ClientError(f"client {client}: training loss is {value} at batch {number + 1}")
            if waiting == 0:
                # Gradients are freed here and not right after the step, so that the new ones take their memory.
                optimizer.zero_grad()
            scaler.scale(loss / spec.accumulate).backward()
            count = batch.images.shape[0]
            images, waiting = images + count, waiting + 1
            for name, term in terms.items():
                sums[name] += term.detach().double() * count
            if waiting == spec.accumulate:
                step()
        if waiting:
            step()
    means = {name: float(total) / images for name, total in sums.items()}
    return TrainingResult(sum(means.values()), means, images, steps, time.perf_counter() - started)
