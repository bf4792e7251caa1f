"""Stand-ins for the few global names in a pickled numpy array. The names themselves are never looked up.

The names are those of numpy 1 and 2 and of pickle's protocols 0 to 5. numpy builds an array only after its shape, type
and bytes were found to fit together.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DIMENSIONS = 8
_SHOWN = 80  # most characters of a name from the file in a message
_PLAIN_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")

GLOBALS: dict[tuple[str, str], str] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",  # protocol 5
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "encode",  # bytes in protocols 0 to 2
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
    ("collections", "OrderedDict"): "OrderedDict",
}


class PickleRefused(Exception):
    """A pickle cannot be used. The message does not name the file."""


class Array:
    """An array. Its content may come later in the file."""

    values: NDArray[Any] | None = None


class Dtype:
    """A type of plain numbers by numpy's code, such as ``f4``. Its byte order comes later in the file."""

    def __init__(self, code: str) -> None:
        if code.lstrip("<>=|").startswith("O"):
            raise PickleRefused("an array of objects; expected arrays of numbers")
        if not _PLAIN_DTYPE.fullmatch(code):
            raise PickleRefused(f"an array of type {short(code)}; expected plain numbers")
        self.code, self.big_endian = code.lstrip("<>=|"), code[0] == ">"

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype((">" if self.big_endian else "<") + self.code)


class Global:
    """One of the names in ``GLOBALS``."""

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"a global named by {kind(module)} and {kind(name)}")
        if (module, name) not in GLOBALS:
            asked = short(f"{module}.{name}")
            raise PickleRefused(f"asks for {asked}; expected a list of numpy arrays and nothing else")
        self.meaning = GLOBALS[module, name]


class NumpyStandIns:
    """What the names return when they are called, in a file of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.unencoded = size  # bytes that texts may still be encoded to

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what the global ``function`` returns for ``arguments``.

        Raises:
            PickleRefused: an array is one of objects, or its bytes do not fit its shape.
            ValueError: numpy's pickles have no such call.
        """
        match getattr(function, "meaning", None), arguments:
            case "reconstruct", (Global(meaning="ndarray"), tuple(), _):
                return Array()
            case "dtype", (str() as code, *_):
                return Dtype(code)
            case "frombuffer", ((bytes() | bytearray() | str()) as data, Dtype() as dtype, tuple() as shape, order):
                array = Array()
                array.values = self._values(shape, dtype, data, fortran=order == "F")
                return array
            case "encode", (str() as text, "latin1" | "latin-1"):
                return self._encoded(text)
            case "bytes", ():
                return b""
            case "OrderedDict", ():
                return {}
            case "OrderedDict", (list() as items,):
                return dict(pairs(items))
        given = ", ".join(map(kind, arguments)) if isinstance(arguments, tuple) else kind(arguments)
        raise ValueError(f"a call of {kind(function)} with {given or 'nothing'}")

    def build(self, target: Any, state: Any) -> None:
        """Set the content of an array or the byte order of a dtype. Raises as :meth:`call`."""
        match target, state:
            case Array(), (1, tuple() as shape, Dtype() as dtype, fortran, (bytes() | bytearray() | str()) as data):
                target.values = self._values(shape, dtype, data, fortran=bool(fortran))
            case Dtype(), (int(), ("<" | ">" | "=" | "|") as order, None, None, None, *_):
                target.big_endian = order == ">"
            case _:
                raise ValueError(f"content of {kind(target)}")

    def _encoded(self, text: str) -> bytes:
        # Every character takes at least a byte of the file. Encoding the same text repeatedly would fill the memory.
        self.unencoded -= len(text)
        if self.unencoded < 0:
            raise PickleRefused("its text becomes more bytes than the file has")
        return text.encode("latin-1")

    def _values(
        self, shape: tuple[Any, ...], dtype: Dtype, data: bytes | bytearray | str, *, fortran: bool
    ) -> NDArray[Any]:
        if len(shape) > MAX_DIMENSIONS or any(type(side) is not int or side < 0 for side in shape):
            raise PickleRefused(f"shape {short(shape)}; expected at most {MAX_DIMENSIONS} whole numbers from 0")
        raw = self._encoded(data) if isinstance(data, str) else data
        needed = math.prod(shape) * dtype.numpy.itemsize
        if needed != len(raw):
            what = f"an array of shape {short(shape)} of {dtype.numpy}"
            raise PickleRefused(f"{what}: expected {short(needed)} bytes, found {len(raw)}")
        if not needed:
            return np.zeros(shape, dtype.numpy)
        return np.frombuffer(raw, dtype.numpy).reshape(shape, order="F" if fortran else "C")


def pairs(items: list[Any]) -> list[tuple[str, Any]]:
    """Return a dictionary's keys and values. Keys must be text, because hashing a nested tuple could take forever."""
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], str):
            raise ValueError("a dictionary's keys: expected names")
    return [(item[0], item[1]) for item in items]


def kind(value: Any) -> str:
    """Return the kind of ``value`` as a message names it."""
    match value:
        case None:
            return "nothing"
        case list() | tuple() | dict() if not value:
            return f"an empty {type(value).__name__}"
        case Array():
            return "an array" if value.values is not None else "an array without content"
        case Global():
            return value.meaning
    return type(value).__name__.lower()


def short(value: Any) -> str:
    """Return a value from the file for a message. Numbers beyond 64 bits are not written out."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short, value[:MAX_DIMENSIONS]))}{', …' if value[MAX_DIMENSIONS:] else ''}]"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "more than 2^64"
    if not isinstance(value, str):
        return kind(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in value[:_SHOWN])
    return text if len(value) <= _SHOWN else text[:-1] + "…"
