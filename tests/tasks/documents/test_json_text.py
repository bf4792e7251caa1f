"""JSON with repeated keys is refused, and the error names the key and its lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.documents.errors import DuplicateKey
from tasks.documents.json_text import read_json

TWICE = {
    '{"a": 1, "a": 2}': "a: expected each key once, found it twice on line 1",
    '{"a": 1,\n "b": {"a": 1},\n\n "a": 2}': "a: expected each key once, found it twice on lines 1 and 4",
    '{"x": [0, {"b": 1}, {"a": "{",\n"a": "}"}]}': "x.2.a: expected each key once, found it twice on lines 1 and 2",
    '{"x": {"y": [[], {}, {"\\u0061": [1, 2],\n"c,": ":", "a": "\\n"}]}}': "x.y.2.a: .* on lines 1 and 2",
    '{"\\"": "a", "a":\n"\\\\", "\\"": 1}': '": expected each key once, found it twice on lines 1 and 2',
    '[{"a": 1}, {"a": 1}, {"b": {}, "b": {}}]': "2.b: expected each key once, found it twice on line 1",
}


@pytest.mark.parametrize("text", TWICE)
def test_the_key_and_both_lines_are_named(text: str) -> None:
    for form in (text, text.encode(), text.encode("utf-16")):
        with pytest.raises(DuplicateKey, match=f"^{TWICE[text]}$"):
            read_json(form)


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(DOCUMENTS)
def test_json_without_repeated_keys_is_read_as_by_the_json_module(document: object) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
        assert read_json(text) == document


def test_options_are_those_of_the_json_module() -> None:
    assert read_json("[1, 2]", parse_int=str) == ["1", "2"]
    with pytest.raises(json.JSONDecodeError):
        read_json('{"a": 1,}')
