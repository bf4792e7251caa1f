"""Registered models, changed by an intruder, are compared with the store's records. Store and MLflow are real."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from flows.commands.open_model import open_model
from flows.commands.verify import Verified, verify_model
from flows.views.registration import model_files
from infra.servers.database import mlflow_database_uri
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.tracking.model_folder import Origin, save_folder
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of, write_state
from tasks.errors import DataError, SpecError
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Metrics, RoundRecord
from tests.flows.command import fedbench
from tests.records import client_info, round_record

SPEC = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5), detector=YoloV3TinySpec(width=64, height=64)
)
ORIGIN = Origin(model_id=f"m-{'1' * 32}", run_id="b" * 32, created="2026-01-02 03:04:05.678901", python="3.12.1")
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@dataclass(frozen=True)
class Registered:
    """The run ``mine`` of two rounds, the first one the best, and its model as registered in MLflow."""

    settings: Settings
    folder: Path
    marker: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(mlflow_database_uri(self.settings))

    def copy(self, target: Path) -> Path:
        return Path(shutil.copytree(self.folder, target, copy_function=os.link))

    def verify(self, folder: Path | str, **options: Any) -> Verified:
        return verify_model(self.settings, str(folder), **options)


def record_of(number: int, model: WeightRef) -> RoundRecord:
    client = client_info(train_size=8, test_digest="0" * 64, class_counts={"chair": 1})
    return round_record(
        number,
        federation="mine",
        spec_digest=SPEC.digest,
        clients=(client,),
        model=model,
        metrics=Metrics(map50_voc10=0.25),
    )


@pytest.fixture(scope="module")
def registered(s3_settings: S3Settings, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    resolved = s3_settings.model_copy(update={"prefix": "verified"})
    root = tmp_path_factory.mktemp("verified")
    settings = Settings(home=root / "home", s3=resolved)
    objects = ObjectStore(resolved)
    weights = WeightStore(objects, settings.home / "cache" / "weights", 1000)
    layout = FederationLayout("verified", "mine")
    objects.put_json(layout.spec, SPEC.model_dump(mode="json"))
    files = []
    for number in range(2):
        path = root / f"{number}.safetensors"
        write_state(state_of(build_detector(SPEC.detector, 1, seed=number)), path)
        stored = weights.put(layout.global_weights(number), path)
        record = record_of(number, WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes))
        objects.put_json(layout.marker(number), record.model_dump(mode="json"))
        files.append(model_files(SPEC, record, written_file(path)))
    folder = root / "registered" / "mlflow"
    folder.parent.mkdir()
    save_folder(files[0], folder, ORIGIN)
    found = Registered(settings, folder, root / "ran")
    for name in ("mine", "foreign"):
        found.client.create_registered_model(name)
        found.client.create_model_version(name, source=str(folder))
        found.client.set_registered_model_alias(name, "best", "1")
    return found


def replaced(path: Path, content: bytes | str) -> None:
    """Write ``content`` into a new file at ``path``: files of a copy are hard links to the original's."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def found(verified: Verified) -> dict[str, str]:
    return {difference.path: difference.reason for difference in verified.differences}


def test_a_model_as_it_was_registered_has_no_difference(registered: Registered, tmp_path: Path) -> None:
    verified = registered.verify(registered.folder)
    assert verified.differences == verified.notes == ()
    assert verified.title == f"{registered.folder} (mine, round 0)"
    assert verified.files == sum(path.is_file() for path in registered.folder.rglob("*")) > 50
    saved = tmp_path / "below" / "saved"
    for reference in ("mine", "models:/mine@best", "models:/mine/1", "models:/mine/latest"):
        verified = registered.verify(reference, save=None if saved.exists() else saved)
        assert verified.differences == verified.notes == ()
    assert verified.title == "models:/mine/latest (mine, round 0)"
    assert saved.stat().st_mode & 0o777 == 0o700
    replaced(
        saved / "registered_model_meta", "model_name: mine\nmodel_version: '1'\n"
    )  # MLflow adds this file to a download
    assert registered.verify(saved).differences == ()
    saved.chmod(0o777)
    assert "others can write to" in registered.verify(saved).notes[0]


