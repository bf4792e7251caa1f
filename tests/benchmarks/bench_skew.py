"""How far clients' models drift apart under a strong label skew: the mean distance after equal steps, by method.

    pytest tests/benchmarks/bench_skew.py        # asserts that FedProx with mu = 1 drifts less than FedAvg
    python -m tests.benchmarks.bench_skew        # prints the table

Four clients have the same number of images of the synthetic street, and each knows only the boxes of its own classes.
All take the same number of plain SGD steps in each round, from the model that the method's server has made. The
distance is the L2 norm over all trained parameters, as a mean over the pairs of clients; a row has it for each round.
It is asserted of FedProx alone, in round 1, which all methods start from one model: later rounds start from different
ones. Methods that change the server alone have FedAvg's distance in round 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.data.catalog import load_data
from tasks.data.image_cache import ImageCache
from tasks.data.loading import training_loader
from tasks.data.samples import ImageSample
from tasks.detectors.registry import build_detector
from tasks.detectors.roles import Roles, tensor_roles
from tasks.detectors.state import state_of
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import FcosLite0Spec, RandomWeights
from tasks.spec.federation import FederationSpec
from tasks.spec.training import Augmentation, Sgd, TrainingSpec
from tasks.strategies.base import LocalTurn, ServerRound
from tasks.strategies.registry import build_strategy
from tasks.strategies.sums import Counted, State, Sums
from tasks.training.seeds import derive_seed
from tests.benchmarks.compared_methods import method_fields, with_method
from tests.benchmarks.figures_text import table
from tests.benchmarks.small_federations import no_root

CLIENTS = ("1", "2", "3", "4")
CLASSES = 7
ROUNDS, STEPS, IMAGES = 3, 16, 16
LR = 0.03
SPEC = FederationSpec(
    data=SyntheticStreet(train_images=80, test_images=5, width=128, height=96),
    detector=FcosLite0Spec(width=96, height=96, weights=RandomWeights(), frozen_blocks=0),
    training=TrainingSpec(
        batch_size=4,
        optimizer=Sgd(lr=LR, momentum=0.0),
        clip_norm=None,
        augmentation=Augmentation(flip=0, scale=0, translate=0, color=0),
    ),
)


def skewed(images: int, cache: Path) -> dict[str, list[ImageSample]]:
    """Return each client's images, ``images`` of each, with the boxes of the client's own classes alone."""
    data = load_data(SPEC.data, root_of=no_root, cache=cache)
    everything = [sample for own in data.train.values() for sample in own]
    found = {}
    for number, client in enumerate(CLIENTS):
        own = (_own_classes(sample, number) for sample in everything)
        found[client] = [sample for sample in own if len(sample.labels)][:images]
        assert len(found[client]) == images, f"client {client} has {len(found[client])} images with its classes"
    return found


def _own_classes(sample: ImageSample, number: int) -> ImageSample:
    kept = np.flatnonzero(sample.labels % len(CLIENTS) == number)
    return dataclasses.replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept], difficult=None)


def drifts(
    fields: Mapping[str, Any], data: Mapping[str, Sequence[ImageSample]], *, rounds: int, steps: int
) -> list[float]:
    """Return the mean distance between the clients' models after each round's local steps."""
    own = {name: value for name, value in fields.items() if name.startswith(("strategy.", "training.local_epochs"))}
    spec = with_method(SPEC, own)
    strategy, detector = build_strategy(spec), build_detector(spec.detector, CLASSES, seed=spec.seed)
    roles, images = tensor_roles(detector), ImageCache(256)
    model, states = _copy(state_of(detector)), dict[str, State]()
    server: State = {}
    shared: State = {}
    found = []
    for number in range(1, rounds + 1):
        sums, vectors = Sums(strategy), list[Tensor]()
        for client, samples in data.items():
            detector.load_state_dict(model)
            turn = LocalTurn(
                client,
                detector,
                spec.training,
                partial(_batches, spec, images, samples, number, client, steps),
                derive_seed(spec.seed, number, client),
                LR,
                warmup_steps=0,
                model=model,
                shared=shared,
                own=states.get(client, model if number == 1 and strategy.begins_with_model else {}),
            )
            outcome = strategy.train(turn)
            assert outcome.result.steps == steps
            vectors.append(_vector(state_of(detector), roles))
            weight = sum(len(item.labels) for item in samples) if strategy.spec.weighting == "objects" else 1
            sums.accumulate_state(outcome.state, Counted(client, weight, outcome.figures))
            if outcome.own is not None:
                states[client] = _copy(outcome.own)
        found.append(statistics.mean(float((a - b).norm()) for a, b in itertools.combinations(vectors, 2)))
        new = strategy.new_model(sums, ServerRound(model, len(data), lambda: roles, server, shared))
        model, server, shared = _copy(new.model), _copy(new.server or {}), _copy(new.shared or {})
    return found


def _batches(
    spec: FederationSpec, images: ImageCache, samples: Sequence[ImageSample], number: int, client: str, steps: int
) -> list[Batch]:
    size = spec.training.batch_size
    loader = training_loader(
        samples,
        width=spec.detector.width,
        height=spec.detector.height,
        batch_size=size,
        epochs=math.ceil(steps / max(1, len(samples) // size)),
        seed=spec.seed,
        round=number,
        client=client,
        augmentation=spec.training.augmentation,
        workers=0,
        cache=images,
    )
    return list(itertools.islice(iter(loader), steps))


def _copy(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def _vector(state: Mapping[str, Tensor], roles: Roles) -> Tensor:
    return torch.cat([state[name].double().flatten() for name, role in roles.items() if role.trained])


def drift_table(rounds: int, steps: int, images: int) -> list[dict[str, object]]:
    """Return a row for each method, with FedProx at mu = 1 beside that of the suite."""
    methods = {name: fields for name, fields in method_fields().items() if name not in ("fedavg-adamw", "fedavg-sgd")}
    methods = {
        "fedavg": {"strategy.kind": "fedavg"},
        "fedprox, mu 1": {"strategy.kind": "fedprox", "strategy.mu": 1.0},
        **methods,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(SPEC.training.threads)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = skewed(images, Path(folder))
            for name, fields in methods.items():
                found = drifts(fields, data, rounds=rounds, steps=steps)
                row: dict[str, object] = {"method": name}
                rows.append(row | {f"round {number}": value for number, value in enumerate(found, start=1)})
    finally:
        torch.set_num_threads(threads)
    return rows


@pytest.mark.benchmark
def test_fedprox_drifts_less_than_fedavg(capsys: pytest.CaptureFixture[str]) -> None:
    rows = drift_table(ROUNDS, STEPS, IMAGES)
    with capsys.disabled():
        print("\n" + table(rows))
    found = {row["method"]: row for row in rows}
    plain, near = (found[name]["round 1"] for name in ("fedavg", "fedprox, mu 1"))
    assert isinstance(plain, float)
    assert isinstance(near, float)
    assert near < plain


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="local steps in each round")
    parser.add_argument("--images", type=int, default=IMAGES, help="images of each client")
    options = parser.parse_args()
    print(table(drift_table(options.rounds, options.steps, options.images)))


if __name__ == "__main__":
    main()
