"""GPUs of this machine, found without CUDA: the process that asks is the parent of forks, which CUDA does not survive.

Asked is NVML: its Python binding (``nvidia-ml-py``) if it is installed, else the driver's ``nvidia-smi``.
"""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import SettingsError

SMI_FIELDS = "index,uuid,name,memory.total"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``index`` is NVML's (the PCI bus's order), ``megabytes`` its memory in 2^20 bytes."""

    index: int
    uuid: str
    name: str
    megabytes: int


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """All GPUs that ``CUDA_VISIBLE_DEVICES`` of ``environment`` leaves visible; none without a driver.

    Raises:
        SettingsError: ``CUDA_VISIBLE_DEVICES`` names a GPU that is not there.
    """
    gpus = _from_binding()
    if gpus is None:
        gpus = _from_smi()
    return visible_gpus(gpus, environment.get(VISIBLE))


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    """Those that ``setting`` names, by index or by the beginning of the UUID, in its order. None: all; empty: none.

    Indexes are taken in the PCI bus's order, which is CUDA's under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Raises:
        SettingsError: it names a GPU that is not there, or a slice of one (MIG), of which NVML lists none.
    """
    if setting is None:
        return list(gpus)
    chosen = []
    for name in filter(None, (part.strip() for part in setting.split(","))):
        if name == "-1":  # CUDA's own way to say: none from here on
            break
        found = [gpu for gpu in gpus if name == str(gpu.index) or (len(name) > 4 and gpu.uuid.startswith(name))]
        if len(found) != 1:
            there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "no GPU"
            raise SettingsError(f"{VISIBLE}: expected indexes or UUIDs of GPUs, there is {there}; found {name}")
        chosen += found
    return chosen


def parse_smi(text: str) -> list[Gpu]:
    """Rows of ``nvidia-smi --query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits``.

    A GPU whose memory the driver does not tell (``[N/A]``, memory shared with the processor) has 0 megabytes.
    """
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == 4 and row[0].strip().isdigit():
            index, uuid, name, memory = (field.strip() for field in row)
            gpus.append(Gpu(int(index), uuid, name, int(memory) if memory.isdigit() else 0))
    return gpus


def _from_binding() -> list[Gpu] | None:
    """None: the binding is not installed, or finds no driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = (_text(get(handle)) for get in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
            gpus.append(Gpu(index, uuid, name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20))
        return gpus
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before nvidia-ml-py 12


def _from_smi() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_smi(answer.stdout) if answer.returncode == 0 else []
