"""The regression rule on the noise of real training: small federations over eight seeds.

Three seeds are the accepted result and three others a rerun, in all combinations. The planted regressions are half the
learning rate, and a class without training boxes. A run takes half a minute of one core, so all take eight minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.environment import this_environment
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.presets import smoke
from tasks.spec.records import Metrics
from tasks.spec.suite import RegressionRule
from tasks.spec.suite_records import CellResult, Point, SuiteResult
from tasks.suite.regression import compare_results
from tests.benchmarks.small_federations import train_federation

SEEDS, ACCEPTED = (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3)
DROPPED = "sunshade"

# In four rounds, the pretrained detector learns enough that half the learning rate lowers its figures. A small network
# trained from scratch does not.
FIELDS = {
    "max_rounds": 4,
    "data.train_images": 200,
    "data.test_images": 60,
    "data.width": 192,
    "data.height": 160,
    "detector": {"kind": "fcos-lite0", "width": 160, "height": 128},
    "training.optimizer": {"kind": "adamw", "lr": 0.001},
    "training.schedule": {"hold": 2, "decay": 2, "floor": 0.05},
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
def test_noise_between_seeds_is_no_regression_but_planted_losses_are(tmp_path: Path) -> None:
    spec = with_fields(smoke(), FIELDS, source="small")
    slow = with_fields(spec, {"training.optimizer.lr": 0.0005}, source="small")

    def runs(of: FederationSpec, seeds: tuple[int, ...], dropped: str | None = None) -> dict[int, Metrics]:
        found = {}
        for seed in seeds:
            seeded = of.model_copy(update={"seed": seed})
            found[seed] = train_federation(seeded, tmp_path, dropped_class=dropped)
            print(f"seed {seed}: {figures(found[seed])} {found[seed].per_class}", flush=True)
        return found

    noise, rule = runs(spec, SEEDS), RegressionRule()

    def of(seeds: tuple[int, ...]) -> SuiteResult:
        return result_of(spec, {seed: noise[seed] for seed in seeds})

    accepted = of(ACCEPTED)
    pairs = [
        (before, after)
        for before in itertools.combinations(SEEDS, 3)
        for after in itertools.combinations(set(SEEDS) - set(before), 3)
    ]
    alarms = [bool(compare_results(of(before), of(after), rule).regressions) for before, after in pairs]
    print("reruns with an alarm:", sum(alarms), "of", len(alarms))
    planted = {
        "half the learning rate": compare_results(accepted, result_of(slow, runs(slow, ACCEPTED)), rule),
        f"without {DROPPED}": compare_results(accepted, result_of(spec, runs(spec, ACCEPTED, DROPPED)), rule),
    }
    for what, comparison in planted.items():
        print(what, *(item.message for item in comparison.regressions), sep="\n  ", flush=True)
    assert not any(alarms)
    assert planted["half the learning rate"].regressions
    assert f"AP {DROPPED}" in {item.metric for item in planted[f"without {DROPPED}"].regressions}
