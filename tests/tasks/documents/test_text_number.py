"""Text becomes a number only if every tool reads the same one in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.documents.text_number import is_digits, read_decimal

GOOD = {"0": 0.0, "-0": 0.0, "+5": 5.0, "007": 7.0, "1.": 1.0, ".5": 0.5, "-1.25e2": -125.0, "1E-3": 0.001}
BAD = (
    "", " ", "1_0", "1_0.5", "1e1_0", "inf", "-inf", "Infinity", "nan", "NaN", " 1", "1 ", "1\n", "\u00a01", "٣", "１",
    "1,5", "0x10", "1e", ".", "-", "+-1", "1e400", "-1e400", "1d5", "1 0", "true", "²",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_decimal_numbers_are_read(text: str) -> None:
    assert read_decimal(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        read_decimal(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back_from_its_text(value: float) -> None:
    assert read_decimal(repr(value)) == value


@given(st.text())
def test_what_is_read_is_what_python_reads(text: str) -> None:
    try:
        found = read_decimal(text)
    except ValueError:
        return
    assert found == float(text)


@pytest.mark.parametrize(("text", "expected"), [("0", True), ("10", True), ("", False), ("٣", False), ("1_0", False)])
def test_digits_are_those_of_ascii(text: str, expected: bool) -> None:
    assert is_digits(text) == expected
