"""``fedbench ui``: which names have pages, and the pages of a suite run in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.commands.pages import is_suite_run, suite_page
from flows.suite.plan import claim
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.tracking.suite import SuiteTracker
from tasks.errors import SpecError
from tasks.spec.presets import preset
from tasks.spec.suite import Experiment, SuiteSpec

SUITE = SuiteSpec(name="tiny", experiments=(Experiment(name="a", spec=preset("smoke")),))
BASE = "http://127.0.0.1:5000"


@pytest.fixture
def store(object_store: ObjectStore, settings: Settings) -> ObjectStore:
    """Return the store with two federations and two suite runs."""
    for name in ("one", "two"):
        key = FederationLayout(settings.s3.prefix, name).spec
        object_store.put_json(key, preset("smoke").model_dump(mode="json"))
    for name in ("tiny-1", "tiny-2"):
        claim(object_store, settings.s3.prefix, name, SUITE)
    return object_store


def test_federations_and_one_suite_run_have_pages(store: ObjectStore, settings: Settings) -> None:
    assert [is_suite_run(store, settings, names) for names in (["one"], ["one", "two"], ["tiny-1"])] == [
        False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["tiny-1", "tiny-2"], "tiny-1: expected federations to compare, or one suite run alone, found a suite run"),
        (["one", "tiny-1"], "tiny-1: expected federations to compare, or one suite run alone"),
        (
            ["tiny-3"],
            "tiny-3: no such federation or suite run in the store; expected one of: one, two, tiny-1, tiny-2; did you",
        ),
    ],
)
def test_other_names_are_refused(store: ObjectStore, settings: Settings, names: list[str], says: str) -> None:
    with pytest.raises(SpecError) as refused:
        is_suite_run(store, settings, names)
    assert str(refused.value).startswith(says)


def test_a_suite_runs_page_is_that_of_its_parent_run(settings: Settings, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert suite_page(settings, uri, "tiny-1", BASE) == f"{BASE}/#/experiments?workflowType=machine_learning"
    tracker = SuiteTracker.open(uri, settings.mlflow_experiment, "tiny-1", {}, location=str(tmp_path / "files"))
    page = suite_page(settings, uri, "tiny-1", BASE)
    assert page.startswith(f"{BASE}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}")
    assert suite_page(settings, uri, "tiny-2", BASE) == f"{BASE}/#/experiments?workflowType=machine_learning"
