"""Which JSON of silos is accepted: everything that is read can be written again and used in computations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.plain_text import REASON_LIMIT, cut
from infra.store.foreign_json import DEEPEST, read_foreign


def nested(depth: int) -> Any:
    document: Any = 1
    for number in range(depth):
        document = [document] if number % 2 else {"a": document}
    return document


@pytest.mark.parametrize(
    "document",
    [{"ü": "😀", "a": [1, None, True, -0.5, 2**64 - 1, 1 - 2**64]}, "text", 5, [], nested(DEEPEST)],
    ids=["all kinds", "text", "number", "empty", "deep"],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_read_document_can_be_written_and_read_again(document: Any, ascii_only: bool) -> None:
    assert read_foreign(json.dumps(document, ensure_ascii=ascii_only).encode()) == document


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (json.dumps(nested(DEEPEST + 1)).encode(), "at most 32 lists and mappings inside each other"),
        (b"[" * 1_000_000, "at most 32 lists and mappings inside each other"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1" + b"0" * 400, "a whole number in 64 bits, found 1000"),
        (b"-18446744073709551616", "a whole number in 64 bits"),
        (rb'["\ud800"]', "surrogates not allowed"),
        (rb'{"\udfff": 1}', "surrogates not allowed"),
        (rb'{"a": [{"b": "\ude00\ud83d"}]}', "surrogates not allowed"),
        (b'"\xff"', "invalid start byte"),
        ('["utf-16"]'.encode("utf-16"), "can't decode|Expecting value"),
        (b'{"a": 1', "delimiter"),
        (b'{"a": {"b": 1, "b": 2}}', "a.b: expected each key once"),
        (b"", "Expecting value"),
    ],
)
def test_values_that_no_record_can_hold_are_refused(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_foreign(body)


def test_text_is_cut_in_its_middle() -> None:
    assert cut("as it is") == "as it is"
    assert cut("a\ud800b") == "a?b"
    found = cut("a" * 5000 + "b" * 5000)
    assert (len(found) <= REASON_LIMIT, found[:9], found[-9:]) == (True, "a" * 9, "b" * 9)
