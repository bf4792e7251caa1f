"""Find this machine's GPUs without CUDA, which would not work in forks of a process that has called it.

NVML lists them: through its Python binding (``nvidia-ml-py``) if that is installed, else through the driver's
``nvidia-smi``.
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
    """A GPU. ``index`` is NVML's, in the order of the PCI bus; ``megabytes`` is its memory in 2^20 bytes."""

    index: int
    uuid: str
    name: str
    megabytes: int


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` of ``environment`` leaves visible; none without a driver.

    Raises:
        SettingsError: ``CUDA_VISIBLE_DEVICES`` names a GPU that is not there.
    """
    gpus = _from_binding()
    if gpus is None:
        gpus = _from_smi()
    return visible_gpus(gpus, environment.get(VISIBLE))


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    """Return the GPUs that ``setting`` names, by index or by the beginning of the UUID, in its order.

    ``setting`` None names all GPUs, an empty one none. Indexes count in the order of the PCI bus, which is CUDA's under
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Raises:
        SettingsError: it names a GPU that is not there, or a slice of a GPU (MIG): NVML does not list slices.
    """
    if setting is None:
        return list(gpus)
    chosen = []
    for name in filter(None, (part.strip() for part in setting.split(","))):
        if name == "-1":  # CUDA ignores all entries from here on
            break
        found = [gpu for gpu in gpus if name == str(gpu.index) or (len(name) > 4 and gpu.uuid.startswith(name))]
        if len(found) != 1:
            there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "no GPU"
            raise SettingsError(f"{VISIBLE}: expected indexes or UUIDs of GPUs, there is {there}; found {name}")
        chosen += found
    return chosen


def parse_smi(text: str) -> list[Gpu]:
    """Parse the output of ``nvidia-smi --query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits``.

    A GPU has 0 megabytes if the driver does not give its memory (``[N/A]``: memory shared with the processor).
    """
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == 4 and row[0].strip().isdigit():
            index, uuid, name, memory = (field.strip() for field in row)
            gpus.append(Gpu(int(index), uuid, name, int(memory) if memory.isdigit() else 0))
    return gpus


def _from_binding() -> list[Gpu] | None:
    """Return the GPUs; None if the binding is not installed, or finds no driver."""
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
    return value.decode() if isinstance(value, bytes) else value  # nvidia-ml-py before 12 returns bytes


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
