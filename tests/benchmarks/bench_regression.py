"""The rule for regressions on the noise of real training: small federations over eight seeds.

Three seeds are the accepted result; reruns are drawn from the runs of the five others. Planted are half the learning
rate, and a class whose training boxes are gone. A run takes about 50 s of one core: a quarter of an hour in all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_federations import train_federation

from tasks.detectors import yolo_network
from tasks.detectors.yolo_network import Conv
from tasks.environment import this_environment
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.presets import smoke
from tasks.spec.records import Metrics
from tasks.spec.suite import RegressionRule
from tasks.spec.suite_records import CellResult, Point, SuiteResult
from tasks.suite.regression import compare_results

ACCEPTED, OTHERS = (1, 2, 3), (4, 5, 6, 7, 8)
DROPPED = "basket"  # of those that this short training learns
RERUNS = 20

FIELDS = {
    "max_rounds": 10,
    "data.train_images": 240,
    "data.test_images": 40,
    "data.width": 128,
    "data.height": 96,
    "detector.width": 128,
    "detector.batch_norm_momentum": 0.3,
    "training.optimizer": {"kind": "adamw", "lr": 0.003},
    "training.schedule": {"hold": 6, "decay": 4, "floor": 0.1},
}


def result_of(spec: FederationSpec, runs: Mapping[int, Metrics]) -> SuiteResult:
    cells = tuple(
        CellResult(
            experiment="small", role="federated", seed=seed, spec_digest=spec.digest, federation="f", clients=5,
            points=(Point(round=spec.max_rounds, figures=figures(run), passes=0, seconds=0, exchanged=0),),
            per_class=run.per_class, moved=0,
        )
        for seed, run in runs.items()
    )  # fmt: skip
    return SuiteResult(
        suite="small", suite_run="run", suite_digest="a" * 64, metric="map50_voc10", target=0.5, code_version="here",
        environment=this_environment(spec), created=datetime.now(UTC), cells=cells,
    )  # fmt: skip


def figures(run: Metrics) -> dict[str, float | None]:
    return {name: getattr(run, name) for name in ("map50_voc10", "map_coco", "recall", "loss")}


@pytest.mark.benchmark
def test_noise_between_seeds_is_no_regression_and_what_is_planted_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarter = tuple(
        dataclasses.replace(layer, filters=max(layer.filters // 4, 16)) if isinstance(layer, Conv) else layer
        for layer in yolo_network.YOLOV3_TINY_LAYERS
    )
    monkeypatch.setattr(yolo_network, "YOLOV3_TINY_LAYERS", quarter)
    spec = with_fields(smoke(), FIELDS, source="small")
    slow = with_fields(spec, {"training.optimizer.lr": 0.0015}, source="small")

    def runs(of: FederationSpec, seeds: tuple[int, ...], dropped: str | None = None) -> dict[int, Metrics]:
        found = {}
        for seed in seeds:
            seeded = of.model_copy(update={"seed": seed})
            found[seed] = train_federation(seeded, tmp_path, dropped_class=dropped)
            print(f"seed {seed}: {figures(found[seed])} {found[seed].per_class}", flush=True)
        return found

    noise, rule = runs(spec, ACCEPTED + OTHERS), RegressionRule()
    accepted = result_of(spec, {seed: noise[seed] for seed in ACCEPTED})
    triples = itertools.islice(itertools.permutations(OTHERS, 3), RERUNS)
    alarms = [
        compare_results(accepted, result_of(spec, {seed: noise[seed] for seed in triple}), rule).regressions
        for triple in triples
    ]
    print("reruns with an alarm:", sum(map(bool, alarms)), "of", RERUNS)
    planted = {
        "half the learning rate": compare_results(accepted, result_of(slow, runs(slow, ACCEPTED)), rule),
        f"without {DROPPED}": compare_results(accepted, result_of(spec, runs(spec, ACCEPTED, DROPPED)), rule),
    }
    for what, comparison in planted.items():
        print(what, *(item.message for item in comparison.regressions), sep="\n  ", flush=True)
    assert not any(alarms)
    assert planted["half the learning rate"].regressions
    assert f"AP {DROPPED}" in {item.metric for item in planted[f"without {DROPPED}"].regressions}
