"""Reader of the original benchmark's weight files: pickled lists of numpy arrays, read without unpickling.

The original's server writes ``pickle.dump([parameter.data.cpu().numpy(), …])`` to the task's ``model_path``
(``yolo_model.pkl``); after the first round the arrays are float64. A pickle is a program for a stack machine that may
call anything. Here the standard library's ``pickletools`` only lists its instructions. This reader follows those that
build lists, tuples, dictionaries, numbers, text and bytes. It looks up no global name: the names in numpy's arrays
have stand-ins (:mod:`tasks.original.pickled_numpy`), and any other name or instruction is an error. Memory is bounded
by the file's size, whatever sizes the file declares.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tasks.documents.regular_file import open_regular
from tasks.errors import DataError
from tasks.original.pickled_numpy import Array, Global, NumpyStandIns, PickleRefused, kind, pairs, short

# YOLOv3's 222 arrays need about 5000 instructions.
MAX_INSTRUCTIONS = 1_000_000

_VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Mark:
    """The object that the instruction MARK puts on the stack."""


def read_arrays(path: Path) -> list[NDArray[Any]]:
    """Return the arrays of a pickled list, tuple or (ordered) dictionary of numpy arrays, in order and read-only.

    Nothing in the file is ever executed.

    Raises:
        DataError: the file cannot be read, is not a whole pickle, or has anything but arrays of numbers. The message
            names a global that is not allowed.
    """
    try:
        with open_regular(path) as file:
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty; expected a pickled list of arrays")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[:2] == b"PK":
                    raise DataError(f"{path}: expected a pickled list of arrays, found a zip archive, as torch.save's")
                result = _PickleReader(len(content)).read(content)
                rest = len(content) - content.tell()
    except OSError as error:
        raise DataError(f"{path}: the weight file cannot be read: {error.strerror or error}") from None
    except PickleRefused as error:
        raise DataError(f"{path}: {error}") from None
    if rest:
        raise DataError(f"{path}: {rest} bytes after the end of the pickle; expected none")
    if isinstance(result, dict):
        result = list(result.values())
    if not isinstance(result, list | tuple) or not result:
        raise DataError(f"{path}: expected a list of arrays, found {kind(result)}")
    arrays = []
    for index, item in enumerate(result):
        if not isinstance(item, Array) or item.values is None:
            raise DataError(f"{path}: array {index}: expected an array of numbers, found {kind(item)}")
        arrays.append(item.values)
    return arrays


class _PickleReader:
    """A stack machine with the instructions that lists of arrays need."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.numpy = NumpyStandIns(size)

    def read(self, content: Any) -> Any:
        """Return the object that the pickle ``content`` describes.

        Raises:
            PickleRefused: ``content`` is not a pickle, or not a list of arrays.
        """
        position: int | None = 0
        try:
            for number, (opcode, argument, at) in enumerate(pickletools.genops(content)):
                position = at
                if number >= MAX_INSTRUCTIONS:
                    raise PickleRefused(f"more than {MAX_INSTRUCTIONS} instructions; expected a list of arrays")
                if opcode.name == "STOP":
                    if len(self.stack) != 1:
                        raise ValueError(f"{len(self.stack)} values at the end")
                    return self.pop()
                self.follow(opcode.name, argument)
        # IndexError and KeyError: a value or a memo entry is missing.
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
            why = short(str(error) or type(error).__name__)
            raise PickleRefused(
                f"expected a pickled list of arrays; damaged or no pickle after byte {position}: {why}"
            ) from None
        raise PickleRefused("the pickle has no end")

    def follow(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_CONSTANTS.get(name, argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            self.stack.append(Global(module, attribute))
        elif name == "PROTO" and argument > 5:
            raise PickleRefused(f"pickle protocol {argument}; expected 0 to 5")
        elif name not in ("PROTO", "FRAME"):
            step = _STEPS.get(name)
            if step is None:
                named = f" for {short(argument.replace(' ', '.'))}" if isinstance(argument, str) else ""
                raise PickleRefused(f"instruction {name}{named}; expected a list of numpy arrays and nothing else")
            step(self)

    def top(self) -> Any:
        if isinstance(self.stack[-1], _Mark):
            raise ValueError("a mark where a value was expected")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise ValueError("no mark")

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise ValueError(f"a list was expected, found {kind(target)}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"a dictionary was expected, found {kind(target)}")
        target.update(pairs(list(zip(values[::2], values[1::2], strict=True))))

    # The instructions; pickletools documents each of them.

    def mark(self) -> None:
        self.stack.append(_Mark())

    def drop(self) -> None:
        self.stack.pop()

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def duplicate(self) -> None:
        self.stack.append(self.top())

    def empty_list(self) -> None:
        self.stack.append([])

    def make_list(self) -> None:
        self.stack.append(self.pop_to_mark())

    def append_one(self) -> None:
        self.append([self.pop()])

    def append_all(self) -> None:
        self.append(self.pop_to_mark())

    def empty_tuple(self) -> None:
        self.stack.append(())

    def make_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def empty_dict(self) -> None:
        self.stack.append({})

    def make_dict(self) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self.set_items(values)

    def set_one(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_all(self) -> None:
        self.set_items(self.pop_to_mark())

    def named_global(self) -> None:
        attribute, module = self.pop(), self.pop()
        self.stack.append(Global(module, attribute))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self.numpy.call(function, arguments))

    def build(self) -> None:
        state = self.pop()
        self.numpy.build(self.top(), state)


_STEPS: dict[str, Callable[[_PickleReader], None]] = {
    "MARK": _PickleReader.mark,
    "POP": _PickleReader.drop,
    "POP_MARK": _PickleReader.drop_to_mark,
    "DUP": _PickleReader.duplicate,
    "EMPTY_LIST": _PickleReader.empty_list,
    "LIST": _PickleReader.make_list,
    "APPEND": _PickleReader.append_one,
    "APPENDS": _PickleReader.append_all,
    "EMPTY_TUPLE": _PickleReader.empty_tuple,
    "TUPLE": _PickleReader.make_tuple,
    "TUPLE1": lambda reader: reader.tuple_of(1),
    "TUPLE2": lambda reader: reader.tuple_of(2),
    "TUPLE3": lambda reader: reader.tuple_of(3),
    "EMPTY_DICT": _PickleReader.empty_dict,
    "DICT": _PickleReader.make_dict,
    "SETITEM": _PickleReader.set_one,
    "SETITEMS": _PickleReader.set_all,
    "STACK_GLOBAL": _PickleReader.named_global,
    "REDUCE": _PickleReader.reduce,
    "BUILD": _PickleReader.build,
}
