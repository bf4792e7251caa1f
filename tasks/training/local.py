"""A client's local training: plain PyTorch over one model and one loader."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.detectors.base import Detector, Targets
from tasks.errors import ClientError
from tasks.spec.training import TrainingSpec
from tasks.training.multi_scale import input_size, resize
from tasks.training.optimizers import build_optimizer, set_learning_rate
from tasks.training.rules import LocalRule
from tasks.training.targets import targets_of

# Batches whose losses a GPU keeps until they are read together. Reading one makes the host wait for the GPU.
READ_EVERY = 50


@dataclass(frozen=True)
class TrainingResult:
    """A turn's result. Loss and terms are means over all images of all local epochs.

    ``seconds`` is the wall time of the loop, loading included. ``rates`` holds the learning rate of each step.
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
    torch's global generators are seeded with ``seed`` for the training, and restored after it. With ``spec.amp`` the
    forward passes compute in bfloat16 where torch's autocast allows it; its range is that of float32, so losses need no
    scaling. On a GPU the host reads the losses of 50 batches at once, and otherwise waits in no step.

    Raises:
        ClientError: the loss is NaN or infinite; the message names the client and the batch.
    """
    device = torch.device(spec.device)
    detector.to(device).train()
    optimizer = build_optimizer(detector, spec.optimizer, lr)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
    losses = _Losses(client, 1 if device.type == "cpu" else READ_EVERY)
    images = steps = waiting = 0
    rates: list[float] = []
    rule = rule or LocalRule()
    rule.begin(detector)
    kept: list[tuple[Tensor, Targets]] = []
    random_state: list[Tensor] = []
    started = time.perf_counter()

    def loss_of(inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.amp):
            outputs = detector(inputs)
        terms = detector.loss(outputs, targets)
        return torch.stack(list(terms.values())).sum(), terms

    def add_gradient(loss: Tensor) -> None:
        (loss / spec.accumulate).backward()

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
        if waiting < spec.accumulate:
            # At the end of a turn a step has fewer batches than each loss was divided by.
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(spec.accumulate / waiting)
        rule.correct_gradient()
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        optimizer.step()
        rates.append(rate)
        set_learning_rate(optimizer, lr)
        steps, waiting = steps + 1, 0

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in batches:
            inputs = batch.images.to(device, non_blocking=True)
            targets = targets_of(batch)
            if spec.multi_scale is not None:
                size = input_size(detector.width, detector.height, spec.multi_scale, seed=seed, step=steps)
                inputs, targets = resize(inputs, targets, size)
            targets = targets.to(device)
            if waiting == 0 and rule.twice:
                random_state[:] = _random_state(device)
            loss, terms = loss_of(inputs, targets)
            losses.add(loss)
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
        losses.check()
    means = {name: float(total) / images for name, total in sums.items()}
    return TrainingResult(sum(means.values()), means, images, steps, time.perf_counter() - started, tuple(rates))


class _Losses:
    """Checks the losses of ``client``'s batches, ``every`` so many together, that they are finite."""

    def __init__(self, client: str, every: int) -> None:
        self._client, self._every = client, every
        self._waiting: list[Tensor] = []
        self._checked = 0

    def add(self, loss: Tensor) -> None:
        """Take the loss of the next batch.

        Raises:
            ClientError: it was time to check, and a loss is NaN or infinite.
        """
        self._waiting.append(loss.detach())
        if len(self._waiting) == self._every:
            self.check()

    def check(self) -> None:
        """Check the losses that have not been checked yet.

        Raises:
            ClientError: a loss is NaN or infinite. The message names the client and the first such batch.
        """
        if not self._waiting:
            return
        for number, value in enumerate(torch.stack(self._waiting).tolist(), self._checked + 1):
            if not math.isfinite(value):
                raise ClientError(f"client {self._client}: training loss is {value} at batch {number}")
        self._checked += len(self._waiting)
        self._waiting.clear()


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that a pass on ``device`` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
