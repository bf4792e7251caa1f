"""Copies between the CPU and a GPU that do not make the host wait: few, and from pinned memory.

A copy from ordinary memory waits for the GPU, so a step with many small ones leaves the GPU idle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Return ``values`` as a float32 tensor on ``device``. The host does not wait for a GPU."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float32, device=device)
    return torch.tensor(values, dtype=torch.float32).pin_memory().to(device, non_blocking=True)


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return copies of ``tensors``, all from one device, on ``device``. Their bytes move in a single copy.

    The host waits for a copy to the CPU, and for none to a GPU. The results are views of one buffer. They have no
    gradient.
    """
    if not tensors:
        return []
    flat = [tensor.detach().contiguous().reshape(-1) for tensor in tensors]
    # The largest elements come first, so that each tensor starts at a multiple of its element's size.
    order = sorted(range(len(flat)), key=lambda index: -flat[index].element_size())
    buffer = torch.cat([flat[index].view(torch.uint8) for index in order])
    if buffer.device.type == "cpu" and device.type == "cuda":
        buffer = buffer.pin_memory().to(device, non_blocking=True)
    else:
        buffer = buffer.to(device)
    found: list[Tensor] = [buffer] * len(flat)
    start = 0
    for index in order:
        end = start + flat[index].numel() * flat[index].element_size()
        found[index] = buffer[start:end].view(flat[index].dtype).view(tensors[index].shape)
        start = end
    return found
