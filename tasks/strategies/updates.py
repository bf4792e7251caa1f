"""The tensors of an update, and the check that every update must pass before it is aggregated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from tasks.errors import ClientError

# Most bytes of a header. It takes about 100 for each tensor of a model.
MOST_HEADER = 1 << 22
# The names of types in safetensors' headers (https://github.com/huggingface/safetensors, "Format").
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorSpec(NamedTuple):
    """Shape and type of one tensor of a model's state."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


Reference = Mapping[str, TensorSpec]


def check_header(file: Path, most: int = MOST_HEADER) -> None:
    """Refuse a safetensors file whose header has more than ``most`` bytes: in memory it takes many times its size.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is larger, or the file is too short for one.
    """
    with file.open("rb") as content:
        length = content.read(8)
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > most:
        raise ValueError(f"a header of {size} bytes, expected at most {most}" if len(length) == 8 else "no header")


def reference_of(state: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Return the shape and type that each tensor of an update must have to fit a model with this state."""
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def read_reference(file: Path, *, client: str) -> dict[str, TensorSpec]:
    """Return the shape and type of each tensor of a safetensors file, by name. Reads the header alone.

    Raises:
        ClientError: the file cannot be read, is not in safetensors format, or holds a type that no model state has.
    """
    found = {}
    try:
        check_header(file)
        with safe_open(file, framework="pt") as update:
            for name in update.keys():  # noqa: SIM118 (no mapping)
                entry = update.get_slice(name)
                kind = entry.get_dtype()
                if kind not in _DTYPES:
                    raise ClientError(
                        f"client {client}: tensor {name}: expected one of {', '.join(_DTYPES)}, found {kind}"
                    )
                found[name] = TensorSpec(tuple(entry.get_shape()), _DTYPES[kind])
    except (OSError, ValueError, SafetensorError) as error:
        raise ClientError(f"client {client}: expected an update in safetensors format, found {error}") from None
    return found


def check_update(reference: Reference, file: Path, *, client: str) -> None:
    """Refuse an update whose tensors differ from ``reference`` in name, shape or type. Reads the header alone.

    Raises:
        ClientError: a tensor differs; the message names the client, the tensor, what was expected and what was found.
    """
    check_tensors(reference, read_reference(file, client=client), client=client)


def check_tensors(reference: Reference, found: Reference, *, client: str) -> None:
    """Refuse an update whose tensors, ``found``, differ from ``reference`` in name, shape or type.

    Raises:
        ClientError: as :func:`check_update`.
    """
    for name, expected in reference.items():
        expected = TensorSpec(tuple(expected[0]), expected[1])
        if name not in found:
            raise ClientError(f"client {client}: tensor {name}: expected {expected}, found no such tensor")
        if found[name] != expected:
            raise ClientError(f"client {client}: tensor {name}: expected {expected}, found {found[name]}")
    extra = sorted(found.keys() - reference.keys())
    if extra:
        raise ClientError(f"client {client}: tensor {extra[0]}: expected no such tensor, found {found[extra[0]]}")
