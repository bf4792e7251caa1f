"""``fedbench original`` and ``fedbench export``: files, output and exit codes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.data.catalog import load_data
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader
from tasks.detectors.base import Detections
from tasks.detectors.registry import build_detector
from tasks.models.file import load_model, read_card
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec, load_spec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Metrics
from tasks.training.batch_norm import estimate_statistics, sample_images
from tests.flows.command import fedbench
from tests.records import round_record

SPEC = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5, width=96, height=80),
    detector=YoloV3TinySpec(width=64, height=64),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(home))
    for name in ("FEDBENCH_STREET_DIR", "FEDBENCH_SETTINGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    model = {"model_def": "config/yolov3-tiny.cfg", "multiscale_training": False, "gradient_accumulations": 2}
    (tmp_path / "yolo_model.json").write_text(json.dumps(model))
    fields = {"model_name": "Yolo", "model_config": "yolo_model.json", "MAX_NUM_ROUNDS": 3, "odd": "[bold]"}
    path = tmp_path / "yolo_task.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_converted_task_runs_as_a_specification(task: Path, tmp_path: Path) -> None:
    output = tmp_path / "spec.yaml"
    result = fedbench("original", "convert", task, "-o", output)
    assert result.exit_code == 0, result.output
    assert "odd [bold]" in result.output
    assert "not carried over: unknown to this reader" in " ".join(result.output.split())
    assert f"run it with: fedbench run {output}" in result.output
    spec = load_spec(output)
    assert (spec.max_rounds, spec.detector.kind, spec.training.accumulate) == (4, "yolov3-tiny", 2)
    printed = fedbench("original", "convert", task)
    assert printed.exit_code == 0
    assert printed.stdout == output.read_text()


def test_the_model_file_may_be_given(task: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"gradient_accumulations": 8}')
    assert fedbench("original", "convert", task, other, "-o", tmp_path / "spec.yaml").exit_code == 0
    assert load_spec(tmp_path / "spec.yaml").training.accumulate == 8


class Source:
    """A detector with random weights, and its parameters in the form that the original pickles."""

    def __init__(self) -> None:
        self.detector = build_detector(SPEC.detector, 7, seed=99)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(4)
            for name, parameter in self.detector.named_parameters():
                if ".norm." in name:
                    parameter.add_(torch.rand_like(parameter) * 0.3)
                elif name.endswith("bias"):
                    parameter.fill_(0.2)
        self.arrays = [parameter.data.numpy() for parameter in self.detector.parameters()]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


def spec_file(folder: Path, spec: FederationSpec = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_text(spec.to_yaml())
    return path


def pickled(folder: Path, value: Any) -> Path:
    path = folder / "yolo_model.pkl"
    path.write_bytes(pickle.dumps(value))
    return path


def test_a_weight_file_becomes_a_model_that_detects_the_same(source: Source, tmp_path: Path, home: Path) -> None:
    output = tmp_path / "new" / "model.safetensors"
    file = pickled(tmp_path, source.arrays)
    words = ("original", "weights", file, "--spec", spec_file(tmp_path), "-o", output, "--images", 20)
    result = fedbench(*words)
    assert result.exit_code == 0, result.output
    assert "37 arrays of float32: all parameters" in result.output
    assert "were estimated from 16 of the 40 training images" in result.output
    card = read_card(output)
    assert (card.detector, len(card.classes), card.federation) == (SPEC.detector, 7, None)
    assert card.data is not None
    assert card.data["kind"] == "synthetic-street"
    assert len(card.notes) == 2
    assert all(note in result.output for note in card.notes)

    data = load_data(SPEC.data, root_of=lambda name: None, cache=home / "cache" / "data")
    every = [sample for samples in data.train.values() for sample in samples]
    chosen = sample_images(every, 20, seed=SPEC.seed, batch_size=8)
    loader = EvaluationLoader(chosen, width=64, height=64, batch_size=8, cache=ImageCache(0))
    estimate_statistics(source.detector, [batch.images for batch in loader])
    tests = EvaluationLoader(next(iter(data.test.values())), width=64, height=64, batch_size=5, cache=ImageCache(0))
    detector, _ = load_model(output)
    source.detector.eval()
    found: list[list[Detections]] = []
    for model in (detector, source.detector):
        with torch.inference_mode():
            outputs = model(tests[0].images)
            found.append(model.predict(outputs, score_threshold=0.001, nms_iou=0.5, max_detections=100))
    assert sum(len(item.scores) for item in found[0]) > 20
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-2)

    before = output.read_bytes()
    assert fedbench(*words).exit_code == 0
    assert output.read_bytes() == before
    with safe_open(output, framework="pt") as stored:
        assert stored.get_tensor("layers.0.norm.num_batches_tracked").item() == 2


def test_outputs_for_a_different_number_of_classes_are_reported(source: Source, tmp_path: Path) -> None:
    arrays = [array[:24] if array.shape[0] == 36 else array for array in source.arrays]
    file, output = pickled(tmp_path, arrays), tmp_path / "model.safetensors"
    result = fedbench("original", "weights", file, "--spec", spec_file(tmp_path), "-o", output, "--images", 8)
    assert result.exit_code == 0, result.output
    assert "but the outputs, which are for 3 classes and left as they were" in result.output


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_wrong_weights_exit_2(source: Source, tmp_path: Path) -> None:
    spec, output = spec_file(tmp_path), tmp_path / "model.safetensors"
    for value, message in (
        ([Hostile()], "asks for builtins.print; expected a list of numpy arrays and nothing else"),
        ([*source.arrays[:-1]], "36 arrays; expected 37, the parameters of yolov3-tiny"),
        ([np.zeros(1)] * 222, "yolov3 has 222"),
        ([np.zeros(3), *source.arrays[1:]], "array 0 (layers.0.conv.weight): expected shape [16, 3, 3, 3], found [3]"),
    ):
        result = fedbench("original", "weights", pickled(tmp_path, value), "--spec", spec, "-o", output)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "executed" not in result.stdout
        assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("original", "convert", "none.json"), "none.json: cannot be read"),
        (("original", "convert", "{task}", "none.json"), "none.json: cannot be read"),
        (("original", "convert", "{task}", "-o", "{tmp}"), "cannot be written: Is a directory"),
        (
            ("original", "weights", "none.pkl", "--spec", "{spec}", "-o", "m"),
            "none.pkl: the weight file cannot be read",
        ),
        (("original", "weights", "{pkl}", "--spec", "nothing", "-o", "m"), "nothing: no such preset or file"),
        (("original", "weights", "{pkl}", "--spec", "street5", "-o", "m"), "no folder is known for data set 'street'"),
        (("original", "weights", "{pkl}", "--spec", "{spec}", "-o", "{pkl}/m"), "the model file cannot be written"),
        (
            ("original", "weights", "{pkl}", "--spec", "{spec}", "-o", "m", "--images", "0"),
            "greater than or equal to 1",
        ),
        (("original", "weights", "{pkl}", "--spec", "{spec}"), "Missing option"),
        (("export", "../x"), "expected letters, digits"),
    ],
)
def test_wrong_arguments_exit_2(
    words: tuple[str, ...], message: str, task: Path, source: Source, tmp_path: Path
) -> None:
    values = {"task": task, "tmp": tmp_path, "spec": spec_file(tmp_path), "pkl": pickled(tmp_path, source.arrays)}
    result = fedbench(*(word.format(**values) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not Path("m").exists()


@pytest.fixture
def stored(
    object_store: ObjectStore, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> FederationLayout:
    """Store a federation with rounds 0 to 2, without figures for round 2. Return its layout."""
    prefix = f"original/{request.node.name}"
    assert s3_settings.access_key is not None
    assert s3_settings.secret_key is not None
    monkeypatch.setenv("FEDBENCH_S3__ENDPOINT", str(s3_settings.endpoint))
    monkeypatch.setenv("FEDBENCH_S3__ACCESS_KEY", s3_settings.access_key.get_secret_value())
    monkeypatch.setenv("FEDBENCH_S3__SECRET_KEY", s3_settings.secret_key.get_secret_value())
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", prefix)
    layout = FederationLayout(prefix, "mine")
    object_store.put_json(layout.spec, SPEC.model_dump(mode="json"))
    figures = (
        Metrics(loss=9.0, map50_voc10=0.001, recall=0.1),
        Metrics(train_loss=12.34567, loss=5.0, map50_voc10=0.25, map50_voc07=0.9, recall=2 / 3),
        Metrics(train_loss=3.0),
    )
    for number, metrics in enumerate(figures):
        record = round_record(
            number,
            federation="mine",
            spec_digest=SPEC.digest,
            model=WeightRef(key="k", sha256="0" * 64, bytes=0),
            metrics=metrics,
        )
        object_store.put_json(layout.marker(number), record.model_dump(mode="json"))
    return layout


def test_a_runs_rounds_are_written_as_the_originals_table(stored: FederationLayout, tmp_path: Path) -> None:
    table = "round,train_loss,test_map,test_recall\n0,12.3457,0.25,0.6667\n1,3.0,,\n"
    printed = fedbench("export", "mine")
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == table
    file = tmp_path / "rounds.csv"
    result = fedbench("export", "mine", "-o", file)
    assert (result.exit_code, file.read_text()) == (0, table)
    assert f"written: {file}, 2 rounds" in result.output


def test_missing_runs_exit_2(stored: FederationLayout, tmp_path: Path) -> None:
    nobody = fedbench("export", "nobody")
    assert nobody.exit_code == 2
    assert "nobody: no such federation in the store; expected one of: mine" in nobody.output
    result = fedbench("export", "mine", "-o", tmp_path)
    assert result.exit_code == 2
    assert "cannot be written: Is a directory" in result.output
