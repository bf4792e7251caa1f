"""Small federations, trained round by round in one process, with the parts of a real run but without services."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tasks.data.catalog import load_data
from tasks.data.image_cache import ImageCache
from tasks.data.samples import FederatedData, ImageSample
from tasks.detectors.initial import initial_detector
from tasks.detectors.state import state_of
from tasks.metrics.over_clients import aggregate_metrics
from tasks.models.evaluate import evaluation_sets, score_sets
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Metrics
from tasks.strategies.mean import WeightedMean
from tasks.training.local import train
from tasks.training.optimizers import learning_rate
from tasks.training.seeds import derive_seed
from tasks.training.turn import training_batches
from tasks.training.unlabelled import with_unlabelled_regions


def no_root(name: str) -> None:
    """Return no folder: synthetic data are drawn and need none."""


def without_class(data: FederatedData, name: str) -> FederatedData:
    """Return ``data`` without the boxes of class ``name`` in the training images. The test images keep theirs."""
    label = data.classes.index(name)
    train_images = {client: tuple(map(partial(_without, label), own)) for client, own in data.train.items()}
    return dataclasses.replace(data, train=train_images)


def _without(label: int, sample: ImageSample) -> ImageSample:
    kept = np.flatnonzero(sample.labels != label)
    return dataclasses.replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept], difficult=None)


def train_federation(spec: FederationSpec, cache: Path, *, dropped_class: str | None = None) -> Metrics:
    """Train ``spec`` on drawn data. Return the figures after the last round."""
    data = load_data(spec.data, root_of=no_root, cache=cache)
    return train_on(spec, data if dropped_class is None else without_class(data, dropped_class))


def train_on(spec: FederationSpec, data: FederatedData) -> Metrics:
    """Train ``spec`` on ``data`` with all clients in every round. Return the figures after the last round."""
    torch.set_num_threads(spec.training.threads)
    classes = data.classes
    detector, _ = initial_detector(spec.detector, len(classes), seed=spec.seed, file_of=Path)
    images = ImageCache(256)
    for number in range(1, spec.max_rounds + 1):
        before = {name: tensor.clone() for name, tensor in state_of(detector).items()}
        mean = WeightedMean()
        for client, samples in data.train.items():
            detector.load_state_dict(before)
            batches = partial(training_batches, images, spec, samples, round=number, client=client)
            train(
                detector,
                with_unlabelled_regions(batches, samples, detector, spec, lambda: None)(),
                spec.training,
                lr=learning_rate(spec.training.optimizer.lr, spec.training.schedule, number),
                warmup_steps=spec.training.schedule.warmup_steps if number == 1 else 0,
                seed=derive_seed(spec.seed, "train", number, client),
                client=client,
            )
            mean.accumulate_state(state_of(detector), len(samples), client=client)
        detector.load_state_dict(mean.result())
    sets, score = evaluation_sets(data, classes), spec.data.unlabelled_score
    scored = score_sets(detector, sets, classes, spec.evaluation, device="cpu", unlabelled_score=score)
    return aggregate_metrics([], [record for record, _ in scored])
