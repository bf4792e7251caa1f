"""The results that ``docs/results`` keeps are of suites that fedbench still has, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.suite.export_file import read_export
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.street_suites import BASELINES, BEST, BEST_PERSONAL, SECOND
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_presets import suite_preset
from tasks.spec.suite_records import CellResult

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
FILES = sorted(FOLDER.glob("*.json"))
# The data set fills these fields when a suite starts.
FILLED = ("participation.clients", "data.digest", "detector.weights")


def changed(spec: FederationSpec, preset: FederationSpec) -> dict[str, tuple[object, object]]:
    """Return the fields of ``spec`` that ``preset`` has otherwise, but for those that a data set fills."""
    found, expected = flatten(spec.model_dump(mode="json")), flatten(preset.model_dump(mode="json"))
    names = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    return {
        name: (found.get(name), expected.get(name))
        for name in names
        if not (name.startswith(FILLED) and expected.get(name) is None)
    }


def without_specs(suite: SuiteSpec) -> dict[str, object]:
    experiments = [experiment.model_dump(mode="json", exclude={"spec"}) for experiment in suite.experiments]
    return {**suite.model_dump(mode="json", exclude={"experiments"}), "experiments": experiments}


def test_there_are_kept_results() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kept_results_are_of_the_suite_as_it_is(path: Path) -> None:
    suite = read_export(path).suite
    preset = suite_preset(suite.name)
    assert without_specs(suite) == without_specs(preset)
    specs = {experiment.name: experiment.spec for experiment in preset.experiments}
    for experiment in suite.experiments:
        assert changed(experiment.spec, specs[experiment.name]) == {}, experiment.name


def test_the_final_tier_has_the_screenings_best_trials() -> None:
    export = read_export(FOLDER / "methods.json")
    specs = {experiment.name: experiment.spec for experiment in export.suite.experiments}
    figures: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for cell in export.cells.values():
        assert cell.imported is not None
        result = cell.imported.result
        figures[specs[result.experiment].strategy.personal][result.experiment] = figure(result)
    shared, personal = figures[False], figures[True]
    assert len(shared) + len(personal) == len(specs)

    def best(trials: dict[str, float]) -> list[str]:
        """Return the better trial of each method, the best method first."""
        ordered = sorted(trials, key=lambda name: -trials[name])
        methods = [name.removesuffix(SECOND) for name in ordered]
        return [name for n, name in enumerate(ordered) if methods[n] not in methods[:n]]

    recipes = best(shared)
    assert set(BASELINES) <= set(recipes)
    assert tuple(name for name in recipes if specs[name].strategy != FedAvgSpec())[: len(BEST)] == BEST
    assert best(personal)[0] == BEST_PERSONAL


def figure(result: CellResult) -> float:
    """Return the figure of a trial: that of the shared model, or the mean over clients of their own models'."""
    metric = "map50_voc10"
    mean = result.last.figures.get(metric) if result.personal is None else result.personal.mean(metric)
    assert mean is not None
    return mean
