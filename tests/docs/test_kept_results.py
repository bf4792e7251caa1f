"""The results that ``docs/results`` keeps are of suites that fedbench still has, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.suite.export_file import read_export
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_presets import suite_preset

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
