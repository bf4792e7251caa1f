"""What a finished run notes of its registered model, and the model as MLflow loads it."""

from __future__ import annotations

import ast
import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from flows import served_model
from flows.registration import FILE, REQUIREMENTS, noted
from flows.served_model import ServedDetector
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.model_file import ModelCard, write_model
from tasks.spec.detector import YoloV3Tiny

SHA = "a" * 64
SPEC = YoloV3Tiny(width=96, height=64)
CLASSES = ("chair", "table")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> PythonModelContext:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, ModelCard(detector=SPEC, classes=CLASSES), state_of(direct_detector()))
    return PythonModelContext({"model": str(path)}, {"nms_iou": 0.4})


@pytest.fixture(scope="module")
def served(context: PythonModelContext) -> ServedDetector:
    model = ServedDetector()
    model.load_context(context)
    return model


def direct_detector() -> Detector:
    return build_detector(SPEC, len(CLASSES), seed=3).eval()


def encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(model: ServedDetector, images: list[str], **params: Any) -> list[dict[str, Any]]:
    return model.predict(None, pd.DataFrame({"image": images}), {"score_threshold": 0.0, "max_detections": 7} | params)


def test_it_gives_what_the_detector_gives_in_pixels_of_each_image(served: ServedDetector) -> None:
    images = [noise(200, 100, seed) if seed % 2 else noise(50, 90, seed) for seed in range(9)]  # two batches
    answers = ask(served, [encoded(image, "PNG") for image in images])
    assert len(answers) == 9
    detector = direct_detector()
    for image, answer in zip(images, answers, strict=True):
        pixels = np.asarray(image.resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(pixels[None].copy()))
            (found,) = detector.predict(outputs, score_threshold=0.0, nms_iou=0.4, max_detections=7)
        ratio = [image.width / SPEC.width, image.height / SPEC.height] * 2
        assert len(answer["detections"]) == 7
        for item, box, score, label in zip(answer["detections"], found.boxes, found.scores, found.labels, strict=False):
            assert item["class"] == CLASSES[int(label)]
            assert item["score"] == pytest.approx(float(score), rel=1e-4)
            assert item["box"] == pytest.approx([float(side) * r for side, r in zip(box, ratio, strict=True)], abs=0.05)
    json.dumps(answers)


def test_parameters_limit_what_comes_back(served: ServedDetector) -> None:
    image = encoded(noise(64, 64), "PNG")
    every = ask(served, [image], max_detections=50)[0]["detections"]
    scores = [item["score"] for item in every]
    assert scores == sorted(scores, reverse=True)
    assert ask(served, [image], max_detections=1)[0]["detections"] == every[:1]
    above = ask(served, [image], max_detections=50, score_threshold=scores[9])[0]["detections"]
    assert 0 < len(above) < len(every)
    assert min(item["score"] for item in above) >= scores[9]
    assert ask(served, [image], score_threshold=0.999)[0] == {"detections": []}


def test_line_breaks_in_base64_and_grey_images_are_taken(served: ServedDetector) -> None:
    grey = noise(64, 64).convert("L")
    text = encoded(grey, "PNG")
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert ask(served, [broken]) == ask(served, [encoded(grey.convert("RGB"), "PNG")])


def test_images_are_turned_and_scaled_as_training_read_them(served: ServedDetector) -> None:
    image = noise(90, 64)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    turned, upright = base64.b64encode(buffer.getvalue()).decode(), encoded(image, "PNG")
    applied = ServedDetector()
    applied.detector, applied.nms_iou = served.detector, served.nms_iou
    applied.card = served.card.model_copy(update={"data": {"kind": "coco", "exif": "applied"}})
    assert ask(applied, [turned, upright]) == ask(served, [upright, upright])
    assert ask(served, [turned]) != ask(served, [upright])
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert ask(served, [encoded(deep, "PNG")]) == ask(served, [encoded(grey, "PNG")])


@pytest.mark.parametrize(
    ("images", "params", "message"),
    [
        (["", "?"], {}, "row 0: image: expected an encoded image (JPEG, PNG), found 0 bytes of no known format"),
        ([encoded(noise(8, 8), "PNG"), "no?"], {}, "row 1: image: expected an encoded image as base64, found 'no?'"),
        (["x" * 99], {}, "row 0: image: expected an encoded image as base64, found '" + "x" * 37 + "...'"),
        (["aGFsbG8="], {}, "row 0: image: expected an encoded image (JPEG, PNG), found 5 bytes of no known format"),
        ([encoded(noise(64, 64), "JPEG")[:400]], {}, "row 0: image: expected an encoded image (JPEG, PNG), found 300"),
        ([["aGFsbG8="]], {}, "row 0: image: expected base64 as text, found list"),
        ([], {"score_threshold": 1.0}, "params.score_threshold: expected at least 0 and less than 1, found 1.0"),
        ([], {"max_detections": 0}, "params.max_detections: expected at least 1, found 0"),
    ],
)
def test_bad_requests_are_told(served: ServedDetector, images: list[Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException) as caught:
        ask(served, images, **params)
    assert caught.value.get_http_status_code() == 400
    assert message in caught.value.message


def test_the_requirements_name_all_that_is_imported() -> None:
    """What this file and the part of ``tasks`` that it loads import, but the standard library and ``tasks``."""
    code = (
        "import sys, flows.served_model as served; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('tasks') and m.__file__), served.__file__)"
    )
    root = Path(served_model.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    tops: set[str] = set()
    for file in done.stdout.split():
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Import):
                tops |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add((node.module or "").split(".")[0])
    tops -= {*sys.stdlib_module_names, "tasks"}
    distributions = {"PIL": "pillow", "pydantic_core": "pydantic"}
    assert {distributions.get(name, name) for name in tops} == set(REQUIREMENTS)


def test_a_note_counts_for_the_weights_that_it_names(tmp_path: Path) -> None:
    history: Any = [SimpleNamespace(decision=SimpleNamespace(best_round=0), model=SimpleNamespace(sha256=SHA))]
    assert noted(tmp_path, history) is None
    note = {"uri": "models:/x@best", "version": "1", "weights_sha256": SHA}
    (tmp_path / FILE).write_text(json.dumps(note))
    assert noted(tmp_path, history) == "models:/x@best"
    (tmp_path / FILE).write_text(json.dumps(note | {"weights_sha256": "b" * 64}))
    assert noted(tmp_path, history) is None
    (tmp_path / FILE).write_text("{")
    assert noted(tmp_path, history) is None
