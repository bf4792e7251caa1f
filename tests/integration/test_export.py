"""Every detector in both formats. torch's exporter takes up to a minute for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.portable.onnx_file import onnx_runner, write_onnx
from tasks.portable.torchscript_file import torchscript_runner, write_torchscript
from tests.tasks.detectors.tiny_detectors import TINY
from tests.tasks.portable.test_network import assert_agrees, exported

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("kind", [kind for kind in TINY if not kind.endswith("batch-norm")])
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_every_detector_is_exported_and_detects_the_same(kind: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    detector, path, _ = exported(kind, tmp_path, write_onnx if form == "onnx" else write_torchscript)
    assert_agrees(detector, (onnx_runner if form == "onnx" else torchscript_runner)(path))
