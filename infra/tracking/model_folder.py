"""Write an MLflow model as a folder. Equal parts and an equal origin give equal bytes.

The model is a pyfunc *model from code* with a safetensors artifact. Nothing is pickled.
"""

from __future__ import annotations

import base64
import io
import logging
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra.tracking.needed_code import needed_files

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CARD_FILE = "MODEL_CARD.md"
ML_MODEL = "MLmodel"
MODEL_FILE = "artifacts/model.safetensors"
SCORE_THRESHOLD = 0.3  # the same as for predict and the sheets
MAX_DETECTIONS = 100
_HEX = "[0-9a-f]{32}"


@dataclass(frozen=True)
class ModelFiles:
    """The parts of a model.

    code: the file with the pyfunc model; it finds ``write_model``'s file as the artifact ``model``.
    packages: folders of Python packages, of which the modules that ``code`` needs are saved with it.
    requirements: distributions that the packages need.
    write_model: writes the model file to the path that it gets.
    card: Markdown, ``MODEL_CARD.md``.
    config: the pyfunc model's ``model_config``.
    modules: names of modules that the code needs and no import statement names.
    """

    code: Path
    packages: tuple[Path, ...]
    requirements: tuple[str, ...]
    write_model: Callable[[Path], None]
    card: str
    config: Mapping[str, Any]
    modules: tuple[str, ...] = ()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@dataclass(frozen=True)
class Origin:
    """All that may differ between two folders of the same parts: when and where the model was registered.

    Only ``python`` affects what MLflow runs: it is the Python version of environments that MLflow makes.
    """

    model_id: str
    run_id: str
    created: str = field(default_factory=_now)
    python: str = field(default_factory=platform.python_version)


# Patterns of an origin's fields in ``MLmodel``, with the only values that they may have.
_ORIGIN = {
    "model_id": re.compile(rf"^model_id: (m-{_HEX})$", re.MULTILINE),
    "run_id": re.compile(rf"^run_id: '?({_HEX})'?$", re.MULTILINE),  # YAML quotes one of digits alone
    "created": re.compile(
        r"^utc_time_created: '([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6})'$", re.MULTILINE
    ),
    "python": re.compile(r"^    python_version: (3\.[0-9]{1,2}\.[0-9]{1,2})$", re.MULTILINE),
}


def read_origin(ml_model: str) -> Origin | None:
    """Return the origin in the text of an ``MLmodel``; None: a field is missing or malformed."""
    found = {name: pattern.search(ml_model) for name, pattern in _ORIGIN.items()}
    values = {name: match[1] for name, match in found.items() if match is not None}
    return Origin(**values) if len(values) == len(_ORIGIN) else None


def save_folder(files: ModelFiles, folder: Path, origin: Origin) -> None:
    """Write the MLflow model to ``folder``, which must not exist.

    ``model.safetensors`` is written beside it, and the folder ``packages``.

    Raises:
        Whatever ``files.write_model`` raises.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    # MLflow warns if pip is not installed, as in uv's environments.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it logs that it validates the example
    file = folder.with_name("model.safetensors")
    files.write_model(file)
    packages = _copied(files, folder.with_name("packages"))
    pyfunc.save_model(
        path=str(folder),
        mlflow_model=Model(artifact_path="model"),
        python_model=str(files.code),
        artifacts={"model": str(file)},
        code_paths=[str(package) for package in packages],
        signature=signature(),
        input_example=(pd.DataFrame({"image": [_example_image()]}), {"score_threshold": SCORE_THRESHOLD}),
        pip_requirements=pinned(files.requirements),  # otherwise MLflow loads the model to find them
        model_config=dict(files.config),
    )
    (folder / CARD_FILE).write_text(files.card, encoding="utf-8")
    _settle(folder, files, origin)


def _copied(files: ModelFiles, folder: Path) -> list[Path]:
    """Copy the modules that the model needs to ``folder``. Return the packages there."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in needed_files(files.code, files.packages, files.modules):
        package = next(package for package in files.packages if file.is_relative_to(package))
        path = folder / package.name / file.relative_to(package)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
    return [folder / package.name for package in files.packages]


def _settle(folder: Path, files: ModelFiles, origin: Origin) -> None:
    """Replace what MLflow wrote about this machine (paths, versions of its tools) by the values of ``origin``."""
    path = folder / ML_MODEL
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document |= {"model_id": origin.model_id, "model_uuid": origin.model_id, "run_id": origin.run_id}
    document["utc_time_created"] = origin.created
    document.pop("model_size_bytes", None)
    flavor = document["flavors"]["python_function"]
    flavor["model_code_path"] = files.code.name  # MLflow uses the name alone
    flavor["artifacts"]["model"]["uri"] = Path(MODEL_FILE).name
    flavor["python_version"] = origin.python
    flavor.pop("cloudpickle_version", None)  # nothing is pickled
    _dump(path, document)
    requirements = pinned(files.requirements)
    conda = [f"python={origin.python}", "pip", {"pip": requirements}]
    _dump(folder / "conda.yaml", {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": conda})
    build = ["pip", "setuptools", "wheel"]
    environment = {"python": origin.python, "build_dependencies": build, "dependencies": ["-r requirements.txt"]}
    _dump(folder / "python_env.yaml", environment)


def _dump(path: Path, document: Any) -> None:
    path.write_text(yaml.safe_dump(document, default_flow_style=False, sort_keys=True), encoding="utf-8")


def signature() -> ModelSignature:
    """Return the model's signature: base64 images in, a list of detections out for each."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    box = Array(DataType.double)
    detection = [Property("class", DataType.string), Property("score", DataType.double), Property("box", box)]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([ColSpec(Array(Object(detection)), "detections")]),
        params=ParamSchema(
            [
                ParamSpec("score_threshold", DataType.double, SCORE_THRESHOLD),
                ParamSpec("max_detections", DataType.long, MAX_DETECTIONS),
            ]
        ),
    )


def pinned(distributions: tuple[str, ...]) -> list[str]:
    """Return the installed versions (``torch==2.9.1``), without a build's local part (``+cpu``), which indexes lack."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in distributions]


def _example_image() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (96, 104, 112)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
