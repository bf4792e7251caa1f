"""A model is registered once, and whole or not at all. The database is real SQLite, the artifacts are in a folder."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from infra.errors import TrackingUnavailable
from infra.tracking import model_folder
from infra.tracking.federation import Tracker
from infra.tracking.model_folder import ModelFiles, Origin, pinned, read_origin, save_folder
from infra.tracking.registry import (
    BestModel,
    Owner,
    model_uri,
    own_name,
    owner_of,
    register_best,
    registered_version,
)
from tests.infra.tracking.lookup import best_version

SHA, OTHER = "a" * 64, "b" * 64

# A pyfunc model from code: it answers with the bytes of its file and its input.
CODE = """
from pathlib import Path
import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

class Echo(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params):
        from helper import NAME
        text = Path(context.artifacts["model"]).read_text()
        return [{"name": NAME, "file": text, "image": image, **params, **context.model_config}
                for image in model_input["image"]]

mlflow.models.set_model(Echo())
"""


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    return Tracker.open(
        uri=uri,
        experiment="streets",
        artifact_location=str(tmp_path / "artifacts"),
        federation="street.1",
        spec_digest=SHA,
        params={},
        spec_yaml="",
        tags={},
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., BestModel]:
    code = tmp_path / "echo.py"
    code.write_text(CODE)
    package = tmp_path / "helper"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("NAME = 'helper'\n")

    def build(sha: str = SHA, *, round: int = 3, **changes: Any) -> BestModel:
        def write(path: Path) -> None:
            path.write_text(f"weights {sha[:1]}")

        files = ModelFiles(
            code=code,
            packages=(package,),
            requirements=("mlflow", "torch"),
            write_model=write,
            card="# The card\n",
            config={"nms_iou": 0.5},
        )
        return BestModel(
            name="street.1",
            federation="street.1",
            round=round,
            spec_digest=SHA,
            code_version="0.1.0",
            weights_sha256=sha,
            files=dataclasses.replace(files, **changes),
            tags={"fedbench.map50_voc10": "0.5"},
        )

    return build


def versions(tracker: Tracker) -> list[Any]:
    with tracker.answering() as client:
        return sorted(client.search_model_versions("name = 'street.1'"), key=lambda version: int(version.version))


def test_a_model_is_registered_once(tracker: Tracker, uri: str, make: Callable[..., BestModel], tmp_path: Path) -> None:
    assert best_version(uri, "street.1") is None
    (tmp_path / "scratch" / "mlflow").mkdir(parents=True)  # as after a killed process
    assert register_best(tracker, make(), tmp_path / "scratch") == "1"
    assert register_best(tracker, make(), tmp_path / "scratch") == "1"
    (version,) = versions(tracker)
    assert version.status == "READY"
    assert version.run_id == tracker.run_id
    assert version.description == "# The card\n"
    assert version.tags == {
        "fedbench.federation": "street.1",
        "fedbench.spec_digest": SHA,
        "fedbench.version": "0.1.0",
        "fedbench.round": "3",
        "fedbench.weights_sha256": SHA,
        "fedbench.map50_voc10": "0.5",
    }
    assert best_version(uri, "street.1") == "1"
    assert not (tmp_path / "scratch").exists()


def test_the_alias_goes_to_the_best(tracker: Tracker, uri: str, make: Callable[..., BestModel], tmp_path: Path) -> None:
    register_best(tracker, make(), tmp_path / "scratch")
    assert register_best(tracker, make(OTHER, round=5), tmp_path / "scratch") == "2"
    assert best_version(uri, "street.1") == "2"
    assert (
        register_best(tracker, make(), tmp_path / "scratch") == "1"
    )  # registered already, so there is no third version
    assert best_version(uri, "street.1") == "1"
    assert [version.tags["fedbench.round"] for version in versions(tracker)] == ["3", "5"]


def test_the_alias_stays_for_a_round_that_is_not_the_best(
    tracker: Tracker, uri: str, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    register_best(tracker, make(), tmp_path / "scratch")
    assert register_best(tracker, make(OTHER, round=5), tmp_path / "scratch", alias=False) == "2"
    assert best_version(uri, "street.1") == "1"
    assert registered_version(tracker, "street.1", OTHER) == "2"
    assert registered_version(tracker, "street.1", "c" * 64) is None


def test_a_clients_model_is_registered_under_a_name_of_its_own(
    tracker: Tracker, uri: str, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    name = own_name("street.1", "cam-3")
    assert owner_of(tracker, name) is None
    own = dataclasses.replace(make(), name=name, client="cam-3")
    assert register_best(tracker, own, tmp_path / "scratch") == "1"
    assert register_best(tracker, own, tmp_path / "scratch") == "1"
    assert versions(tracker) == []  # of the federation's name
    with tracker.answering() as client:
        (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.tags["fedbench.federation"] == "street.1"
    assert version.tags["fedbench.client"] == "cam-3"
    assert owner_of(tracker, name) == own.owner == Owner("street.1", "cam-3")
    assert best_version(uri, name) == "1"


def test_a_registered_model_of_another_origin_has_no_owner(tracker: Tracker) -> None:
    with tracker.answering() as client:
        client.create_registered_model("theirs")
    assert owner_of(tracker, "theirs") == Owner(None, None)
    assert owner_of(tracker, "nobody") is None


def test_a_registered_model_needs_no_pickle_and_no_checkout(
    tracker: Tracker, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    register_best(tracker, make(), tmp_path / "scratch")
    (version,) = versions(tracker)
    folder = Path(version.source)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {"MLmodel", "MODEL_CARD.md", "echo.py", "code/helper/__init__.py", "artifacts/model.safetensors"}
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pt", ".pth", ".pyc"))]
    assert (folder / "MODEL_CARD.md").read_text() == "# The card\n"
    wanted = [f"{name}=={metadata.version(name).split('+')[0]}" for name in ("mlflow", "torch")]
    assert (folder / "requirements.txt").read_text().split() == wanted
    document = yaml.safe_load((folder / "MLmodel").read_text())
    assert "python_model" not in document["flavors"]["python_function"]
    assert document["run_id"] == tracker.run_id


def test_a_registered_model_is_loaded_by_its_uri_and_has_a_signature(
    tracker: Tracker, uri: str, make: Callable[..., BestModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    register_best(tracker, make(), tmp_path / "scratch")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(model_uri("street.1"))
    example = loaded.input_example
    assert base64.b64decode(example["image"][0]).startswith(b"\x89PNG")
    (answer,) = loaded.predict(pd.DataFrame({"image": ["x"]}), params={"max_detections": 3})
    assert answer == {
        "name": "helper",
        "file": "weights a",
        "image": "x",
        "score_threshold": 0.3,
        "max_detections": 3,
        "nms_iou": 0.5,
    }
    with pytest.raises(MlflowException, match="image"):
        loaded.predict(pd.DataFrame({"picture": ["x"]}))
    assert [column.name for column in loaded.metadata.signature.outputs] == ["detections"]


def test_a_failed_registration_leaves_no_version_and_can_be_repeated(
    tracker: Tracker, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    def fail(path: Path) -> None:
        raise LookupError("no weights")

    with pytest.raises(LookupError, match="no weights"):
        register_best(tracker, make(write_model=fail), tmp_path / "scratch")
    assert versions(tracker) == []
    assert not (tmp_path / "scratch").exists()
    with tracker.answering() as client:
        (logged,) = client.search_logged_models([tracker.experiment_id])
    assert logged.status == "FAILED"
    assert register_best(tracker, make(), tmp_path / "scratch") == "1"


def test_an_artifact_store_that_fails_is_tracking_unavailable(
    tracker: Tracker, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    (tmp_path / "artifacts" / "models").write_text("in the way")
    with pytest.raises(TrackingUnavailable, match=r"MLflow at sqlite:.* failed: "):
        register_best(tracker, make(), tmp_path / "scratch")
    assert versions(tracker) == []


def test_a_long_card_is_shortened_in_the_description_only(
    tracker: Tracker, make: Callable[..., BestModel], tmp_path: Path
) -> None:
    card = "".join(f"| class {number} | 0.5 |\n" for number in range(400))
    register_best(tracker, make(card=card), tmp_path / "scratch")
    (version,) = versions(tracker)
    assert len(version.description) <= 5000
    assert version.description.endswith("| 0.5 |\n\n(The rest is in MODEL_CARD.md.)\n")
    assert (Path(version.source) / "MODEL_CARD.md").read_text() == card


def test_versions_are_pinned_without_their_local_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder.metadata, "version", lambda name: "2.9.1+cpu")
    assert pinned(("torch",)) == ["torch==2.9.1"]


ORIGIN = Origin(model_id=f"m-{'1' * 32}", run_id="b" * 32, created="2026-01-02 03:04:05.678901", python="3.12.1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_parts_and_origins_give_equal_bytes(make: Callable[..., BestModel], tmp_path: Path) -> None:
    folders = [tmp_path / name / "mlflow" for name in ("one", "two", "three")]
    other = dataclasses.replace(ORIGIN, run_id="3" * 32)
    for folder, origin in zip(folders, (ORIGIN, ORIGIN, other), strict=True):
        folder.parent.mkdir()
        save_folder(make().files, folder, origin)
    one, two, three = (contents(folder) for folder in folders)
    assert one == two
    assert {path for path in one if one[path] != three[path]} == {"MLmodel"}
    assert str(tmp_path) not in one["MLmodel"].decode()  # no path of this machine is in it
    assert read_origin(one["MLmodel"].decode()) == ORIGIN
    assert read_origin(three["MLmodel"].decode()) == other


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("run_id: " + "b" * 32, "run_id: ../../x"),
        ("model_id: m-" + "1" * 32, "model_id: s3://elsewhere"),
        ("python_version: 3.12.1", "python_version: 3.12.1; import x"),
        ("'2026-01-02 03:04:05.678901'", "!!python/object/apply:os.system [x]"),
    ],
)
def test_an_origin_with_a_malformed_value_is_refused(
    make: Callable[..., BestModel], tmp_path: Path, line: str, instead: str
) -> None:
    text = (
        f"model_id: m-{'1' * 32}\nrun_id: {'b' * 32}\nutc_time_created: '2026-01-02 03:04:05.678901'\n"
        "    python_version: 3.12.1\n"
    )
    assert read_origin(text) == ORIGIN
    assert line in text
    assert read_origin(text.replace(line, instead)) is None
