"""Exported networks detect what the detectors detect: every detector as a network, and files in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tasks.detectors.base import Detections, Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of, state_sha256
from tasks.errors import SpecError
from tasks.models.file import HEADER_KEY, ModelCard
from tasks.portable.agreement import Agreement, agreement, compared
from tasks.portable.contents import Pixels, contents
from tasks.portable.network import PortableNetwork
from tasks.portable.onnx_file import onnx_runner, write_onnx
from tasks.portable.select import select_by_group
from tasks.portable.torchscript_file import torchscript_runner, write_torchscript
from tasks.spec.detector import DetectorSpec
from tasks.spec.training import EvaluationSpec
from tests.tasks.detectors.tiny_detectors import TINY, tiny

CLASSES = ("bus", "car", "tram")
RULES = EvaluationSpec(score_threshold=0.002, nms_iou=0.45, max_detections=20)


def spec_of(kind: str) -> DetectorSpec:
    """Return a specification of maps with enough cells: proposals within one cell would have equal scores."""
    spec: DetectorSpec = tiny(kind, width=160, height=128) if "rcnn" in kind else TINY[kind]
    return spec


def detector_of(kind: str) -> Detector:
    """Return a detector whose scores differ, as a trained one's do. Those of its first weights nearly tie."""
    detector = build_detector(spec_of(kind), len(CLASSES), seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if parameter.ndim > 1 and (name in detector.head_names() or name.startswith("rpn.head.cls_logits.")):
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator), alpha=1.0 if kind == "yolov3" else 0.1
                )
    return detector


def images_of(detector: Detector, dtype: torch.dtype = torch.uint8, count: int = 3) -> list[Tensor]:
    """Return images of soft patches."""
    patches = torch.rand(count, 1, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 255
    size = (detector.height, detector.width)
    return [interpolate(image, size=size, mode="bilinear").to(torch.uint8).to(dtype) for image in patches]


def card_of(kind: str) -> ModelCard:
    return ModelCard(detector=spec_of(kind), classes=CLASSES, notes=("The data's own licence applies.",))


def exported(
    kind: str, folder: Path, write: Callable[..., None], pixels: Pixels = "uint8"
) -> tuple[Detector, Path, Tensor]:
    """Write the detector ``kind`` with ``write``. Return the detector, the file and an example of its input."""
    detector, path = detector_of(kind), folder / "model"
    example = images_of(detector, torch.uint8 if pixels == "uint8" else torch.float32, 1)[0]
    write(path, detector, RULES, example, contents(detector, card_of(kind), RULES, pixels))
    return detector, path, example


def assert_agrees(detector: Detector, run: Callable[[Tensor], Detections], dtype: torch.dtype = torch.uint8) -> None:
    found = agreement(detector, run, images_of(detector, dtype), RULES)
    assert found.images == 3
    assert found.boxes > 10
    assert found.holds, str(found)


@pytest.mark.parametrize("kind", [kind for kind in TINY if not kind.endswith("batch-norm")])
def test_the_network_of_fixed_shapes_detects_the_same(kind: str) -> None:
    detector = detector_of(kind)
    before = state_sha256(state_of(detector))
    network = PortableNetwork(detector, RULES, select_by_group)
    assert_agrees(detector, lambda image: Detections(*network(image)))
    assert state_sha256(state_of(detector)) == before
    boxes, scores, labels = network(images_of(detector)[0])
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert bool((scores.diff() <= 0).all())
    assert float(scores.min()) > RULES.score_threshold
    assert int(labels.bincount().max()) <= RULES.max_detections


@pytest.mark.parametrize("kind", ["yolov3-tiny", "faster-rcnn-mobilenetv3-320-fpn", "fcos-lite0"])
def test_a_torchscript_file_detects_the_same_and_has_the_card(kind: str, tmp_path: Path) -> None:
    detector, path, _ = exported(kind, tmp_path, write_torchscript)
    assert_agrees(detector, torchscript_runner(path))
    entries: dict[str, Any] = {HEADER_KEY: "", "licences": "", "weights_sha256": ""}
    torch.jit.load(path, _extra_files=entries)
    assert ModelCard.model_validate_json(entries[HEADER_KEY]) == card_of(kind)
    assert entries["licences"].decode().splitlines()[-1] == "The data's own licence applies."
    assert entries["weights_sha256"].decode() == state_sha256(state_of(detector))


@pytest.mark.parametrize(("kind", "pixels"), [("yolov3-tiny", "uint8"), ("fcos-lite0", "float32")])
def test_an_onnx_file_detects_the_same_and_has_the_card(kind: str, pixels: Pixels, tmp_path: Path) -> None:
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    detector, path, example = exported(kind, tmp_path, write_onnx, pixels)
    assert_agrees(detector, onnx_runner(path), example.dtype)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelCard.model_validate_json(entries[HEADER_KEY]) == card_of(kind)
    assert json.loads(entries["classes"]) == list(CLASSES)
    assert entries["input"].startswith(f"images: {pixels} [1, 3, {detector.height}, {detector.width}], RGB")
    assert (entries["score_threshold"], entries["nms_iou"], entries["max_detections"]) == ("0.002", "0.45", "20")
    assert "The data's own licence applies." in model.doc_string
    assert [value.name for value in model.graph.output] == ["boxes", "scores", "labels"]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "detections"


class Undecoded(Detector):
    """A detector of another package, without ``decode``."""

    forward = loss = predict = lambda self, *_, **__: None  # type: ignore[assignment]


def test_a_detector_that_does_not_decode_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Undecoded: expected a detector that defines decode\(\)"):
        PortableNetwork(Undecoded(), RULES, select_by_group)


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Return detections of boxes of 10 pixels: the left side, score and label of each."""
    boxes = torch.tensor([[left, 0.0, left + 10, 10] for left, _, _ in rows]).view(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]))


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [
        (((0, 0.9, 0), (50, 0.4, 1)), 0),
        (((50, 0.4, 1), (0.5, 0.895, 0)), 0),  # another order, rounding
        (((0, 0.9, 0), (50, 0.4, 2)), 2),  # another label
        (((0, 0.9, 0), (53, 0.4, 1)), 2),  # another place
        (((0, 0.8, 0), (50, 0.4, 1)), 2),  # another score
        (((0, 0.9, 0),), 1),
        (((0, 0.9, 0), (50, 0.4, 1), (50, 0.4, 1)), 1),  # twice
        ((), 2),
    ],
)
def test_detections_that_differ_are_counted(found: tuple[tuple[float, float, int], ...], unmatched: int) -> None:
    result = compared(detections((0, 0.9, 0), (50, 0.4, 1)), detections(*found))
    assert (result.boxes, result.unmatched) == (2 + len(found), unmatched)
    assert result.holds == (unmatched == 0)


def test_rounding_may_move_one_box_in_a_hundred() -> None:
    assert Agreement(8, 400, 4).holds
    assert not Agreement(8, 400, 5).holds
    assert Agreement(8, 0, 0).holds
