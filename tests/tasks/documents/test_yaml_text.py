"""YAML documents: repeated keys, scalars as written, and refused documents."""

from __future__ import annotations

import re

import pytest

from tasks.documents.errors import DocumentError
from tasks.documents.plain import Plain
from tasks.documents.yaml_text import read_document

REFUSED = {
    "a: 1\nb: 2\na: 3\n": ": a: expected each key once, found it twice on lines 1 and 3",
    "a: 1\n'a': 3\n": ": a: expected each key once, found it twice on lines 1 and 2",
    "{a: 1, a: 2}": ": a: expected each key once, found it twice on line 1",
    '{"a": 1,\n "a": 2}': ": a: expected each key once, found it twice on lines 1 and 2",
    "t:\n- x: {p: 1,\n    p: 2}\n": ": t.0.x.p: expected each key once, found it twice on lines 2 and 3",
    "a: &b {x: 1}\nc: {<<: *b, x: 2}\n": ", line 2: << puts one mapping into another in YAML 1.1, .* YAML 1.2",
    "? [1]\n: 2\n": ", line 1: expected YAML: expected a text as key, found a sequence",
    "a: !!int 010\n": ", line 1: expected YAML: could not determine what tag:yaml.org,2002:int is",
    "a: !!set {x}\n": ", line 1: expected YAML: could not determine what tag:yaml.org,2002:set is",
    "a: &b [*b]\n": ", line 1: expected YAML: an alias is inside the value that it names",
    "a: 1\n---\nb: 2\n": r", line 2, column 1: expected YAML: expected a single .*, but found another document$",
    "a: [\n": r", line 2, column 1: expected YAML: while parsing a flow node, .*, but found the end of the file$",
    "data: {kind: x\n  b: c: d": r", line 2, column 4: expected YAML: .* \(from line 1\), expected ',' or '}', .* ':'$",
    "a: 1\nb: c: d": ", line 2, column 5: expected YAML: mapping values are not allowed here$",
    "a: 1\nb: \x07": ", line 2, column 4: expected YAML: unacceptable character #x0007$",
    "\0": ", line 1, column 1: expected YAML: unacceptable character #x0000$",
    "[" * 3000: ": expected YAML: maximum recursion",
    '{"a": ' * 100_000: ": expected YAML: maximum recursion",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_bad_documents_are_refused(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(text, "my.yaml")
    message = caught.value.of("my.yaml")
    assert re.match(f"my.yaml{REFUSED[text]}", message), message


def test_plain_scalars_keep_their_line_and_quoted_ones_are_text() -> None:
    found = read_document("010: [no, 'no', !!str no]\nb:\n- 1e3\n- ~\n-\n", "my.yaml")
    assert found == {"010": ["no", "no", "no"], "b": ["1e3", "~", None]}
    assert [isinstance(item, Plain) for item in found["010"]] == [True, False, False]
    assert found["010"][0].where == "my.yaml: line 1"
    assert found["b"][0].where == "my.yaml: line 3"


def test_json_is_read_as_json() -> None:
    found = read_document('\ufeff {"a": 1e-05, "b": true, "c": "\\ud83d\\ude00", "d":\t[null]}', "my.json")
    assert found == {"a": 1e-05, "b": True, "c": "\N{GRINNING FACE}", "d": [None]}


def test_a_document_that_only_looks_like_json_is_read_as_yaml() -> None:
    found = read_document("{a: 010, b: NaN}", "my.yaml")
    assert {name: type(value) for name, value in found.items()} == {"a": Plain, "b": Plain}


def test_an_empty_document_gives_none() -> None:
    assert [read_document(text, "x") for text in ("", "# nothing\n", "null", "~")] == [None] * 4


def test_aliases_fill_neither_memory_nor_time() -> None:
    """Readers of a document visit a value once for each alias."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    found = read_document("\n".join(lines[:17]), "my.yaml")
    assert found["a16"][0] is found["a16"][1]
    with pytest.raises(
        DocumentError, match="expected aliases that stand for at most 1000000 values, found m"
    ) as caught:
        read_document("\n".join(lines), "my.yaml")
    assert caught.value.line == 19
    items = ", ".join(["x"] * 20_000)
    many = read_document(f"a: &a [{items}]\n" + "".join(f"b{n}: *a\n" for n in range(40)), "my.yaml")
    assert len(many["b39"]) == 20_000
