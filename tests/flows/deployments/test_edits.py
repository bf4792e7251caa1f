"""The marks of what was written tell a value that was changed on Prefect's page from one that is new in fedbench."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flows.deployments.edits import MISSING, MOST_CHARACTERS, Edit, Written, differences, marks, merge
from flows.deployments.page import fields_of
from flows.deployments.table import CronTimes, deployments

TIMES = CronTimes("0 3 * * *", "Asia/Tokyo", active=False)


@pytest.mark.parametrize(
    ("written", "wanted", "found", "merged", "edited"),
    [
        ({"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, []),  # the file has changed
        ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}, ["a"]),  # the page has changed
        ({"a": 1}, {"a": 2}, {"a": 2}, {"a": 2}, []),  # both, to the same
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}, ["a"]),  # both
        ({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 3}, {"a": 2, "b": 3}, ["b"]),
        ({}, {}, {"a": 1}, {"a": 1}, ["a"]),  # added on the page
        ({"a": 1}, {"a": 1}, {}, {}, ["a"]),  # removed on the page
        ({"a": 1}, {}, {"a": 1}, {}, []),  # removed from the file
        ({}, {"a": 1}, {}, {"a": 1}, []),  # added to the file
        ({"a": 1.0}, {"a": 1}, {"a": 1}, {"a": 1}, []),  # JSON keeps no difference
        ({"a": True}, {"a": True}, {"a": 1}, {"a": 1}, ["a"]),
        ({"g": {"a": 1, "b": 1}}, {"g": {"a": 2, "b": 1}}, {"g": {"a": 1, "b": 5}}, {"g": {"a": 2, "b": 5}}, ["g.b"]),
        ({"g": {"kind": "x", "a": 1}}, {"g": {"kind": "x", "a": 2}}, {"g": {"kind": "y"}}, {"g": {"kind": "y"}}, ["g"]),
        ({"g": {"kind": "x", "a": 1}}, {"g": {"kind": "y"}}, {"g": {"kind": "x", "a": 1}}, {"g": {"kind": "y"}}, []),
        ({"l": [1, 2]}, {"l": [1, 2, 3]}, {"l": [2]}, {"l": [2]}, ["l"]),
    ],
)
def test_each_field_is_that_of_the_side_that_changed_it(
    written: dict[str, Any], wanted: dict[str, Any], found: dict[str, Any], merged: dict[str, Any], edited: list[str]
) -> None:
    result, edits = merge(marks(written), wanted, found)
    assert result == merged
    assert [edit.field for edit in edits] == edited


@pytest.mark.parametrize(
    ("raw", "merged", "edited"),
    [
        ({"a": None, "b": 2}, {"a": 9, "b": 2}, []),  # a form writes null for what is left out
        ({"b": 2}, {"a": 9, "b": 2}, []),  # a is new in this version, with the default 5
        ({"a": 5, "b": 2}, {"a": 5, "b": 2}, ["a"]),
        ({}, {"a": 9, "b": 1}, ["b"]),  # the page has b's default
        ({"b": None}, {"a": 9, "b": 1}, ["b"]),
    ],
)
def test_a_default_that_nobody_wrote_is_no_edit(raw: dict[str, Any], merged: dict[str, Any], edited: list[str]) -> None:
    found = {"a": 5, "b": 1} | {name: value for name, value in raw.items() if value is not None}
    result, edits = merge(marks({"b": 2}), {"a": 9, "b": 2}, found, raw)
    assert result == merged
    assert [edit.field for edit in edits] == edited


def test_a_value_that_was_set_to_none_stays() -> None:
    assert merge(marks({"a": 1}), {"a": 1}, {}, {"a": None}) == ({"a": None}, [Edit("a", None, 1)])


def test_an_edit_says_both_values() -> None:
    assert Edit("parameters.spec.max_rounds", 3, 28).kept() == "spec.max_rounds: 3, not 28"
    assert Edit("parameters.spec.max_rounds", 3, 28).replaced() == "spec.max_rounds: 28, was 3"
    assert Edit("job_variables.env.A", "1", MISSING).kept() == "job_variables.env.A: 1, not none"
    assert Edit("description", "a\n b", None).kept() == "description: a b, not none"
    (edit,) = differences({"a": 1}, {"a": "x" * 500})
    assert len(edit.kept()) < 80


def test_a_record_is_of_one_deployment_and_short() -> None:
    for item in deployments():
        written = Written.of(fields_of(item), TIMES)
        document = json.loads(json.dumps(written.document("id")))
        assert len(json.dumps(document)) < MOST_CHARACTERS / 2
        assert Written.of_document(document, "id") == written
        assert Written.of_document(document, "another") is None
    assert Written.of_document(Written({}, None).document("id"), "id") == Written({}, None)


@pytest.mark.parametrize(
    "document",
    [
        None,
        7,
        "x",
        [],
        {},
        {"deployment": "id"},
        {"deployment": "id", "fields": 7},
        {"deployment": "id", "fields": {"a": 7}},
        {"deployment": "id", "fields": {}, "schedule": 7},
        {"deployment": "id", "fields": {}, "schedule": {"hour": 3}},
    ],
)
def test_an_unreadable_record_is_none(document: object) -> None:
    assert Written.of_document(document, "id") is None


def test_a_large_group_has_one_mark() -> None:
    fields = {"parameters": {"spec": {"x": 1, "clients": {f"client-{number}": number for number in range(500)}}}}
    written = Written.of(fields, None)
    assert len(json.dumps(written.document(""))) <= MOST_CHARACTERS
    assert merge(written.marks, {}, fields) == ({}, [])
    spec = fields["parameters"]["spec"]
    edited = {"parameters": {"spec": {**spec, "clients": {"client-0": 1}}}}
    new = {"parameters": {"spec": {**spec, "x": 2}}}
    merged, (edit,) = merge(written.marks, new, edited)
    assert edit.field == "parameters.spec.clients"
    assert merged == {"parameters": {"spec": {"x": 2, "clients": {"client-0": 1}}}}
