"""Models are opened by run, round or file, and commands use a model file. The store is real."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from typer.testing import Result

from flows.cli.models import SCORE
from flows.commands.evaluate_model import evaluate_opened
from flows.commands.open_model import open_model
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.errors import DataError, SpecError
from tasks.figures.boxes import DRAWN_SCORE
from tasks.models.card import card_of
from tasks.models.file import read_card, write_model
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.flows.command import fedbench
from tests.records import client_info, evaluation_record, round_record

SPEC = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5, width=96, height=80),
    detector=YoloV3TinySpec(width=64, height=64),
)
CLASSES = ("basket", "carton", "chair", "electrombile", "gastank", "sunshade", "table")
KEPT = (1, 2)  # the rounds, of 0 to 2, whose weights are kept; round 1 is the best


def detector_of(number: int) -> Detector:
    return build_detector(SPEC.detector, len(CLASSES), seed=number)


def record_of(number: int, model: WeightRef) -> RoundRecord:
    client = client_info(train_size=8, test_digest="0" * 64, class_counts=dict.fromkeys(CLASSES, 1))
    return round_record(
        number,
        federation="mine",
        spec_digest=SPEC.digest,
        clients=(client,),
        model=model,
        metrics=Metrics(map50_voc10=0.25),
        decision=Decision(stop=False, best_round=1),
    )


@pytest.fixture(scope="module")
def settings(s3_settings: S3Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a store with the run ``mine`` of three rounds, and the run ``young`` without a round."""
    resolved = s3_settings.model_copy(update={"prefix": "models"})
    place = Settings(home=tmp_path_factory.mktemp("home"), s3=resolved)
    objects = ObjectStore(resolved)
    weights = WeightStore(objects, place.home / "cache" / "weights", 1000)
    layout = FederationLayout("models", "mine")
    for name in ("mine", "young"):
        objects.put_json(FederationLayout("models", name).spec, SPEC.model_dump(mode="json"))
    for number in range(3):
        stored = weights.put(layout.global_weights(number), save(state_of(detector_of(number))))
        model = WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes)
        objects.put_json(layout.marker(number), record_of(number, model).model_dump(mode="json"))
    objects.delete([layout.global_weights(number) for number in range(3) if number not in KEPT])
    return place


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "m.safetensors"
    ref = WeightRef(key="k", sha256="0" * 64, bytes=1)
    write_model(path, card_of(SPEC, record_of(1, ref)), state_of(detector_of(1)))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "street.jpg"
    Image.linear_gradient("L").resize((120, 90)).convert("RGB").save(path)
    return path


def assert_same_weights(one: Detector, other: Detector) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_opened_at_its_best_round_or_at_the_given_one(settings: Settings) -> None:
    best = open_model("mine", settings)
    assert (best.title, best.card.round, best.data) == ("mine, round 1", 1, SPEC.data)
    assert best.card.classes == CLASSES
    assert not best.detector.training
    assert_same_weights(best.detector, detector_of(1))
    other = open_model("mine", settings, 2)
    assert other.title == "mine, round 2"
    assert_same_weights(other.detector, detector_of(2))


def test_a_model_file_has_the_weights_of_its_run(settings: Settings, file: Path) -> None:
    opened = open_model(str(file), settings)
    assert opened.title == f"{file} (mine, round 1)"
    assert (opened.spec, opened.record, opened.data) == (None, None, SPEC.data)
    assert_same_weights(opened.detector, open_model("mine", settings).detector)


