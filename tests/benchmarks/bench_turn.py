"""The cost of federation: a client's turn compared with a bare PyTorch loop, and a round's time beyond learning.

    pytest tests/benchmarks/bench_turn.py                          # checks the limits
    python -m tests.benchmarks.bench_turn                          # prints the figures
    python -m tests.benchmarks.bench_turn --detector KIND          # only a turn of this detector
    python -m tests.benchmarks.bench_turn --run NAME --home HOME   # parts of the rounds of a finished run

The turn is complete: weights from the cache, detector, training, check, sha256, and the upload to an S3 server on
loopback. The bare loop is in this file. It uses the same model and loader, and only the loop is timed. Both alternate
on one thread, so that other load on the machine affects both, and the median ratio counts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from flows.stored.runs import opened_store, read_run
from infra.settings import Settings
from infra.store.objects import ObjectStore
from tasks.client_update import train_client
from tasks.data.batches import Batches
from tasks.detectors.base import Targets
from tasks.detectors.registry import build_detector
from tasks.site import Site
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import RoundRecord
from tasks.spec.training import AdamW
from tasks.spec.turns import UpdateRequest
from tasks.strategies.registry import build_strategy
from tasks.training.turn import training_batches
from tests.benchmarks.figures_text import line
from tests.benchmarks.measured_detectors import (
    CLASSES,
    DETECTORS,
    MEASURED,
    Seconds,
    by_turns,
    experiment,
    measured_site,
    ratios,
)

RATIO_AT_LEAST = 0.97
# For the smallest run, the smoke test's. In a real round, the rest is a few per cent.
REST_AT_MOST = 0.5
REPEATS = 5
# Street's mean client has 153 images. With 350 images in all, one of the five clients has about as many.
CLIENT_IMAGES, IMAGES = 153, 350
LR, ROUND, SEED = 1e-3, 2, 11


def turn_batches(site: Site, spec: FederationSpec, client: str) -> Batches:
    return training_batches(site.images, spec, site.data(spec.data).train[client], round=ROUND, client=client)


def bare_loop(site: Site, spec: FederationSpec, client: str) -> Seconds:
    """Train with the plainest loop. Return its seconds."""
    model = build_detector(spec.detector, CLASSES, seed=spec.seed).train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    assert isinstance(spec.training.optimizer, AdamW)
    decay = spec.training.optimizer.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, foreach=True)
    loader = turn_batches(site, spec, client)
    started = Seconds.now()
    for batch in loader:
        outputs = model(batch.images)
        loss = torch.stack(list(model.loss(outputs, Targets(batch.boxes, batch.labels)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return started.since()


def turn(site: Site, spec: FederationSpec, client: str, model: WeightRef) -> Seconds:
    """Take a client's turn, from its request to its record. Return its seconds."""
    request = UpdateRequest(
        federation="bench",
        spec=spec,
        clients=(client,),
        round=ROUND,
        spec_digest=spec.digest,
        model=model,
        seeds={client: SEED},
        learning_rate=LR,
    )
    started = Seconds.now()
    train_client(site, request, client, build_strategy(spec))
    return started.since()


def turn_figures(home: Path, detector: str, repeats: int, images: int = IMAGES) -> dict[str, float]:
    """Return the figures of a turn against the bare loop. ``images``: number of images of all clients."""
    spec = experiment(detector, images=images)
    with measured_site(home, spec) as (site, model):
        train = site.data(spec.data).train
        client = min(train, key=lambda name: abs(len(train[name]) - CLIENT_IMAGES))
        for _ in turn_batches(site, spec, client):  # decode every image before both measurements
            pass
        pairs = by_turns(lambda: bare_loop(site, spec, client), lambda: turn(site, spec, client, model), repeats)
    count = len(train[client])
    return {
        "images": count,
        "turn_images_per_second": count / statistics.median(whole.wall for _, whole in pairs),
        "bare_images_per_second": count / statistics.median(bare.wall for bare, _ in pairs),
        **ratios(pairs),
    }


def round_figures(records: list[RoundRecord]) -> dict[str, float]:
    """Return the mean seconds of a round (from commit to commit) and of its parts; ``rest`` is all but learning."""
    walls = [(record.committed - before.committed).total_seconds() for before, record in itertools.pairwise(records)]
    phases = {name: statistics.mean(record.seconds[name] for record in records[1:]) for name in records[-1].seconds}
    wall = statistics.mean(walls)
    learning = phases["request_update"] + phases["stop_and_eval"]
    between = wall - sum(phases.values())
    return {
        "rounds": len(walls), "round_seconds": wall, **phases, "commit_and_report": between,
        "rest_seconds": wall - learning, "rest_share": (wall - learning) / wall,
    }  # fmt: skip


def records_of(home: Path, name: str) -> list[RoundRecord]:
    settings = Settings(home=home)
    with opened_store(settings) as objects:
        assert isinstance(objects, ObjectStore)
        return read_run(objects, settings, name).records


def smoke_records(home: Path) -> list[RoundRecord]:
    command = [sys.executable, "-m", "flows.cli", "run", "smoke", "--max-rounds", "4", "--name", "bench", "--quiet"]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "FEDBENCH_HOME": str(home)}
    subprocess.run(command, check=True, env=environment, cwd=root, stdout=subprocess.DEVNULL)
    return records_of(home, "bench")


@pytest.mark.benchmark
@pytest.mark.parametrize("detector", MEASURED)
def test_a_turn_against_the_bare_loop(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = turn_figures(tmp_path, detector, REPEATS)
    with capsys.disabled():
        print("\n" + line(found))
    assert found["ratio"] >= RATIO_AT_LEAST, found


@pytest.mark.benchmark
def test_the_cost_of_a_round_beyond_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = round_figures(smoke_records(tmp_path))
    with capsys.disabled():
        print("\n" + line(found))
    assert found["rest_share"] <= REST_AT_MOST, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", help="name of a run; without it, a smoke run is made")
    parser.add_argument("--home", type=Path, help="the home that has it")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--detector", choices=DETECTORS, help="a turn of this detector alone")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images of all clients together")
    options = parser.parse_args()
    if options.run:
        print(line(round_figures(records_of(options.home or Settings().home, options.run))))
        return
    with tempfile.TemporaryDirectory() as folder:
        detector = options.detector or MEASURED[0]
        print(line(turn_figures(Path(folder), detector, options.repeats, options.images)), flush=True)
        if options.detector is None:
            print(line(round_figures(smoke_records(Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
