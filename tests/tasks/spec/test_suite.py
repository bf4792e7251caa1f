"""A suite's specification: its cells, its digest, what it refuses, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tasks.errors import SpecError
from tasks.spec.clients import ByField
from tasks.spec.data import Coco, FederatedStreet
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.participation import Participation
from tasks.spec.presets import preset
from tasks.spec.references import is_local_only, is_twin, twin
from tasks.spec.strategies import AnyStrategy, FedAvgSpec, StrategySpec
from tasks.spec.suite import Experiment, SuiteSpec, cells_of, load_suite, parse_suite, with_seeds
from tasks.spec.suite_presets import SUITES, suite_preset

SPEC = preset("smoke")
POOLED = {"data": {"kind": "synthetic-street", "pooled": True}}


def suite(*experiments: Experiment, **fields: Any) -> SuiteSpec:
    return SuiteSpec(name="test", experiments=experiments, **fields)


def test_the_cells_of_an_experiment_are_its_federations_and_their_references() -> None:
    few = SPEC.model_copy(update={"participation": Participation(clients=("1", "3"))})
    both = suite(Experiment(name="a", spec=few, seeds=(7, 8), local_only=True, local_seeds=1))
    cells = cells_of(both)
    assert [cell.name for cell in cells] == [
        "a.s7", "a.s7-central", "a.s7-local-1", "a.s7-local-3", "a.s8", "a.s8-central",
    ]  # fmt: skip
    federations = {cell.seed: cell.spec for cell in cells if cell.role == "federated"}
    for cell in cells:
        federation = federations[cell.seed]
        assert cell.spec.seed == cell.seed
        assert (cell.spec.max_rounds, cell.spec.training) == (federation.max_rounds, federation.training)
        assert is_twin(federation, cell.spec) == (cell.role == "centralised")
        assert is_local_only(federation, cell.spec) == (cell.role == "local-only")
    assert [cell.spec.clients for cell in cells[1:4]] == [("all",), ("1",), ("3",)]


def test_experiments_share_the_specification_of_a_common_reference() -> None:
    twenty = SPEC.model_copy(update={"data": SPEC.data.model_copy(update={"split": 20})})
    cells = cells_of(suite(Experiment(name="five", spec=SPEC), Experiment(name="twenty", spec=twenty)))
    digests = {cell.name: cell.spec.digest for cell in cells}
    assert digests["five.s1234"] != digests["twenty.s1234"]
    assert digests["five.s1234-central"] == digests["twenty.s1234-central"]
    assert is_twin(twenty, twin(SPEC))


def test_the_digest_depends_on_what_is_run() -> None:
    one = suite(Experiment(name="a", spec=SPEC))
    assert one.digest == suite(Experiment(name="a", spec=SPEC), target=0.9, metric="map_coco").digest
    others = [
        suite(Experiment(name="b", spec=SPEC)),
        suite(Experiment(name="a", spec=SPEC, centralised=False)),
        suite(Experiment(name="a", spec=SPEC, seeds=(1, 2))),
        suite(Experiment(name="a", spec=SPEC.model_copy(update={"max_rounds": 3}))),
        with_seeds(one, [5]),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "Cpu"}, "name"),
        ({"experiments": []}, "experiments"),
        ({"experiments": [{"name": "a", "spec": {}}] * 2}, "experiments: expected each name once"),
        ({"experiments": [{"name": "a", "spec": {}, "seeds": [1, 1]}]}, "seeds: expected each seed once"),
        ({"experiments": [{"name": "a", "spec": POOLED}]}, "spec.data: expected a federation"),
        ({"experiments": [{"name": "a", "spec": {}, "local_seeds": 1}]}, "local_seeds: expected none unless"),
        (
            {"experiments": [{"name": "a", "spec": {}, "local_only": True, "local_seeds": 2}]},
            "local_seeds: expected at most 1, the number of seeds, found 2",
        ),
        ({"metric": "map"}, "metric"),
        ({"version": 2}, "newer than this fedbench"),
    ],
)  # fmt: skip
def test_mistakes_are_named(fields: dict[str, Any], says: str) -> None:
    document = {"name": "test", "experiments": [{"name": "a", "spec": {}}], **fields}
    with pytest.raises(SpecError, match=says):
        parse_suite(document, source="suite.yaml")


def test_a_mistake_in_an_experiment_is_named_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_suite({"name": "test", "experiments": [{"name": "a", "spec": {}, "seed": 1}]}, source="suite.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("suite.yaml: experiments.0.seed: no such field; expected one of: name, spec, seeds")
    with pytest.raises(SpecError, match="experiments: expected a list of at least 1"):
        parse_suite({"name": "test", "experiments": []}, source="suite.yaml")


def test_local_only_needs_devices_by_name() -> None:
    own = FederationSpec(data=Coco(name="mine", clients=ByField()))
    asked = suite(Experiment(name="a", spec=own, local_only=True))
    with pytest.raises(SpecError, match=r"experiments.a: local_only: expected devices by name"):
        cells_of(asked)
    named = own.model_copy(update={"participation": Participation(clients=("x", "y"))})
    cells = cells_of(suite(Experiment(name="a", spec=named, local_only=True)))
    assert [cell.device for cell in cells if cell.role == "local-only"] == ["x", "y"]


def test_a_file_may_start_from_presets_and_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SPEC.to_yaml())
    document = {
        "name": "mine",
        "experiments": [
            {"name": "preset", "spec": "street5_laptop", "set": {"training.local_epochs": 5}, "seeds": [1, 2]},
            {"name": "file", "spec": "base.yaml", "set": {"data.split": 20}},
            {"name": "whole", "spec": {"max_rounds": 3}},
        ],
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(document))
    laptop, file, whole = load_suite(path).experiments
    assert laptop.spec.training.local_epochs == 5
    assert laptop.spec.detector == preset("street5_laptop").detector
    assert (file.spec.data.own_devices or ())[-1] == "20"
    assert whole.spec == FederationSpec(max_rounds=3)
    again = tmp_path / "again.yaml"
    again.write_text(load_suite(path).to_yaml())
    assert load_suite(again) == load_suite(path)


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        ({"name": "a", "spec": "nothing.yaml"}, "nothing.yaml: cannot be read"),
        ({"name": "a"}, r"experiments\.0\.spec: missing"),
        ({"name": "a", "spec": "smoke", "set": ["x"]}, "experiments.a: set: expected a mapping"),
        ({"name": "a", "spec": "smoke", "set": {"training.epochs": 5}}, "experiments.a: training.epochs"),
        ("a", "experiments"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, experiment: Any, says: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "experiments": [experiment]}))
    with pytest.raises(SpecError, match=says):
        load_suite(path)


# The experiments of the final tier, and the screening's trials that their recipes are from.
RECIPES = {
    "fedavg-adamw": "fedavg-adamw",
    "fedavg-sgd": "fedavg-sgd",
    "fedexp": "fedexp-b",
    "fedavg-objects": "fedavg-objects",
    "fedprox": "fedprox",
    "ditto": "ditto",
}


@pytest.mark.parametrize("name", SUITES)
def test_the_presets_of_suites_are_valid(name: str) -> None:
    found = suite_preset(name)
    assert found.name == name
    assert (SUITES[name].__doc__ or "").strip()
    passes: dict[str, set[int]] = {}
    for cell in cells_of(found):
        passes.setdefault(cell.experiment, set()).add(cell.spec.max_rounds * cell.spec.training.local_epochs)
        assert cell.spec.training.schedule.hold + cell.spec.training.schedule.decay in (cell.spec.max_rounds, 1_000_000)
    assert all(len(found) == 1 for found in passes.values())
    assert any(cell.spec.detector.kind == "fcos-lite0" for cell in cells_of(found))
    # The longest name of a federation in a scheduled run of the suite.
    longest = max(len(cell.name) for cell in cells_of(found))
    assert len(f"{name}-20261127T030000.") + longest + len(".3f2a9c1e") <= 100


def test_the_error_of_an_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="nightly: no such suite or file; expected a YAML file or one of: smoke, cpu"):
        suite_preset("nightly")


def test_a_federations_file_is_no_suite(tmp_path: Path) -> None:
    path = tmp_path / "yards.yaml"
    path.write_text("data: {kind: synthetic-street}\n")
    with pytest.raises(SpecError, match=r"yards\.yaml: expected a suite, found a federation's specification"):
        load_suite(path)


@pytest.mark.parametrize("name", ["methods", "methods-smoke"])
def test_the_suites_of_methods_have_every_method_and_its_baseline(name: str) -> None:
    """The kinds come from the union, so that a new method is in the suites without a further line."""
    specs = {experiment.name: experiment.spec for experiment in suite_preset(name).experiments}
    assert {spec.strategy.kind for spec in specs.values()} == {kind_of(kind) for kind in get_args(AnyStrategy)}
    baselines = [spec for spec in specs.values() if spec.strategy == FedAvgSpec()]
    assert {spec.training.optimizer.kind for spec in baselines} == {"adamw", "sgd"}
    for spec in specs.values():
        assert spec.model_copy(update={"strategy": FedAvgSpec()}) in baselines
        assert spec.max_rounds * spec.training.local_epochs == specs["fedavg-adamw"].max_rounds
        assert not list(spec.strategy.faults(spec))
    assert specs["scaffold"].training.optimizer.kind == "sgd"
    assert specs["fedadam"].training.optimizer.kind == "adamw"


def test_every_method_of_the_screening_has_two_trials_on_held_out_images() -> None:
    specs = {experiment.name: experiment.spec for experiment in suite_preset("methods").experiments}
    first = {name: spec for name, spec in specs.items() if not name.endswith("-b")}
    assert specs.keys() == first.keys() | {f"{name}-b" for name in first}
    for name, spec in first.items():
        second = specs[f"{name}-b"]
        assert second.strategy.kind == spec.strategy.kind
        changed = {
            key for key, value in flatten(second.model_dump()).items() if flatten(spec.model_dump())[key] != value
        }
        assert len(changed) == 1, changed
        assert {spec.evaluation.on, second.evaluation.on} == {"holdout"}
        assert spec.data.holdout == second.data.holdout is not None


def test_the_final_tier_has_the_recipes_of_the_screening_on_all_training_images() -> None:
    trials = {experiment.name: experiment.spec for experiment in suite_preset("methods").experiments}
    final = {experiment.name: experiment for experiment in suite_preset("methods-final").experiments}
    of_data = {"clean-": "clean", "street20-": "published", "yolov3-tiny-": "published"}
    for name, experiment in final.items():
        prefix = next((prefix for prefix in of_data if name.startswith(prefix)), "")
        spec, trial = experiment.spec, trials[RECIPES[name.removeprefix(prefix)]]
        assert isinstance(spec.data, FederatedStreet)
        assert (spec.data.holdout, spec.evaluation.on, spec.participation.shards) == (None, "test", 1)
        assert spec.data.division == of_data.get(prefix, "published")
        assert spec.data.split == (20 if prefix == "street20-" else 5)
        assert spec.strategy == trial.strategy
        assert experiment.seeds == ((1, 2, 3) if prefix in ("", "clean-") else (1,))
        if prefix == "yolov3-tiny-":
            assert (spec.detector, spec.training) == (preset("street5").detector, preset("street5").training)
        else:
            assert spec.training == trial.training.model_copy(update={"schedule": spec.training.schedule})
            assert spec.max_rounds * spec.training.local_epochs == (100 if prefix == "street20-" else 40)
    assert {name for name, experiment in final.items() if experiment.centralised} == {
        "fedavg-adamw",
        "yolov3-tiny-fedavg-adamw",
    }
    assert len(cells_of(suite_preset("methods-final"))) == 6 * 3 + 3 + 2 * 3 + 2 + 3


def kind_of(spec: type[StrategySpec]) -> str:
    return str(spec.model_fields["kind"].default)
