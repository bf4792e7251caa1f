"""The values of YAML's plain scalars. Those that YAML 1.1 and 1.2 read differently are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks.documents.errors import DocumentError
from tasks.documents.plain import Plain, read_plain

ALIKE: dict[str, Any] = {
    "": None, "~": None, "null": None, "NULL": None,
    "true": True, "False": False,
    "5": 5, "-5": -5, "+5": 5, "0": 0, "-0": 0, "0x1F": 31,
    "0.5": 0.5, ".5": 0.5, "5.": 5.0, "1.5e+3": 1500.0, "-0.25": -0.25, ".inf": math.inf, "-.inf": -math.inf,
    # PyYAML reads these as text, but JSON writes numbers like this.
    "1e3": 1000.0, "1e-05": 1e-05, "1.5E3": 1500.0, "1e+16": 1e16,
    "word": "word", "1.2.3": "1.2.3", "0x1G": "0x1G", "007-cam": "007-cam", "tRue": "tRue", "-": "-", "1:2:x": "1:2:x",
}  # fmt: skip
# The readings by YAML 1.1 and YAML 1.2 that the message gives.
DIFFERENT: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("yes", "Yes", "YES", "y", "Y", "on", "On", "ON"), ("true", "a text")),
    **dict.fromkeys(("no", "No", "NO", "n", "N", "off", "Off", "OFF"), ("false", "a text")),
    "010": ("8", "10"),
    "000010": ("8", "10"),
    "-010": ("-8", "-10"),
    "08": ("a text", "8"),
    "00": ("0", "0"),
    "05.5": ("5.5", "5.5"),
    "0o10": ("a text", "8"),
    "0b11": ("3", "a text"),
    "0x_1F": ("31", "a text"),
    "1_000": ("1000", "a text"),
    "1_000.5": ("1000.5", "a text"),
    "1:30": ("90", "a text"),
    "1:30.5": ("90.5", "a text"),
    "2026-01-02": ("a date", "a text"),
    "2026-99-99": ("a date", "a text"),
    "2026-01-02 03:04:05": ("a date", "a text"),
    "-.5": ("a text", "-0.5"),
    "5.e3": ("a text", "5000.0"),
    "+1e3": ("a text", "1000.0"),
    "=": ("a default", "a text"),
}


@pytest.mark.parametrize("text", ALIKE)
def test_scalars_that_both_versions_read_alike_have_this_value(text: str) -> None:
    found = read_plain(text)
    assert (type(found), found) == (type(ALIKE[text]), ALIKE[text])


@pytest.mark.parametrize("text", DIFFERENT)
def test_scalars_that_the_versions_read_differently_are_refused_with_both_readings(text: str) -> None:
    old, new = DIFFERENT[text]
    with pytest.raises(DocumentError) as caught:
        Plain(text, "my.yaml: line 3").value("training.batch_size")
    message = str(caught.value)
    assert message.startswith(f"my.yaml: line 3: training.batch_size: {text} ")
    assert f"is {old} in YAML 1.1 and {new} in YAML 1.2; expected quotes where text is meant" in message
    assert ("leading zero" in message) == (text.lstrip("-")[:2] in ("00", "05", "08", "01"))


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_json_writes_them_keep_their_value(number: float) -> None:
    found = read_plain(json.dumps(number))
    assert (type(found), found) == (type(number), number)


NUMBER_LIKE = st.text("0123456789_.:+-eExobny~=TtRrUu", max_size=7)


@given(NUMBER_LIKE)
def test_a_scalar_is_read_as_by_pyyaml_or_as_a_number_of_json(text: str) -> None:
    """PyYAML read the files before. So a value in an existing file is read as before, or refused."""
    try:
        found = read_plain(text)
    except ValueError:
        return
    resolver = yaml.SafeLoader("")
    node = yaml.ScalarNode(resolver.resolve(yaml.ScalarNode, text, (True, False)), text)
    before = resolver.construct_object(node)
    assert (type(found) is type(before) and (found == before or found != found)) or found == float(text), (
        found,
        before,
    )


def test_a_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number of fewer digits, found 9999"):
        read_plain("9" * 9999)
