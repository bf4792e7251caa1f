"""The model file: every detector is read as it was written, and errors name what is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.detectors.registry import DETECTORS, build_detector
from tasks.detectors.state import state_of
from tasks.errors import DataError
from tasks.models.file import HEADER_KEY, ModelCard, card_text, load_model, read_card, write_model
from tasks.spec.detector import YoloV3TinySpec
from tests.tasks.detectors.tiny_detectors import TINY

SPEC = YoloV3TinySpec(width=64, height=64, batch_norm_momentum=0.3)
CARD = ModelCard(
    detector=SPEC,
    classes=("chair", "gas|tank"),
    data={"kind": "coco", "name": "mine", "clients": {"kind": "iid", "clients": 3}, "digest": None},
    spec_digest="a" * 64,
    federation="mine-1",
    round=3,
    code_version="0.1.0",
    metrics={"map50_voc10": 0.4321098, "loss": None},
    per_class={"gas|tank": 0.25, "chair": None},
    notes=("one note", "another"),
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return state_of(build_detector(SPEC, 2, seed=1))


@pytest.fixture
def good(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "good.safetensors"
    write_model(path, CARD, state)
    return path


@pytest.mark.parametrize("kind", list(DETECTORS))
def test_a_detector_is_read_with_its_weights_and_its_card(kind: str, tmp_path: Path) -> None:
    spec = TINY[kind]
    detector = build_detector(spec, 3, seed=7)
    for name, buffer in detector.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)  # the file must hold statistics too
    card = CARD.model_copy(update={"detector": spec, "classes": ("a", "b", "c")})
    path = tmp_path / "folder" / "model.safetensors"
    write_model(path, card, state_of(detector))
    loaded, read = load_model(path)
    assert read == card == read_card(path)
    assert not loaded.training
    before, after = detector.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found, expected = (
            each.predict(each(images), score_threshold=0.0, nms_iou=0.5, max_detections=5)[0]
            for each in (loaded, detector.eval())
        )
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    path.unlink()  # pytest keeps the folders of its last runs


def test_the_file_is_readable_without_this_package_and_always_has_the_same_bytes(
    good: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    assert load_file(good).keys() == state.keys()
    again = tmp_path / "again.safetensors"
    write_model(again, CARD, dict(reversed(state.items())))
    assert again.read_bytes() == good.read_bytes()


def test_a_card_without_a_run(tmp_path: Path, state: dict[str, Tensor]) -> None:
    card = ModelCard(detector=SPEC, classes=("a", "b"))
    path = tmp_path / "bare.safetensors"
    write_model(path, card, state)
    assert read_card(path) == card
    text = card_text(card)
    assert text.startswith("# yolov3-tiny\n")
    assert "None" not in text
    assert "| --- |" not in text


def test_the_cards_text_has_origin_data_figures_classes_notes_and_use() -> None:
    text = card_text(CARD, uri="models:/mine-1@best")
    for row in (
        "| federation | mine-1 |",
        "| round | 3 |",
        f"| specification (sha256) | {'a' * 64} |",
        "| fedbench | 0.1.0 |",
        '| clients | {"kind": "iid", "clients": 3} |',
        "| digest | – |",
        "| map50_voc10 | 0.4321 |",
        "| loss | – |",
        "| gas&#124;tank | 0.25 |",  # the bar in the name starts no cell
        "| chair | – |",
        "- one note",
        "- another",
        "from tasks.models.file import load_model",
        "fedbench verify models:/mine-1@best --save model",
        "mlflow models serve -m model --env-manager local --port 5001",
    ):
        assert row in text.splitlines(), row
    assert "mlflow models" not in card_text(CARD)


def test_the_cards_text_of_a_runs_model_says_what_is_vouched_for() -> None:
    section = card_text(CARD).partition("## What is vouched for\n")[2].partition("\n## ")[0]
    for what in (
        "counts of images",
        "losses",
        "evaluations",
        "They are its own word",
        "sha256",
        "MLflow itself checks",
    ):
        assert what in section, what
    assert "vouched" not in card_text(CARD.model_copy(update={"federation": None}))


def _rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, dict[str, Tensor]], None]:
    def write(path: Path, state: dict[str, Tensor]) -> None:
        document = CARD.model_dump(mode="json")
        save_file(state, path, metadata={HEADER_KEY: json.dumps(change(document) or document)})

    return write


def _tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path, dict[str, Tensor]], None]:
    def write(path: Path, state: dict[str, Tensor]) -> None:
        changed = dict(state)
        change(changed)
        write_model(path, CARD, changed)

    return write


def _only_an_extra(state: dict[str, Tensor]) -> None:
    state.clear()
    state.update(extra=torch.zeros(1))


def _typed(written: str) -> Callable[[Path, dict[str, Tensor]], None]:
    """Return a writer of a file whose header gives the first float32 tensor another 4-byte type with the same bytes."""

    def write(path: Path, state: dict[str, Tensor]) -> None:
        write_model(path, CARD, state)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header[FIRST]["dtype"] = written
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return write


def _with_one_nan(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = torch.nan
    return changed


FIRST = "layers.0.conv.weight"
VARIANCE = "layers.0.norm.running_var"
COUNTER = "layers.0.norm.num_batches_tracked"

BAD_FILES: dict[str, tuple[Callable[[Path, dict[str, Tensor]], Any], str]] = {
    "missing": (lambda path, state: None, "no such file; expected a model file"),
    "folder": (lambda path, state: path.mkdir(), "no such file; expected a model file"),
    "text": (lambda path, state: path.write_text("weights\n" * 10), "expected a safetensors file: "),
    "empty": (lambda path, state: path.write_bytes(b""), "expected a safetensors file: "),
    "no card": (
        lambda path, state: save_file(state, path, metadata={"format": "pt"}),
        "with the key 'fedbench' in its header, found keys: format",
    ),
    "no header": (
        lambda path, state: save_file(state, path),
        "with the key 'fedbench' in its header, found keys: none",
    ),
    "no JSON": (
        lambda path, state: save_file(state, path, metadata={HEADER_KEY: "{"}),
        "header 'fedbench': expected JSON: ",
    ),
    "a list": (_rewritten(lambda card: [card]), "header 'fedbench': expected a mapping of fields, found list"),
    "newer": (
        _rewritten(lambda card: card.update(version=2)),
        "header 'fedbench': version: 2 is newer than this fedbench understands (up to 1)",
    ),
    "unknown detector": (
        _rewritten(lambda card: card["detector"].update(kind="yolov9")),
        "header 'fedbench': detector.kind: expected one of: 'yolov3-tiny', 'yolov3'",
    ),
    "unknown field": (_rewritten(lambda card: card.update(colour="red")), "header 'fedbench': colour: no such field"),
    "no class": (_rewritten(lambda card: card.update(classes=[])), "header 'fedbench': classes: expected a list of at"),
    "a tensor is missing": (_tensors(lambda state: state.pop(FIRST)), f"detector's: {FIRST} is missing"),
    "a tensor is unexpected": (
        _tensors(lambda state: state.update(extra=torch.zeros(1))),
        "detector's: extra is unexpected",
    ),
    "a tensor of another shape": (
        _tensors(lambda state: state.update({FIRST: torch.zeros(1, 2)})),
        f"detector's: {FIRST}: expected shape [16, 3, 3, 3], found [1, 2]",
    ),
    "integers for floats": (_typed("I32"), f"detector's: {FIRST}: expected float32, found int32"),
    "unsigned integers for floats": (_typed("U32"), f"detector's: {FIRST}: expected float32, found uint32"),
    "a type that nobody knows": (_typed("Q32"), "expected a safetensors file: "),
    "half precision": (
        _tensors(lambda state: state.update({FIRST: state[FIRST].half()})),
        f"detector's: {FIRST}: expected float32, found float16",
    ),
    "floats for a counter": (
        _tensors(lambda state: state.update({COUNTER: torch.tensor(0.0)})),
        f"detector's: {COUNTER}: expected int64, found float32",
    ),
    "NaN": (
        _tensors(lambda state: state.update({FIRST: _with_one_nan(state[FIRST])})),
        f"detector's: {FIRST} holds NaN or infinity",
    ),
    "infinity": (
        _tensors(lambda state: state.update({FIRST: torch.full_like(state[FIRST], -torch.inf)})),
        f"detector's: {FIRST} holds NaN or infinity",
    ),
    "a negative variance": (
        _tensors(lambda state: state.update({VARIANCE: -state[VARIANCE]})),
        f"detector's: {VARIANCE} holds a negative variance",
    ),
    "many tensors": (_tensors(_only_an_extra), " more"),
    "classes that do not fit": (
        _rewritten(lambda card: card.update(classes=["one"])),
        "expected shape [18, ",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_with_the_reason(case: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    make, message = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    make(path, state)
    with pytest.raises(DataError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-100])
    for read in (read_card, load_model):
        with pytest.raises(DataError, match=r"good\.safetensors: expected a safetensors file"):
            read(good)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/model\.safetensors: the model file cannot be written"):
        write_model(tmp_path / "file" / "model.safetensors", CARD, state)
