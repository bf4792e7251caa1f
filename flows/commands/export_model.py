"""Export a model to a file that other programs run, and compare that file with the detector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from flows.commands.opened_model import OpenedModel
from infra.errors import SettingsError
from infra.files.private import data_cache
from infra.settings import Settings
from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader
from tasks.errors import ClientError, DataError, FedbenchError, SpecError
from tasks.models.evaluate import evaluation_sets
from tasks.portable.agreement import Agreement, agreement
from tasks.portable.contents import Pixels, contents

ONNX, TORCHSCRIPT = (".onnx",), (".pt", ".torchscript")
SUFFIXES = (*ONNX, *TORCHSCRIPT)
WRITES_ONNX = ("onnx", "onnxscript")  # packages that torch's exporter needs
RUNS_ONNX = "onnxruntime"
INSTALL = "pip install 'fedbench[export]', or in a checkout: make setup"


@dataclass(frozen=True)
class Exported:
    """An exported file. ``checked``: how it compares with the detector; else ``unchecked`` says why it was not."""

    bytes: int
    checked: Agreement | None
    unchecked: str = ""


def require_exporter(path: Path) -> None:
    """Check that a model can be exported to a file of this name, before anything is read.

    Raises:
        SpecError: the suffix names no format.
        SettingsError: a package is missing; the message has the line that installs it.
    """
    if path.suffix not in SUFFIXES:
        raise SpecError(
            f"{path}: expected a name that ends in {ONNX[0]} (ONNX) or {' or '.join(TORCHSCRIPT)} (TorchScript)"
        )
    missing = [name for name in WRITES_ONNX if path.suffix in ONNX and find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{path}: expected the packages {' and '.join(WRITES_ONNX)}, which write ONNX, found no "
            f"{' and no '.join(missing)}; install: {INSTALL}"
        )


def export_opened(
    model: OpenedModel, path: Path, settings: Settings, *, fields: dict[str, Any], pixels: Pixels, images: int
) -> Exported:
    """Write ``model`` to ``path``, and compare its detections with the detector's on up to ``images`` test images.

    The file appears only after a comparison without a fault. ``fields`` replace rules of evaluation, which become part
    of the network.

    Raises:
        SpecError: the detector cannot be exported.
        DataError: the file cannot be written.
        FedbenchError: the exported network detects other objects than the detector.
    """
    from tasks.portable.onnx_file import onnx_runner, write_onnx
    from tasks.portable.torchscript_file import torchscript_runner, write_torchscript

    detector, is_onnx = model.detector, path.suffix in ONNX
    rules = model.evaluation.model_copy(update=fields)
    kind = torch.uint8 if pixels == "uint8" else torch.float32
    example = torch.zeros(1, 3, detector.height, detector.width, dtype=kind)
    write, runner = (write_onnx, onnx_runner) if is_onnx else (write_torchscript, torchscript_runner)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".fedbench-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            write(draft, detector, rules, example, contents(detector, model.card, rules, pixels))
            checked, unchecked = None, _why_unchecked(is_onnx, images)
            if not unchecked:
                try:
                    pictures = _test_images(model, settings, images)
                except (ClientError, DataError, SettingsError, SpecError) as error:
                    unchecked = f"the test images cannot be read here: {error}"
                else:
                    inputs = (picture.to(kind) for picture in pictures)
                    checked = agreement(detector, runner(draft), inputs, rules)
                    _require_agreement(path, checked)
            draft.chmod(0o644)
            os.replace(draft, path)
    except OSError as error:
        raise DataError(f"{path}: the exported model cannot be written: {error.strerror or error}") from None
    return Exported(path.stat().st_size, checked, unchecked)


def _why_unchecked(is_onnx: bool, images: int) -> str:
    """Return why the file is not compared with the detector; empty if it is."""
    if not images:
        return "--check 0"
    if is_onnx and find_spec(RUNS_ONNX) is None:
        return f"the package {RUNS_ONNX} is not installed; install: {INSTALL}"
    return ""


def _require_agreement(path: Path, checked: Agreement) -> None:
    if not checked.holds:
        raise FedbenchError(
            f"{path}: not written: the exported network detects other objects than the detector: {checked}"
        )


def _test_images(model: OpenedModel, settings: Settings, most: int) -> list[Tensor]:
    """Return up to ``most`` of the model's test images, uint8 [1, 3, H, W], as evaluation reads them.

    Raises:
        SpecError, DataError, SettingsError: the model's data are unknown, or are not on this machine.
        ClientError: an image cannot be decoded.
    """
    spec = model.data
    if spec is None:
        raise SpecError(f"{model.title}: its card names no data")
    loaded = load_data(spec, root_of=settings.data_root, cache=data_cache(settings.home), faults=Faults())
    on = model.card.on
    clients = model.card.clients

    def images() -> Iterator[Tensor]:
        for item in evaluation_sets(loaded, model.card.classes, clients, on=on):
            width, height = model.detector.width, model.detector.height
            for batch in EvaluationLoader(item.samples, width=width, height=height, batch_size=1, cache=ImageCache(0)):
                yield batch.images

    return list(islice(images(), most))
