"""A detector's state as it is stored and sent: all of ``state_dict``, including BatchNorm's statistics and counters."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.errors import ClientError


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state on the CPU, contiguous, as safetensors needs it (channels-last tensors are not).

    Tensors are views of the model's where possible: write the state before the model changes.
    """
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write the state as a safetensors file, without a copy in memory. Equal states give equal bytes."""
    save_file({name: state[name] for name in sorted(state)}, path)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the state's safetensors bytes, by which the record of a round names its weights."""
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        path = Path(folder) / "state.safetensors"
        write_state(state, path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``model``, which must have exactly its tensors.

    Raises:
        ClientError: the file is not such a state. The message names the file and the first tensor that is missing,
            unexpected, of another shape or type, or holds NaN or infinity.
    """
    try:
        state = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ClientError(f"{path.name}: expected a safetensors file: {error}") from None
    fault = next(tensor_faults(model.state_dict(), state), None)
    if fault is not None:
        raise ClientError(f"{path.name}: tensor {fault}")
    model.load_state_dict(state)


def tensor_faults(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the differences that keep ``found`` from replacing the state ``own``, each starting with a tensor's name.

    torch itself refuses only other shapes; it would silently convert other types.
    """
    for name in sorted(own.keys() | found.keys()):
        if name not in found or name not in own:
            yield f"{name} is {'missing' if name not in found else 'unexpected'}"
            continue
        fault = value_fault(name, own[name], found[name])
        if fault is not None:
            yield f"{name}{fault}"


def value_fault(name: str, own: Tensor, found: Tensor) -> str | None:
    """Return a text, to follow the tensor's name, on a wrong shape, type or value of ``found``, or None."""
    if found.shape != own.shape:
        return f": expected shape {list(own.shape)}, found {list(found.shape)}"
    if found.dtype != own.dtype:
        return f": expected {_type(own)}, found {_type(found)}"
    if not _finite(found):
        return " holds NaN or infinity"
    if name.endswith("running_var") and bool((found < 0).any()):  # its square root would be NaN
        return " holds a negative variance"
    return None


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Return whether no floating tensor holds NaN or infinity."""
    return all(_finite(tensor) for tensor in state.values())


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # aminmax takes one pass, and its bounds are NaN if any value is.
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


def check_finite(state: Mapping[str, Tensor], *, client: str) -> None:
    """Check the state that a client has trained.

    Raises:
        ClientError: a floating tensor holds NaN or infinity.
    """
    for name, tensor in state.items():
        if not _finite(tensor):
            raise ClientError(f"client {client}: tensor {name} holds NaN or infinity after training")