WRONG: dict[str, tuple[str, int | None, str]] = {
    "no such run": ("nobody", None, "nobody: no such model: no run of this name in the store (it has: mine, young), "
        "and there is no such file; expected a run's name, a model file (*.safetensors), or a model of the registry"),
    "no name": ("no/where", None, "no/where: no such model: no run can have this name, and there is no such file; "),
    "a folder": ("{folder}", None, "no run can have this name, and it is a folder"),
    "another file": ("{picture}", None, "and it is a file that does not end in .safetensors"),
    "no such round": ("mine", 3, "--round 3: expected 0 to 2, the committed rounds of mine"),
    "a round that was not kept": ("mine", 0, "--round 0: its weights were not kept; mine has those of rounds 1, 2"),
    "no round yet": ("young", None, "young: expected a committed round, found none yet"),
    "a round of a file": ("{file}", 1, "--round 1: expected a run's name as MODEL"),
    "a round of the registry": ("models:/a/1", 1, "--round 1: expected a run's name as MODEL"),
    "no version": ("models:/a", None, "models:/a: expected models:/NAME/VERSION, models:/NAME@ALIAS"),
    "a stage": ("models:/a/Production", None, "models:/a/Production: expected models:/NAME/VERSION"),
    "quotes": ("models:/a' or name = 'b/1", None, "expected models:/NAME/VERSION"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_the_error_about_no_model_names_what_was_tried(
    settings: Settings, file: Path, picture: Path, case: str
) -> None:
    reference, number, message = WRONG[case]
    with pytest.raises(SpecError) as caught:
        open_model(reference.format(file=file, picture=picture, folder=picture.parent), settings, number)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_named(settings: Settings, tmp_path: Path) -> None:
    for name, content in (("missing", None), ("damaged", b"no safetensors")):
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_model(str(path), settings)
        assert str(caught.value).startswith(f"{path}: ")


# Commands with a model file, which start no service.


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[..., Result]:
    """Return a function that runs the command with the test file's home and wide tables."""
    monkeypatch.setenv("FEDBENCH_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")
    return fedbench


def test_evaluate_prints_and_writes_the_figures(call: Any, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "e.json"
    result = call("evaluate", file, "--threads", 1, "--json", path)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["test", "set", "images", "map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall", "loss"] in lines
    assert ["on", "record", "0.250", *["–"] * 5] in lines
    assert [line[0] for line in lines[-7:]] == list(CLASSES)
    found = json.loads(path.read_text())
    assert found["card"] == read_card(file).model_dump(mode="json")
    assert found["evaluations"][0]["test_size"] == 5
    assert found["metrics"]["loss"] == found["evaluations"][0]["loss"]
    assert f"{found['metrics']['loss']:.3f}" in result.output


def test_evaluate_takes_other_data_and_rules(call: Any, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "data: {kind: synthetic-street, train_images: 40, test_images: 8, width: 96, height: 80, test: per-device}\n"
    )
    path = tmp_path / "e.json"
    result = call("evaluate", file, "--data", other, "-s", "evaluation.score_threshold=0.4", "--json", path)
    assert result.exit_code == 0, result.output
    assert "score > 0.4, NMS over 0.5" in result.output
    assert "on record" not in result.output
    found = json.loads(path.read_text())
    sizes = {evaluation["clients"][0]: evaluation["test_size"] for evaluation in found["evaluations"]}
    assert sum(sizes.values()) == 8
    assert len(sizes) > 1
    for client in sizes:
        assert f"client {client}" in result.output
    assert found["evaluation"]["score_threshold"] == 0.4


def test_evaluate_takes_a_folder_and_matches_its_classes_by_name(call: Any, file: Path, tmp_path: Path) -> None:
    small = ("-s", "train_images=40", "-s", "test_images=5", "-s", "width=96", "-s", "height=80")
    folder = tmp_path / "coco"
    assert call("data", "make", folder, "--form", "coco", *small).exit_code == 0
    paths = tmp_path / "one.json", tmp_path / "two.json"
    for path, words in zip(paths, (("--data", folder), ()), strict=True):
        result = call("evaluate", file, *words, "--threads", 1, "--json", path)
        assert result.exit_code == 0, result.output
    assert json.loads(paths[0].read_text())["data"]["name"] == "coco"  # the folder's
    one, two = (json.loads(path.read_text())["metrics"] for path in paths)
    assert one == two
    document = json.loads((folder / "test.json").read_text())
    repeated = [{**item, "id": item["id"] + 1000} for item in document["annotations"]]
    (folder / "test.json").write_text(json.dumps({**document, "annotations": [*document["annotations"], *repeated]}))
    deduplicated = ("-s", "data.drop_duplicate_objects=true")
    result = call("evaluate", file, "--data", folder, *deduplicated, "--threads", 1, "--json", paths[1])
    assert f"warning: {len(repeated)} objects repeat another one of their image" in result.output
    assert json.loads(paths[1].read_text())["metrics"] == one
    for name in ("train.json", "test.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"gastank"', '"boat"'))
    result = call("evaluate", file, "--data", folder)
    assert result.exit_code == 2
    assert "found boat; classes of the model that the data set does not have: gastank" in result.output


def test_predict_draws_on_copies_and_continues_after_a_bad_image(
    call: Any, file: Path, picture: Path, tmp_path: Path
) -> None:
    folder, bad = tmp_path / "in", tmp_path / "in" / "bad.png"
    folder.mkdir()
    bad.write_text("no image")
    (folder / "good.jpg").write_bytes(picture.read_bytes())
    path = tmp_path / "p.json"
    words = ("predict", file, folder, picture, "--out", tmp_path / "out", "--score", 0.001, "--json", path)
    result = call(*words)
    assert result.exit_code == 1, result.output
    assert f"error: {bad}: expected an image that can be decoded" in result.output
    assert f"{folder / 'good.jpg'}: " in result.output
    assert "2 images, " in result.output
    found = json.loads(path.read_text())
    assert [entry["file"] for entry in found["images"]] == [str(folder / "good.jpg"), str(picture)]
    assert [error.startswith(str(bad)) for error in found["errors"]] == [True]
    entry = found["images"][0]
    assert entry["detections"] == found["images"][1]["detections"] != []
    assert all(0 <= edge <= 120 for item in entry["detections"] for edge in item["box"])
    scores = [item["score"] for item in entry["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert {item["class"] for item in entry["detections"]} <= set(CLASSES)
    with Image.open(tmp_path / "out" / "good.jpg") as drawn, Image.open(picture) as image:
        assert drawn.size == image.size
        assert drawn.tobytes() != image.convert("RGB").tobytes()


def test_predict_prints_its_detections_and_warns_of_a_rotated_image(
    call: Any, file: Path, picture: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture) as image:
        image.save(turned, exif=exif)
    result = call("predict", file, turned, "--out", tmp_path / "out", "--score", 0.99)
    assert result.exit_code == 0, result.output
    drawn = tmp_path / "out" / "turned.jpg"
    found = re.fullmatch(
        rf"{turned}: no detection with a score of 0.99 or more; the highest is ([0-9.]+) \(\w+\), "
        rf"which --score ([0-9.]+) shows "
        rf"→ {drawn} \(its orientation in EXIF is not applied\)\n",
        result.output,
    )
    assert found is not None, result.output
    assert 0.9 * float(found[1]) < float(found[2]) < float(found[1]) < 0.99
    assert SCORE == DRAWN_SCORE
    shown = call("predict", file, turned, "--out", tmp_path / "out", "--score", found[2])
    assert shown.exit_code == 0, shown.output
    assert "no detection" not in shown.output


def test_predict_and_evaluate_print_json_alone(call: Any, file: Path, picture: Path, tmp_path: Path) -> None:
    words = (file, picture, "--out", tmp_path / "out", "--json", "-")
    for score in (0.001, 0.99):
        result = call("predict", *words, "--score", score)
        assert result.exit_code == 0, result.output
        (image,) = json.loads(result.stdout)["images"]
        assert bool(image["detections"]) == (image["highest_below"] is None) == (score == 0.001)
    assert 0 < image["highest_below"]["score"] <= 0.99
    path = tmp_path / "e.json"
    printed = call("evaluate", file, "--threads", 1, "--json", "-", "--out", tmp_path / "plots")
    written = call("evaluate", file, "--threads", 1, "--json", path, "--out", tmp_path / "plots")
    assert (printed.exit_code, written.exit_code) == (0, 0), printed.output
    found, expected = json.loads(printed.stdout), json.loads(path.read_text())
    for document in (found, expected):
        for evaluation in document["evaluations"]:
            evaluation["seconds"] = 0
    assert found == expected
    assert "analysis" in found


def test_save_model_copies_a_model_whole(call: Any, file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    result = call("save-model", file, copy)
    assert result.exit_code == 0, result.output
    assert copy.read_bytes() == file.read_bytes()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "suffix": (("save-model", "{file}", "{tmp}/m.pt"), "m.pt: expected a name that ends in .safetensors"),
    "field": (("evaluate", "{file}", "-s", "training.batch_size=2"), "--set training.batch_size: expected a field"),
    "rule": (("evaluate", "{file}", "-s", "evaluation.nms_iou=2"), "--set: evaluation.nms_iou: expected at most 1"),
    "data": (("evaluate", "{file}", "--data", "nowhere"), "nowhere: no such preset or file"),
    "data's folder": (("evaluate", "{file}", "--data", "street5"), "no folder is known for data set 'street'"),
    "no file": (("predict", "{tmp}/m.safetensors", "{picture}"), "m.safetensors: no such file"),
    "empty folder": (("predict", "{file}", "{tmp}"), "expected images in this folder"),
    "overwritten": (("predict", "{file}", "{picture}", "--out", "{images}"), "would be overwritten"),
    "below a file": (("save-model", "{file}", "{file}/x.safetensors"), "the model file cannot be written"),
    "JSON": (("predict", "{file}", "{picture}", "--json", "{file}/x", "--out", "{tmp}"), "JSON cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_exit_2(call: Any, file: Path, picture: Path, tmp_path: Path, case: str) -> None:
    words, message = REFUSED[case]
    result = call(*(word.format(file=file, picture=picture, images=picture.parent, tmp=tmp_path) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_refused(call: Any, file: Path, picture: Path) -> None:
    for words in (("evaluate", file), ("predict", file, picture)):
        result = call(*words, "--device", "cuda")
        assert result.exit_code == 2
        assert "--device: expected cpu" in result.output


def test_data_that_changed_since_the_run_are_not_scored(settings: Settings) -> None:
    model = open_model("mine", settings)
    assert model.record is not None
    evaluation = evaluation_record("1", "2", test_digest="0" * 64, loss=None, map50_voc10=None, recall=None, seconds=0)
    changed = dataclasses.replace(model, record=model.record.model_copy(update={"evaluations": (evaluation,)}))
    with pytest.raises(DataError, match="client 1: its test set has changed since the run: expected digest 0000"):
        evaluate_opened(changed, settings, data=None, fields={}, device="cpu", threads=1, console=Console(stderr=True))
