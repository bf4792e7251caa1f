"""The suite ``methods-smoke``: every federated method runs, and the report pairs each with its FedAvg."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import pandas as pd
import pytest
from PIL import Image

from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.suite_layout import SuiteLayout
from infra.tracking.client import mlflow_environment
from tasks.spec.suite_presets import suite_preset
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import compare_methods
from tests.integration.homes import Home, assert_no_process_left

pytestmark = pytest.mark.integration

LAYOUT = SuiteLayout("federations", "methods")
EXPERIMENTS = {experiment.name: experiment.spec for experiment in suite_preset("methods-smoke").experiments}


@dataclass(frozen=True)
class Finished:
    home: Home
    result: SuiteResult
    output: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = Home(tmp_path_factory.mktemp("methods"))
    done = home.run("suite", "run", "methods-smoke", "--name", "methods", timeout=900)
    assert done.returncode == 0, done.stdout
    assert_no_process_left(home)
    return Finished(home, SuiteResult.model_validate(home.document(LAYOUT.result)), done.stdout)


def test_every_method_runs_to_its_end(finished: Finished) -> None:
    result = finished.result
    assert {cell.experiment for cell in result.cells} == EXPERIMENTS.keys()
    assert result.failed == ()
    for cell in result.cells:
        assert cell.last.round == EXPERIMENTS[cell.experiment].max_rounds
        assert cell.last.passes == pytest.approx(2)
        assert cell.last.figures["loss"] is not None


def test_no_two_methods_have_the_same_figures(finished: Finished) -> None:
    """Methods that never took effect would all have FedAvg's figures.

    FedExP is left out: with two clients it extrapolates only if their changes point away from each other.
    """
    losses = {cell.experiment: cell.last.figures["loss"] for cell in finished.result.cells}
    del losses["fedexp"]
    assert losses.pop("ditto") == losses["fedavg-adamw"]  # its shared model is that of FedAvg
    assert len(set(losses.values())) == len(losses), losses


def test_each_method_is_paired_with_its_fedavg(finished: Finished) -> None:
    compared = {item.experiment: item for item in compare_methods(finished.result)}
    assert compared.keys() == EXPERIMENTS.keys()
    assert compared["scaffold"].baseline == "fedavg-sgd"
    assert compared["fedadam"].baseline == "fedavg-adamw"
    assert all(item.paired is not None for item in compared.values() if item.baseline is not None)


def test_the_report_has_the_table_of_methods(finished: Finished) -> None:
    folder = finished.home.path / "suites" / "methods" / "report"
    page = (folder / "report.html").read_text()
    assert "Methods: map50_voc10 less that of FedAvg with the same local training" in page
    assert r"\label{tab:methods-smoke-methods}" in (folder / "table.tex").read_text()
    assert (folder / "federations-by-round.png").stat().st_size > 10_000


def test_a_clients_own_model_is_registered_on_request(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FedPer no shared model is complete, so the run itself registers none."""
    import mlflow

    home = finished.home
    (cell,) = [cell for cell in finished.result.cells if cell.experiment == "fedper" and cell.role == "federated"]
    client = home.records(cell.federation)[0].clients[0].client
    with EmbeddedServices(Settings(home=home.path)) as services:
        outputs = [home.run("register", f"{cell.federation}@{client}").stdout for _ in range(2)]
        uri = f"models:/{cell.federation}+{client}@best"
        assert outputs[0].splitlines()[-1].endswith(f": {uri}, version 1"), outputs[0]
        assert outputs[1].splitlines()[-1].endswith(f": {uri}, version 1, registered before"), outputs[1]
        store = services.s3_endpoint()
        assert store.access_key is not None
        assert store.secret_key is not None
        keys = store.access_key.get_secret_value(), store.secret_key.get_secret_value()
        for name, value in mlflow_environment(store.endpoint, store.region, *keys).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow_tracking_uri)
        loaded = mlflow.pyfunc.load_model(uri)
    picture = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, format="PNG")
    images = pd.DataFrame({"image": [base64.b64encode(picture.getvalue()).decode()]})
    (answer,) = loaded.predict(images, params={"score_threshold": 0.0, "max_detections": 3})
    assert len(answer["detections"]) <= 3