def test_every_changed_file_is_named(registered: Registered, tmp_path: Path) -> None:
    folder = registered.copy(tmp_path / "model")
    evil = CODE.format(marker=str(registered.marker))
    replaced(folder / "served_model.py", evil + (folder / "served_model.py").read_text())
    replaced(folder / "code" / "tasks" / "__init__.py", evil)
    replaced(folder / "code" / "torch.py", evil)
    replaced(folder / "code" / "tasks" / "__pycache__" / "errors.cpython-311.pyc", b"\0")
    replaced(folder / "python_model.pkl", pickle.dumps(1))
    replaced(folder / "a\x1b[2Jb", "")
    (folder / "empty").mkdir()
    (folder / "code" / "tasks" / "errors.py").unlink()
    (folder / "code" / "tasks" / "errors.py").symlink_to(registered.folder / "code" / "tasks" / "errors.py")
    (folder / "conda.yaml").unlink()
    os.mkfifo(folder / "conda.yaml")
    (folder / "MODEL_CARD.md").unlink()
    requirements = (folder / "requirements.txt").read_text().split("\n")
    replaced(folder / "requirements.txt", "\n".join(["evil==1.0", *requirements[1:]]))
    first = (registered.folder / "served_model.py").read_text().split("\n")[0]
    verified = registered.verify(folder)
    assert found(verified) == {
        "served_model.py": f"line 1: expected {first}, found import pathlib",
        "code/tasks/__init__.py": "line 1: expected , found import pathlib",
        "code/torch.py": "expected no such file",
        "code/tasks/__pycache__": "expected no such folder",
        "code/tasks/__pycache__/errors.cpython-311.pyc": "expected no such file",
        "python_model.pkl": "expected no such file",
        "'a\\x1b[2Jb'": "expected no such file",
        "empty": "expected no such folder",
        "code/tasks/errors.py": "expected a file, found a link",
        "conda.yaml": "expected a file, found a special file",
        "MODEL_CARD.md": "missing",
        "requirements.txt": f"line 1: expected {requirements[0]}, found evil==1.0",
    }
    assert "another version registered it (the round was computed by 0)" in verified.notes[0]
    assert not registered.marker.exists()


def written_file(path: Path) -> Callable[[], Path]:
    """Return a function that returns ``path``."""
    return lambda: path


def changed_weights(path: Path) -> None:
    state = load_file(path)
    next(iter(state.values())).add_(1)
    save_file(state, path)


def as_other_bytes(path: Path) -> None:
    path.write_bytes(b"x" * 100)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_link(path: Path) -> None:
    path.rename(path.with_name("x"))
    path.symlink_to("x")


MODEL_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "other tensors": (changed_weights, "its weights (sha256 "),
    "no safetensors": (as_other_bytes, "expected a safetensors file"),
    "missing": (lambda path: path.unlink(), "missing"),
    "too large": (lambda path: os.truncate(path, 10**9), "expected at most "),
    "a folder": (as_folder, "expected a file, found a folder"),
    "a link": (as_link, "expected a file, found a link"),
}


@pytest.mark.parametrize("case", MODEL_FILES)
def test_a_changed_model_file_is_named(registered: Registered, tmp_path: Path, case: str) -> None:
    folder = registered.copy(tmp_path / "model")
    path = folder / "artifacts" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    change, reason = MODEL_FILES[case]
    change(path)
    verified = registered.verify(folder, run="mine")
    differences = found(verified)
    assert differences.pop("artifacts/model.safetensors").startswith(reason)
    assert set(differences) <= {"artifacts/x"}
    assert verified.title.endswith(" (mine)")


def test_a_changed_card_in_the_model_file_is_found_too(registered: Registered, tmp_path: Path) -> None:
    folder = registered.copy(tmp_path / "model")
    path = folder / "artifacts" / "model.safetensors"
    state = load_file(path)
    path.unlink()
    save_file({name: state[name] for name in sorted(state)}, path, metadata={"fedbench": "{}"})
    assert found(registered.verify(folder, run="mine")).keys() == {"artifacts/model.safetensors"}
    with pytest.raises(DataError, match="header 'fedbench'"):
        registered.verify(folder)


FLAVOR = "loader_module: mlflow.pyfunc.loaders.code_model"
ML_MODEL = {
    "loader": (FLAVOR, "loader_module: evil"),
    "code path": ("model_code_path: served_model.py", "model_code_path: evil.py"),
    "code folder": ("code: code", "code: ../elsewhere"),
    "a pickle": (FLAVOR, FLAVOR + "\n    python_model: python_model.pkl"),
    "environment": ("virtualenv: python_env.yaml", "virtualenv: other.yaml"),
    "another flavour": (
        "is_signature_from_type_hint",
        "  sklearn: {pickled_model: m.pkl}\nis_signature_from_type_hint",
    ),
    "a field twice": ("run_id: " + "b" * 32, "run_id: " + "b" * 32 + "\nrun_id: x"),
    "an id of another form": ("run_id: " + "b" * 32, "run_id: ../x"),
    "a rule": ("nms_iou: 0.5", "nms_iou: 0.9"),
}


