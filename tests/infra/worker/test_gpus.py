"""GPUs are read from recorded answers of nvidia-smi, because these tests run without a GPU."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.worker.gpus import Gpu, find_gpus, parse_smi, visible_gpus

TWO = """\
0, GPU-5a1c7f0e-8b6f-9f43-27f1-6d9f1c0b2a11, NVIDIA A100-SXM4-80GB, 81920
1, GPU-5a1c9d22-0b3e-4f54-9c1d-2f0e8a7b6c55, NVIDIA A100-SXM4-80GB, 81920
"""
GPUS = parse_smi(TWO)


def test_rows_of_nvidia_smi_are_read_as_gpus() -> None:
    uuid = "GPU-5a1c7f0e-8b6f-9f43-27f1-6d9f1c0b2a11"
    assert GPUS[0] == Gpu(0, uuid, "NVIDIA A100-SXM4-80GB", 81920)
    assert [gpu.index for gpu in GPUS] == [0, 1]
    assert parse_smi("0, GPU-1b, NVIDIA GB10, [N/A]\n") == [Gpu(0, "GPU-1b", "NVIDIA GB10", 0)]
    assert parse_smi("No devices were found\n") == []


@pytest.mark.parametrize(
    ("setting", "indexes"),
    [
        (None, [0, 1]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("1,0", [1, 0]),
        ("1,-1,0", [1]),
        ("GPU-5a1c9d22", [1]),
        (GPUS[0].uuid, [0]),
    ],
)
def test_cuda_visible_devices_selects_gpus(setting: str | None, indexes: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(GPUS, setting)] == indexes


@pytest.mark.parametrize("setting", ["2", "GPU-5a1c", "MIG-7d4e0b4c", "all"])
def test_the_error_names_a_missing_gpu(setting: str) -> None:
    with pytest.raises(SettingsError, match=f"CUDA_VISIBLE_DEVICES: expected .* there is 0 .*; found {setting}"):
        visible_gpus(GPUS, setting)


def test_nvidia_smi_is_called_with_the_recorded_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script replaces the driver's program. It answers as recorded, if its arguments are the recorded ones."""
    program = tmp_path / "nvidia-smi"
    asked = "--query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits"
    program.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 2\nprintf \'%s\' "{TWO}"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus({}) == GPUS
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'\nexit 9\n"
    )
    assert find_gpus({}) == []
