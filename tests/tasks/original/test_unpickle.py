"""The original's pickles: every protocol gives the same arrays, and nothing in a file is ever executed."""

from __future__ import annotations

import codecs
import functools
import operator
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.original.unpickle import read_arrays

LIST = "expected a list of numpy arrays and nothing else"


def arrays() -> list[np.ndarray[Any, Any]]:
    draw = np.random.default_rng(3)
    shapes = {"<f4": (4, 3, 1, 1), "<f8": (5,), ">f4": (2, 3), "<f2": (), "<i8": (7,), "|b1": (3,), "|u1": (2, 2)}
    found = [draw.normal(scale=9, size=shape).astype(code) for code, shape in shapes.items()]
    fortran = np.asfortranarray(draw.normal(size=(3, 4)))
    return [*found, fortran, draw.normal(size=(6, 6))[::2, 1::2], np.zeros((0, 3), "f4"), found[0]]


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "model.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "form", [list, tuple, lambda items: OrderedDict((str(i), item) for i, item in enumerate(items))]
)
def test_every_protocol_and_form_is_read(tmp_path: Path, protocol: int, form: Callable[[Any], Any]) -> None:
    expected = arrays()
    for fix_imports in (True, False):
        content = pickle.dumps(form(expected), protocol=protocol, fix_imports=fix_imports)
        found = read_arrays(file_of(tmp_path, content))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("protocol", range(6))
def test_names_of_older_numpy_are_read(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(arrays(), protocol=protocol)
    new, old = b"numpy._core", b"numpy.core"
    if protocol >= 4:  # each name has its length before it
        for module in (b".multiarray", b".numeric"):
            content = content.replace(
                bytes([len(new + module)]) + new + module, bytes([len(old + module)]) + old + module
            )
    else:
        content = content.replace(new, old)
    assert old in content
    assert new not in content
    found = read_arrays(file_of(tmp_path, content))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, arrays(), strict=True))


def test_pickles_of_the_pure_python_pickler_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pure.pkl"
    for protocol in range(6):
        with path.open("wb") as file:
            pickle._Pickler(file, protocol).dump(arrays())
        assert np.array_equal(read_arrays(path)[1], arrays()[1])


