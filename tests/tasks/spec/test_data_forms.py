"""Mistakes in specifications of BDD100K, VisDrone and KITTI, and in patterns of names: the error that each gives."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.errors import SpecError
from tasks.spec.federation import parse_spec
from tasks.spec.name_patterns import pattern_fault

NAME = {"kind": "visdrone", "name": "a"}
SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "no group": (
        NAME | {"clients": {"kind": "name", "pattern": "a"}},
        r"pattern: expected exactly one group, .* found 0",
    ),
    "two groups": (
        NAME | {"clients": {"kind": "name", "pattern": "(a)(b)"}},
        r"expected exactly one group, .* found 2",
    ),
    "no expression": (
        NAME | {"clients": {"kind": "name", "pattern": "(a"}},
        r"data\.clients\.pattern: expected a regular expression of Python, found '\(a': missing \)",
    ),
    "a long pattern": (
        NAME | {"clients": {"kind": "name", "pattern": f"({'a' * 200})"}},
        r"data\.clients\.pattern: expected at most 200 characters, found 202",
    ),
    "an endless pattern": (
        NAME | {"clients": {"kind": "name", "pattern": "(a+)+b"}},
        r"data\.clients\.pattern: expected no group that repeats, because matching may never end, found '\(a\+\)\+b'",
    ),
    "a slow pattern": (
        NAME | {"clients": {"kind": "name", "pattern": "(.*).*.*.*"}},
        r"data\.clients\.pattern: expected at most three of \*, \+ and",
    ),
    "tests by name": (
        NAME | {"clients": {"kind": "name", "test": "own"}},
        r"data\.clients\.test: expected 'per-device'",
    ),
    "a field of VisDrone": (
        NAME | {"clients": {"kind": "field"}},
        r"data\.clients\.kind: expected one of: 'name', 'list', 'iid', 'dirichlet', 'size', found 'field'",
    ),
    "eleven classes": (NAME | {"classes": list("abcdefghijk")}, r"data\.classes: expected a list of at most 10"),
    "a folder elsewhere": (NAME | {"train": "../a"}, r"data\.train: expected text that matches"),
    "labels elsewhere": (
        {"kind": "bdd100k", "name": "a", "train": "/a.json"},
        r"data\.train: expected text that matches",
    ),
    "another field of KITTI": (
        {"kind": "kitti", "name": "a", "split": 1},
        r"data\.split: no such field; .*images, labels",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_mistakes_in_specifications_name_the_field(case: str) -> None:
    data, message = SPECS[case]
    with pytest.raises(SpecError, match=message):
        parse_spec({"data": data}, source="a")


def test_a_slow_pattern_is_refused() -> None:
    for pattern in (r"(a+)+b", r"(?:a*)*(b)", r"(.*.*.*.*)", "(?:a|b)*(c)", "(a)(?#b)*", "a?" * 10 + "(b)", "(x){2}"):
        assert pattern_fault(pattern), pattern
    for pattern in (r"^(\d+)_", r"/([^/_]+)_[^/]*$", r"\((\d{7})\)+", r"[)*+]+(x)", r"(?:train|val)/(.+?)-", r"(a)?b"):
        assert pattern_fault(pattern) is None, pattern


@pytest.mark.parametrize(
    "pattern",
    [r"(?#[)(a+)+(?#])b", r"(?i:(?#[)(a+)+(?#])b)", r"(?x:(a+) +)b", r"(?x)(a+) +b", "(?i-s:(?x:(a+)#\n+))b"],
)
def test_a_repeated_group_cannot_be_hidden_in_comments_or_by_the_flag_x(pattern: str) -> None:
    fault = pattern_fault(pattern)
    assert fault is not None
    assert "without a comment" in fault or "without the flag x" in fault


def test_what_only_looks_like_a_comment_or_a_flag_is_no_fault() -> None:
    for pattern in (r"cam\(?x(\d)", r"\(?#(\d)", r"(?P<x>a)", r"(?i:(a))", r"(?:x)(a)", r"(?<=x)(a)"):
        assert pattern_fault(pattern) is None, pattern
