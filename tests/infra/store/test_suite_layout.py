"""Keys of suites and accepted results, which are never mistaken for a federation's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import TypeAdapter, ValidationError

from infra.store.layout import FederationLayout, federations
from infra.store.suite_layout import ReferenceLayout, SuiteLayout, accepted_suites, suite_runs
from tasks.spec.base import FederationName

LAYOUT = SuiteLayout("federations", "night")
REFERENCE = ReferenceLayout("federations", "street")
TIME = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
KEYS = [
    LAYOUT.suite,
    LAYOUT.cell("0123456789abcdef" * 4, "1a2b3c"),
    LAYOUT.result,
    LAYOUT.report("index.html"),
    REFERENCE.accepted,
    REFERENCE.history(TIME),
]


def test_keys() -> None:
    assert KEYS == [
        "federations/_suites/night/suite.json",
        "federations/_suites/night/cells/0123456789abcdef-1a2b3c.json",
        "federations/_suites/night/result.json",
        "federations/_suites/night/report/index.html",
        "federations/_references/street/accepted.json",
        "federations/_references/street/history/20260102T030405.000006Z.json",
    ]
    assert KEYS[1].startswith(LAYOUT.cells)
    assert KEYS[5].startswith(REFERENCE.replaced)
    assert SuiteLayout("", "night").result == "_suites/night/result.json"
    assert SuiteLayout("/x/y/", "night").root == "x/y/_suites/night/"
    assert ReferenceLayout("", "street").accepted == "_references/street/accepted.json"


def test_history_is_sorted_by_time_in_any_time_zone() -> None:
    tokyo = timezone(timedelta(hours=9))
    times = [TIME + timedelta(hours=hours) for hours in range(30)]
    keys = [REFERENCE.history(time.astimezone(tokyo) if number % 2 else time) for number, time in enumerate(times)]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_only_folders_with_their_first_object_are_runs_and_suites() -> None:
    other = SuiteLayout("federations", "day")
    keys = [*KEYS, other.suite, SuiteLayout("federations", "begun").result, SuiteLayout("x", "far").suite]
    keys += [LAYOUT.report("suite.json"), ReferenceLayout("federations", "none").history(TIME)]
    assert suite_runs("federations", keys) == ["day", "night"]
    assert suite_runs("/x/", keys) == ["far"]
    assert accepted_suites("federations", keys) == ["street"]


@pytest.mark.parametrize("prefix", ["", "federations", "a/b"])
def test_a_suites_keys_are_no_federations(prefix: str) -> None:
    suite, reference = SuiteLayout(prefix, "spec.json"), ReferenceLayout(prefix, "spec.json")
    keys = [suite.suite, suite.result, suite.cell("a" * 64, "spec"), suite.report("spec.json"), reference.accepted]
    keys += [SuiteLayout(prefix, "any").report("spec.json"), FederationLayout(prefix, "mine").spec]
    assert federations(prefix, keys) == ["mine"]
    for layout in (suite, reference):
        folder = layout.root.removesuffix("spec.json/").rstrip("/").rpartition("/")[2]
        with pytest.raises(ValidationError):
            TypeAdapter(FederationName).validate_python(folder)
