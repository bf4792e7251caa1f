"""A client's part of phase 2, ``check_client_resource``. It runs in a slot, which does not import Prefect."""

from __future__ import annotations

import os
import time

import psutil

from tasks.site import Site
from tasks.spec.plans import ResourceAnswer
from tasks.spec.turns import ResourceRequest, TurnReply


def client_resources(site: Site, request: ResourceRequest) -> TurnReply:
    """Return this machine's load for each client of the turn, without the load of fedbench's own slots.

    Runs in a slot.
    """
    load, memory = _machine_load()
    gpu_memory = gpu_utilisation = None
    if request.spec.training.device == "cuda":
        gpu_memory, gpu_utilisation = _gpu_load()
    return TurnReply(
        answers=tuple(
            ResourceAnswer(
                client=client,
                load=load,
                free_memory=memory,
                gpu_free_memory=gpu_memory,
                gpu_utilisation=gpu_utilisation,
            )
            for client in request.clients
        )
    )


def _machine_load() -> tuple[float, int]:
    """Return the 1-minute load per core and the free memory in bytes, as if fedbench's slots did not run.

    The slots are this process and its siblings.
    """
    own = [psutil.Process()]
    parent = own[0].parent()
    if parent is not None:
        own += [child for child in parent.children() if child.pid != own[0].pid]
    busy, memory = 0.0, psutil.virtual_memory().available
    for process in own:
        try:
            # Processor time over lifetime: how many cores this process adds to the load average, on the mean.
            spent = process.cpu_times()
            busy += (spent.user + spent.system) / max(time.time() - process.create_time(), 1.0)
            memory += process.memory_info().rss
        except psutil.Error:
            continue
    cores = os.cpu_count() or 1
    return max(os.getloadavg()[0] - busy, 0.0) / cores, memory


def _gpu_load() -> tuple[int, float | None]:
    import torch

    free, _ = torch.cuda.mem_get_info()
    try:
        return free, torch.cuda.utilization() / 100
    except (ModuleNotFoundError, RuntimeError):  # NVML's Python binding is not a dependency
        return free, None
