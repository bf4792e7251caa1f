"""What a client's turn computes, without a store or a service: from the global weights to the client's update.

:mod:`tasks.client_update` fetches what a turn needs and stores what it returns. Benchmarks and tests on a GPU call
:func:`train_turn` directly, with the learning core alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tasks.data.batches import Batch, Batches
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.loading import training_loader
from tasks.data.samples import ImageSample
from tasks.detectors.base import Detector
from tasks.errors import ClientError
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import StrategySpec
from tasks.spec.training import TrainingSpec
from tasks.training.local import TrainingResult, train
from tasks.training.rules import LocalRule
from tasks.training.unlabelled import with_unlabelled_regions

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalTurn:
    """A client's turn. ``detector`` has the global weights ``x``.

    model: ``x``, on the CPU. shared: what the server shares of its state. own: the client's state from its last counted
    round. ``shared`` and ``own`` are empty before there is one.
    batches: returns the batches of the turn, the same ones at each call.
    learning_rate: of the round, before a warm-up of ``warmup_steps``.
    """

    client: str
    detector: Detector
    training: TrainingSpec
    batches: Callable[[], Batches]
    seed: int
    learning_rate: float
    warmup_steps: int
    model: Tensors
    shared: Tensors = field(default_factory=dict)
    own: Tensors = field(default_factory=dict)

    def train(self, rule: LocalRule | None = None, batches: Iterable[Batch] | None = None) -> TrainingResult:
        """Train the turn's detector with a fresh optimiser. batches: left out, all batches of the turn.

        Raises:
            ClientError: the loss is NaN or infinite.
        """
        return train(
            self.detector,
            self.batches() if batches is None else batches,
            self.training,
            lr=self.learning_rate,
            warmup_steps=self.warmup_steps,
            seed=self.seed,
            client=self.client,
            rule=rule,
        )


@dataclass(frozen=True)
class LocalOutcome:
    """The result of a turn: the update ``state``, figures for the server, and the client's new state, if it keeps one.

    ``state`` holds views of the detector's tensors: use it before the next turn.
    """

    result: TrainingResult
    state: dict[str, Tensor]
    figures: dict[str, float] = field(default_factory=dict)
    own: dict[str, Tensor] | None = None


class Method(Protocol):
    """A federated method, as far as a turn needs it. :class:`tasks.strategies.base.Strategy` is one."""

    @property
    def spec(self) -> StrategySpec: ...

    def train(self, turn: LocalTurn) -> LocalOutcome:
        """Train one client."""

    def personal_model(self, model: Tensors, own: Tensors) -> dict[str, Tensor]:
        """Return a client's own model. model: the global one. own: the client's state."""


def train_turn(
    method: Method,
    spec: FederationSpec,
    samples: Sequence[ImageSample],
    detector: Detector,
    images: ImageCache,
    *,
    client: str,
    round: int,
    seed: int,
    learning_rate: float,
    model: Tensors,
    shared: Tensors | None = None,
    own: Tensors | None = None,
    on_device: DeviceImages | None = None,
) -> LocalOutcome:
    """Train ``client`` on ``samples`` by ``spec``. Return its update, figures and new state.

    detector: built by ``spec.detector``, with the global weights ``model`` loaded. It is trained in place, and the
    update is a view of it: use it before the next turn.
    model: the global weights, on the CPU. shared, own: states of the method, as in :class:`LocalTurn`.
    learning_rate: of the round. on_device: keeps the images on a GPU where they fit.

    Raises:
        ClientError: the client is at fault.
    """
    shared, own = shared or {}, own or {}
    check_fits(own, detector, client)
    batches = partial(training_batches, images, spec, samples, round=round, client=client, on_device=on_device)
    return method.train(
        LocalTurn(
            client,
            detector,
            spec.training,
            with_unlabelled_regions(batches, samples, detector, spec, lambda: own_start(method, model, own)),
            seed,
            learning_rate,
            warmup_steps=spec.training.schedule.warmup_steps if round == 1 else 0,
            model=model,
            shared=shared,
            own=own,
        )
    )


def training_batches(
    images: ImageCache,
    spec: FederationSpec,
    samples: Sequence[ImageSample],
    *,
    round: int,
    client: str,
    on_device: DeviceImages | None = None,
) -> Batches:
    """Return the batches of ``samples`` for a turn of ``client`` by ``spec``. on_device: as in :func:`train_turn`.

    Raises:
        ClientError: the client has no images.
    """
    return training_loader(
        samples,
        width=spec.detector.width,
        height=spec.detector.height,
        batch_size=spec.training.batch_size,
        epochs=spec.training.local_epochs,
        seed=spec.seed,
        round=round,
        client=client,
        augmentation=spec.training.augmentation,
        workers=spec.training.loader_workers,
        cache=images,
        on_device=on_device,
        pinned=spec.training.device == "cuda",
    )


def give_back(device: str) -> None:
    """Give memory of the GPU that this process has freed back to other processes, for slots that share a GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()


def own_start(method: Method, model: Tensors, own: Tensors) -> Tensors | None:
    """Return the complete model that a client starts from if the method shares none; None: it is the global one.

    model: the global weights. own: the client's state.
    """
    return method.personal_model(model, own) if own and not method.spec.shared_model else None


def check_fits(own: Tensors, detector: Detector, client: str) -> None:
    """Check the state of ``client`` against the detector's.

    Raises:
        ClientError: a tensor of the client's state has another shape than the detector's, or no counterpart there.
    """
    shapes = {name: tensor.shape for name, tensor in detector.state_dict().items()} if own else {}
    for name, tensor in own.items():
        if tensor.shape != shapes.get(name):
            expected = "no such tensor" if name not in shapes else f"shape {list(shapes[name])}"
            found = f"shape {list(tensor.shape)}"
            raise ClientError(f"client {client}: its state: tensor {name}: expected {expected}, found {found}")
