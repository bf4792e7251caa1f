"""``fedbench export-model`` with a model file: what it writes, prints, checks and refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from flows.commands.export_model import export_opened
from flows.commands.open_model import open_model
from infra.settings import Settings
from tasks.detectors.base import Detections
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of, state_sha256
from tasks.errors import FedbenchError
from tasks.models.file import ModelCard, write_model
from tasks.portable import torchscript_file
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tests.flows.command import fedbench

CARD = ModelCard(
    detector=YoloV3TinySpec(width=64, height=64),
    classes=("basket", "carton", "chair", "electrombile", "gastank", "sunshade", "table"),
    data=SyntheticStreet(train_images=40, test_images=5, width=96, height=80).model_dump(mode="json"),
    notes=("Initialised from weights of somebody else: their own licence applies.",),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "m.safetensors"
    write_model(path, CARD, state_of(build_detector(CARD.detector, len(CARD.classes), seed=1)))
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[..., Result]:
    """Return a function that runs ``fedbench export-model`` with the test file's home."""
    monkeypatch.setenv("FEDBENCH_HOME", str(home))
    return lambda *words: fedbench("export-model", *words)


def entry(path: Path, name: str) -> str:
    entries: dict[str, Any] = {name: ""}
    torch.jit.load(path, _extra_files=entries)
    text: str = entries[name].decode()
    return text


def test_the_file_is_compared_on_test_images_and_keeps_the_licences(call: Any, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.torchscript"
    result = call(file, path, "--check", 3, "--score", 0.004)
    assert result.exit_code == 0, result.output
    assert f"{file}: {path}, " in result.output
    assert "input: images, uint8 [1, 3, 64, 64], RGB, 0 to 255 · outputs: boxes, scores, labels" in result.output
    assert "compared with the model: 3 images, " in result.output
    assert f"note: {CARD.notes[0]}" in result.output
    assert entry(path, "licences").splitlines()[-1] == CARD.notes[0]
    assert entry(path, "score_threshold") == "0.004"
    assert entry(path, "weights_sha256") == state_sha256(state_of(open_model(str(file), Settings()).detector))
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_not_compared_says_why(call: Any, file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.safetensors"
    data = {"kind": "federated-street"}
    state = state_of(build_detector(CARD.detector, len(CARD.classes), seed=1))
    write_model(elsewhere, CARD.model_copy(update={"data": data}), state)
    for words, reason in (((file, "--check", 0), "--check 0"), ((elsewhere,), "the test images cannot be read here: ")):
        path = tmp_path / "m.pt"
        result = call(words[0], path, *words[1:])
        assert result.exit_code == 0, result.output
        assert f"not compared with the model: {reason}" in result.output
        assert path.exists()


def test_a_network_that_detects_otherwise_is_not_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_runner = torchscript_file.torchscript_runner

    def damaged(path: Path) -> Callable[[torch.Tensor], Detections]:
        run = true_runner(path)

        def moved(image: torch.Tensor) -> Detections:
            found = run(image)
            return dataclasses.replace(found, boxes=found.boxes + 5)

        return moved

    monkeypatch.setattr(torchscript_file, "torchscript_runner", damaged)
    settings = Settings(home=tmp_path / "home")
    path = tmp_path / "out" / "m.pt"
    opened = open_model(str(file), settings)
    with pytest.raises(FedbenchError, match=r"not written: the exported network detects other objects .* 0 of "):
        export_opened(opened, path, settings, fields={}, pixels="uint8", images=2)
    assert list(path.parent.iterdir()) == []


def test_another_suffix_and_a_missing_package_are_named(
    call: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = call(file, tmp_path / "m.tflite")
    assert result.exit_code == 2
    assert "expected a name that ends in .onnx (ONNX) or .pt or .torchscript (TorchScript)" in result.output
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "flows.commands.export_model.find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    result = call(file, tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "found no onnxscript; install: pip install 'fedbench[export]'" in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
