"""A finished run's note about its registered model, and the model that MLflow loads."""

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

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from flows.views.registration import FILE, REQUIREMENTS, files_of, noted
from flows.views.served_model import ServedDetector
from infra.tracking.model_folder import Origin, save_folder, signature
from infra.tracking.needed_code import needed_files
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.models.answer_request import MAX_DETECTIONS, SCORE_THRESHOLD
from tasks.models.file import ModelCard, write_model
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec

SHA = "a" * 64


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedDetector:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    spec = YoloV3TinySpec(width=96, height=64)
    state = state_of(build_detector(spec, 2, seed=3))
    write_model(path, ModelCard(detector=spec, classes=("chair", "table")), state)
    model = ServedDetector()
    model.load_context(PythonModelContext({"model": str(path)}, {"nms_iou": 0.4}))
    return model


def ask(model: ServedDetector, images: list[str], **params: Any) -> list[dict[str, Any]]:
    params = {"score_threshold": 0.0, "max_detections": 7} | params
    return model.predict(PythonModelContext({}, {}), pd.DataFrame({"image": images}), params)


def test_the_served_model_answers_by_the_rules_of_its_config(served: ServedDetector) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, format="PNG")
    (answer,) = ask(served, [base64.b64encode(buffer.getvalue()).decode()])
    assert len(answer["detections"]) == 7
    assert served.answers.nms_iou == 0.4
    defaults = {param.name: param.default for param in signature().params}
    assert defaults == {"score_threshold": SCORE_THRESHOLD, "max_detections": MAX_DETECTIONS}


@pytest.mark.parametrize(("images", "status"), [(["?"], 400), (["?"] * 33, 413)])
def test_the_served_model_refuses_with_a_status(served: ServedDetector, images: list[str], status: int) -> None:
    with pytest.raises(MlflowException) as caught:
        ask(served, images)
    assert caught.value.get_http_status_code() == status
    assert json.loads(caught.value.serialize_as_json())["error_code"] == "INVALID_PARAMETER_VALUE"


def test_the_requirements_are_exactly_the_imported_packages() -> None:
    """Imports of served_model.py and of the modules that a registered model carries, without the standard library's."""
    spec = YoloV3TinySpec(width=64, height=64)
    card = ModelCard(detector=spec, classes=("chair", "table"))
    model = files_of(FederationSpec(), card, lambda: state_of(build_detector(spec, 2, seed=3)), "models:/street@best")
    tops: set[str] = set()
    for file in (model.code, *needed_files(model.code, model.packages, model.modules)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                tops |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add((node.module or "").split(".")[0])
    tops -= {*sys.stdlib_module_names, "tasks"}
    distributions = {"PIL": "pillow", "pydantic_core": "pydantic"}
    assert {distributions.get(name, name) for name in tops} == set(REQUIREMENTS)


# Import all modules of the saved code, and answer a request with a detector of each family, without this checkout.
SERVE = """
import base64, importlib, io, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import tasks
names = [found.name for found in pkgutil.walk_packages(tasks.__path__, "tasks.")]
for name in names:
    importlib.import_module(name)
from PIL import Image
from tasks.detectors.registry import DETECTORS, build_detector, detector_class
from tasks.models.answer_request import ModelAnswers
from tasks.spec.detector import FcosLite0Spec, RandomWeights, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec
size = {"width": 64, "height": 64}
fcos = FcosLite0Spec(**size, weights=RandomWeights(), frozen_blocks=0)
picture = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(picture, format="PNG")
for spec in (YoloV3TinySpec(**size), fcos, FasterRcnnMobileNetV3Spec(**size)):
    answers = ModelAnswers(build_detector(spec, 2, seed=1), ("chair", "table"), nms_iou=0.5, exif="as-stored")
    answers.answer([base64.b64encode(picture.getvalue()).decode()], score_threshold=0.0, max_detections=3)
assert {path.partition(":")[0] for path in DETECTORS.values()} <= set(names)
print(tasks.__path__[0])
"""


def test_a_registered_model_carries_the_code_that_it_needs_and_no_other(tmp_path: Path) -> None:
    spec = YoloV3TinySpec(width=64, height=64)
    card = ModelCard(detector=spec, classes=("chair", "table"))
    files = files_of(FederationSpec(), card, lambda: state_of(build_detector(spec, 2, seed=3)), "models:/street@best")
    save_folder(files, tmp_path / "mlflow", Origin("m-" + "0" * 32, "0" * 32))
    code = tmp_path / "mlflow" / "code"
    saved = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {"tasks/models/file.py", "tasks/detectors/fcos_loss.py", "tasks/detectors/yolo_network.py"} <= saved
    assert not any(path.startswith(("tasks/report/", "tasks/suite/", "tasks/strategies/")) for path in saved)
    # -I: neither this folder nor PYTHONPATH is searched.
    command = [sys.executable, "-I", "-c", SERVE, str(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(code / "tasks")


def test_a_note_counts_only_for_the_weights_that_it_names(tmp_path: Path) -> None:
    history: Any = [SimpleNamespace(decision=SimpleNamespace(best_round=0), model=SimpleNamespace(sha256=SHA))]
    assert noted(tmp_path, history) is None
    note = {"uri": "models:/x@best", "version": "1", "weights_sha256": SHA}
    (tmp_path / FILE).write_text(json.dumps(note))
    assert noted(tmp_path, history) == "models:/x@best"
    (tmp_path / FILE).write_text(json.dumps(note | {"weights_sha256": "b" * 64}))
    assert noted(tmp_path, history) is None
    (tmp_path / FILE).write_text("{")
    assert noted(tmp_path, history) is None