class Call:
    """An object that pickles to a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


class Subclass(np.ndarray[Any, Any]):
    pass


def touch(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


GADGETS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda marker: [Call(os.system, f"touch {marker}")], f"asks for {os.name}.system; {LIST}"),
    "eval": (lambda marker: [Call(eval, touch(marker))], f"asks for builtins.eval; {LIST}"),
    "exec as an array": (lambda marker: Call(exec, touch(marker)), "asks for builtins.exec"),
    "partial": (lambda marker: [Call(functools.partial, Call(eval), touch(marker))], "asks for functools.partial"),
    "reduce": (lambda marker: [Call(functools.reduce, Call(getattr), [])], "asks for _functools.reduce"),
    "getattr": (lambda marker: [Call(getattr, np.zeros(1), "tofile")], "asks for builtins.getattr"),
    "attrgetter": (lambda marker: [Call(operator.attrgetter, "__class__")], "asks for operator.attrgetter"),
    "import": (lambda marker: [Call(__import__, "os")], "asks for builtins.__import__"),
    "bytes.decode": (lambda marker: [Call(codecs.decode, "b3M=", "base64")], "asks for _codecs.decode"),
    "encode otherwise": (lambda marker: [Call(codecs.encode, "x", "rot13")], "a call of encode"),
    "numpy.load": (lambda marker: [Call(np.load, "other.npy", None, True)], "asks for numpy.load"),
    "numpy.fromfile": (lambda marker: [Call(np.fromfile, "/etc/passwd")], "asks for numpy"),
    "numpy.memmap": (lambda marker: [Call(np.memmap, str(marker), "u1", "w+", 0, 4)], "asks for numpy.memmap"),
    "subclass": (lambda marker: [np.zeros(3).view(Subclass)], f"asks for {__name__}.Subclass"),
    "objects": (lambda marker: [np.array([1, "a"], dtype=object)], "an array of objects; expected arrays of numbers"),
    "structured": (lambda marker: [np.zeros(2, dtype=[("a", "f4")])], "an array of type V4; expected plain numbers"),
    "text": (lambda marker: [np.array(["ab"])], "an array of type U2; expected plain numbers"),
    "times": (lambda marker: [np.array(["2020"], "M8[Y]")], "an array of type M8; expected plain numbers"),
    "complex": (lambda marker: [np.zeros(2, "c8")], "an array of type c8"),
    "scalar": (lambda marker: [np.float32(1)], "multiarray.scalar"),
    "ndarray itself": (lambda marker: [Call(np.ndarray, (2**40,))], "a call of ndarray"),
    "big array": (lambda marker: [Call(np.zeros(1).__reduce__()[0], np.ndarray, (2**40,), b"d")], "without content"),
    "dtype alone": (lambda marker: [np.dtype("f4")], "array 0: expected an array of numbers, found dtype"),
    "a class": (lambda marker: [np.ndarray], "array 0: expected an array of numbers, found ndarray"),
    "numbers": (lambda marker: [np.zeros(1), 3.0], "array 1: expected an array of numbers, found float"),
    "nested": (lambda marker: [[np.zeros(1)]], "array 0: expected an array of numbers, found list"),
    "nothing in it": (lambda marker: [], "expected a list of arrays, found an empty list"),
    "one array": (lambda marker: np.zeros(2), "expected a list of arrays, found an array"),
    "none": (lambda marker: None, "expected a list of arrays, found nothing"),
    "numbered": (lambda marker: {1: np.zeros(1)}, "a dictionary's keys: expected names"),
    "a set": (lambda marker: {"a"}, "expected a list of"),
    "an object": (lambda marker: [Path("x")], "asks for pathlib"),
    "state of a dictionary": (lambda marker: [Call(OrderedDict, state={"a": 1})], "content of "),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", GADGETS)
def test_nothing_is_executed(tmp_path: Path, case: str, protocol: int) -> None:
    make, message = GADGETS[case]
    marker = tmp_path / "executed"
    path = file_of(tmp_path, pickle.dumps(make(marker), protocol=protocol, fix_imports=False))
    with pytest.raises(DataError) as caught:
        read_arrays(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value) or (case == "a set" and "builtins.set" in str(caught.value))
    assert not marker.exists()
    assert len(str(caught.value)) < 600


def build(shape: bytes, data: bytes, dtype: bytes = b"Vf4\n") -> bytes:
    """Return a hand-written pickle of one array in a list, with instructions of protocols 0 and 2."""
    return (
        b"(lcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n("
        + shape + b"tcnumpy\ndtype\n(" + dtype + b"I00\nI01\ntRI00\n" + data + b"tba."
    )  # fmt: skip


def sized(code: bytes, length: bytes) -> bytes:
    return b"\x80\x04]" + code + length + b"xyz"


RAW: dict[str, tuple[bytes, str]] = {
    "no pickle": (b"weights", "no pickle after byte"),
    "text": (b"{\"a\": 1}", "no pickle after byte"),
    "a zip archive": (b"PK\x03\x04 and so on", "found a zip archive, as torch.save's"),
    "empty": (b"", "the file is empty"),
    "protocol of the future": (b"\x80\x06].", "pickle protocol 6; expected 0 to 5"),
    "no end": (b"\x80\x04]", "no pickle after byte"),
    "an end too early": (b".", "0 values at the end"),
    "two values": (b"]].", "2 values at the end"),
    "more behind": (pickle.dumps([np.zeros(2)]) + b"more", "4 bytes after the end of the pickle"),
    "memo": (b"\x80\x02h\x05.", "no pickle after byte"),
    "memo far away": (b"\x80\x02]r\xff\xff\xff\xff0j\xff\xff\xff\xff.", "found an empty list"),
    "no mark": (b"\x80\x02]e.", "no mark"),
    "mark at the end": (b"(.", "a mark where a value was expected"),
    "append to a number": (b"K\x01K\x02a.", "a list was expected, found int"),
    "item of a list": (b"]K\x01K\x02s.", "a dictionary was expected"),
    "half an item": (b"}(K\x01u.", "a dictionary was expected"),
    "call of text": (b"X\x01\x00\x00\x00a)R.", "a call of str with nothing"),
    "bytes of huge size": (sized(b"\x8e", struct.pack("<Q", 2**62)), "no pickle after byte"),
    "bytes of impossible size": (sized(b"\x8e", struct.pack("<Q", 2**64 - 1)), "no pickle after byte"),
    "array of huge size": (sized(b"\x96", struct.pack("<Q", 2**60)), "no pickle after byte"),
    "text of huge size": (sized(b"\x8d", struct.pack("<Q", 2**60)), "no pickle after byte"),
    "number of huge size": (sized(b"\x8b", struct.pack("<i", 2**31 - 1)), "no pickle after byte"),
    "number of negative size": (sized(b"\x8b", struct.pack("<i", -1)), "no pickle after byte"),
    "frame of huge size": (sized(b"\x95", struct.pack("<Q", 2**63 - 1)), "no pickle after byte"),
    "digits without end": (b"I" + b"9" * 10_000 + b"\n.", "no pickle after byte"),
    "global without a name": (b"\x80\x04K\x01K\x02\x93.", "a global named by int and int"),
    "dotted global": (b"\x80\x04\x8c\x05numpy\x8c\x0bcore.os.sys\x93.", "asks for numpy.core.os.sys"),
    "long global": (b"c" + b"m" * 5000 + b"\nf\n.", "…; expected a list of numpy arrays"),
    "instance": (b"(S'echo'\nios\nsystem\n.", "instruction INST for os.system"),
    "object": (b"(cnumpy\nndarray\no.", "instruction OBJ"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
    "extension": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "persistent": (b"Pother-file\n.", "instruction PERSID for other-file"),
    "persistent value": (b"K\x01Q.", "instruction BINPERSID"),
    "out of band": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    "array too short": (build(b"I3\n", b"Vabcd\n"), "an array of shape [3] of float32: expected 12 bytes, found 4"),
    "array of huge shape": (build(b"I1000000\nI1000000\n", b"Vabcd\n"), "expected 4000000000000 bytes, found 4"),
    "array of endless shape": (build(b"L" + b"9" * 4000 + b"L\n", b"Vabcd\n"), "expected more than 2^64 bytes"),
    "negative shape": (build(b"I-1\n", b"Vabcd\n"), "shape [-1]; expected at most 8 whole numbers from 0"),
    "shape of flags": (build(b"I01\n", b"Vabcd\n"), "expected at most 8 whole numbers from 0"),
    "too many dimensions": (build(b"I1\n" * 9, b"Vabcd\n"), "expected at most 8 whole numbers from 0"),
    "wide text as bytes": (build(b"I1\n", b"Vabc\\u1234\n"), "no pickle after byte"),
    "long double": (build(b"I1\n", b"Vabcd\n", b"Vf16\n"), "an array of type f16"),
    "objects by hand": (build(b"I1\n", b"(lVa\na", b"VO8\n"), "an array of objects"),
    "content of a number": (b"K\x01K\x02b.", "content of int"),
    "self-containing": (b"\x80\x02]q\x00h\x00a.", "array 0: expected an array of numbers, found list"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, case: str) -> None:
    content, message = RAW[case]
    path = file_of(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_arrays(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_pickle_written_by_hand_is_read(tmp_path: Path) -> None:
    (found,) = read_arrays(file_of(tmp_path, build(b"I1\nI1\n", b"V\\u0000\\u0000\\u0080\\u003f\n")))
    assert found.shape == (1, 1)
    assert found.item() == 1.0


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps([np.arange(6.0).reshape(2, 3), np.zeros(2, "f4")], protocol=protocol)
    for length in range(len(content)):
        with pytest.raises(DataError):
            read_arrays(file_of(tmp_path, content[:length]))


def test_repeated_text_does_not_fill_the_memory(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<i", 1000) + b"a" * 1000 + b"q\x01"
    encode = b"c_codecs\nencode\nq\x00"
    again = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R0" * 1000
    with pytest.raises(DataError, match="its text becomes more bytes than the file has"):
        read_arrays(file_of(tmp_path, b"\x80\x02" + encode + b"0" + text + b"0" + again + b"]."))


def test_nested_keys_are_not_hashed(tmp_path: Path) -> None:
    """Each tuple holds the one before it twice, so a hash would take 2^60 steps."""
    key = b")" + b"2\x86" * 60
    with pytest.raises(DataError, match="keys: expected names"):
        read_arrays(file_of(tmp_path, b"\x80\x02}" + key + b"K\x01s."))


def test_too_many_instructions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 1000000 instructions"):
        read_arrays(file_of(tmp_path, b"]0" * 500_001 + b"]."))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: the weight file cannot be read: No such file"):
        read_arrays(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="the weight file cannot be read: Is a directory"):
        read_arrays(tmp_path)
