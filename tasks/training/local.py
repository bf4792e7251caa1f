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
from tasks.training.rules import LocalRule
from tasks.training.targets import targets_of


@dataclass(frozen=True)
class TrainingResult:
    """A turn's result. Loss and terms are means over all images of all local epochs.

    ``seconds`` is the wall time of the loop, loading included. ``rates`` holds the learning rate of each step that was
    taken; mixed precision skips steps whose gradients overflow.
    """

    loss: float
    terms: dict[str, float]
    images: int
    steps: int
    seconds: float
    rates: tuple[float, ...] = ()


def train(
    detector: Detector,
    batches: Iterable[Batch],
    spec: TrainingSpec,
    *,
    lr: float,
    warmup_steps: int,
    seed: int,
    client: str,
    rule: LocalRule | None = None,
) -> TrainingResult:
    """Train ``detector`` in place with a fresh optimiser.

    rule: what a federated method changes in a step; left out, nothing.

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
    rates: list[float] = []
    rule = rule or LocalRule()
    rule.begin(detector)
    kept: list[tuple[Tensor, Targets]] = []
    random_state: list[Tensor] = []
    started = time.perf_counter()

    def loss_of(inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, enabled=spec.amp):
            outputs = detector(inputs)
        terms = detector.loss(outputs, targets)
        return torch.stack(list(terms.values())).sum(), terms

    def add_gradient(loss: Tensor) -> None:
        scaler.scale(loss / spec.accumulate).backward()

    def again() -> None:
        _set_random_state(device, random_state)
        for inputs, targets in kept:
            add_gradient(loss_of(inputs, targets)[0])

    def step() -> None:
        nonlocal steps, waiting
        rate = lr
        if steps < warmup_steps:
            rate = lr * (steps + 1) / warmup_steps
            set_learning_rate(optimizer, rate)
        if rule.twice:
            rule.second_gradient(detector, again)
            kept.clear()
        scaler.unscale_(optimizer)
        if waiting < spec.accumulate:
            # At the end of a turn a step has fewer batches than each loss was divided by.
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(spec.accumulate / waiting)
        rule.correct_gradient()
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        scaler.step(optimizer)
        scale = scaler.get_scale() if spec.amp else 1.0
        scaler.update()
        if not spec.amp or scaler.get_scale() >= scale:  # a lower scale: the gradients overflowed, no step was taken
            rates.append(rate)
        set_learning_rate(optimizer, lr)
        steps, waiting = steps + 1, 0

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number, batch in enumerate(batches):
            inputs = batch.images.to(device, non_blocking=True)
            targets = targets_of(batch).to(device)
            if spec.multi_scale is not None:
                size = input_size(detector.width, detector.height, spec.multi_scale, seed=seed, step=steps)
                inputs, targets = resize(inputs, targets, size)
            if waiting == 0 and rule.twice:
                random_state[:] = _random_state(device)
            loss, terms = loss_of(inputs, targets)
            value = loss.item()
            if not math.isfinite(value):
                raise ClientError(f"client {client}: training loss is {value} at batch {number + 1}")
            if waiting == 0:
                # Gradients are freed here and not right after the step, so that the new ones take their memory.
                optimizer.zero_grad()
            add_gradient(loss)
            if rule.twice:
                kept.append((inputs, targets))
            count = batch.images.shape[0]
            images, waiting = images + count, waiting + 1
            for name, term in terms.items():
                sums[name] += term.detach().double() * count
            if waiting == spec.accumulate:
                step()
        if waiting:
            step()
    means = {name: float(total) / images for name, total in sums.items()}
    return TrainingResult(sum(means.values()), means, images, steps, time.perf_counter() - started, tuple(rates))


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that a pass on ``device`` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