@pytest.mark.parametrize("case", ML_MODEL)
def test_a_changed_mlmodel_is_named(registered: Registered, tmp_path: Path, case: str) -> None:
    folder = registered.copy(tmp_path / "model")
    text = (folder / "MLmodel").read_text()
    line, instead = ML_MODEL[case]
    assert text.count(line) == 1
    replaced(folder / "MLmodel", text.replace(line, instead))
    differences = found(registered.verify(folder))
    assert differences.pop("MLmodel").startswith("line ")
    assert set(differences) <= {"conda.yaml", "python_env.yaml"}


def test_ids_time_and_python_version_of_a_registration_may_differ(registered: Registered, tmp_path: Path) -> None:
    folder = registered.copy(tmp_path / "model")
    text = (folder / "MLmodel").read_text()
    for old, new in (("b" * 32, "a" * 32), (f"m-{'1' * 32}", f"m-{'c' * 32}"), ("2026-01-02", "2027-01-02")):
        assert old in text
        text = text.replace(old, new)
    replaced(folder / "MLmodel", text)
    assert registered.verify(folder).differences == ()
    replaced(folder / "MLmodel", text.replace("3.12.1", "3.13.0"))
    assert found(registered.verify(folder)).keys() == {
        "conda.yaml",
        "python_env.yaml",
    }  # both have the old Python version


def test_another_runs_model_and_an_unknown_one_are_refused(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nobody: no such federation in the store"):
        registered.verify(registered.folder, run="nobody")
    with pytest.raises(SpecError, match="foreign: no such federation in the store"):
        registered.verify("models:/foreign@best")
    with pytest.raises(SpecError, match="models:/mine/7: no such model in the registry; it has: "):
        registered.verify("models:/mine/7")
    with pytest.raises(DataError, match=r"artifacts/model.safetensors: missing; expected the folder of a registered"):
        registered.verify(tmp_path)
    with pytest.raises(SpecError, match="expected a folder that does not exist yet"):
        registered.verify("models:/mine@best", save=tmp_path)


def test_the_command_prints_the_differences_and_exits_2(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.models.machine_settings", lambda home: registered.settings)
    folder = registered.copy(tmp_path / "model")
    good = fedbench("verify", str(folder))
    assert (good.exit_code, good.output.count("\n")) == (0, 1), good.output
    count = sum(path.is_file() for path in folder.rglob("*"))
    assert good.output == f"{folder} (mine, round 0): {count} files, as on record\n"
    replaced(folder / "served_model.py", "x")
    bad = fedbench("verify", str(folder))
    assert bad.exit_code == 2
    assert bad.output.startswith("served_model.py: line 1: expected ")
    assert "files, 1 differ: do not serve this model" in bad.output


def test_a_registered_model_is_opened_without_its_code_if_its_weights_are_on_record(
    registered: Registered, tmp_path: Path
) -> None:
    folder = registered.copy(tmp_path / "planted")
    evil = CODE.format(marker=str(registered.marker))
    for file in ("served_model.py", "code/tasks/__init__.py", "evil.py", "code/evil.py", "sitecustomize.py"):
        replaced(folder / file, evil)
    replaced(folder / "python_model.pkl", pickle.dumps(_Touch(str(registered.marker))))
    text = (folder / "MLmodel").read_text()
    replaced(folder / "MLmodel", text.replace(FLAVOR, "loader_module: evil\n    python_model: python_model.pkl"))
    for name in ("mine", "foreign"):
        version = registered.client.create_model_version(name, source=str(folder)).version
        opened = open_model(f"models:/{name}/{version}", registered.settings)
        expected = build_detector(SPEC.detector, 1, seed=0).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in opened.detector.state_dict().items())
        assert opened.record is not None if name == "mine" else opened.record is None
    assert opened.title.endswith(", which no run in the store vouches for")
    assert not registered.marker.exists()
    path = folder / "artifacts" / "model.safetensors"
    content = path.read_bytes()
    replaced(path, content)
    changed_weights(path)
    version = registered.client.create_model_version("mine", source=str(folder)).version
    with pytest.raises(DataError, match=rf"models:/mine/{version}: expected the weights of a committed round of mine"):
        open_model(f"models:/mine/{version}", registered.settings)


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)
