"""Accepted results in a real store, and the output of ``fedbench accept``."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flows.cli.shared import out
from flows.stored.leftovers import clean
from flows.suite.accepted import (
    accept,
    accepted_before,
    accepted_result,
    compare_with_accepted,
    suite_result,
    suite_rule,
)
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.suite_layout import ReferenceLayout, SuiteLayout
from tasks.errors import SpecError
from tasks.spec.records import Environment
from tasks.spec.suite import Experiment, RegressionRule, SuiteSpec
from tasks.spec.suite_records import FailedCell, Point, SuiteResult, SuiteStart
from tests.flows.command import fedbench
from tests.flows.stored.test_runs import SPEC
from tests.records import result_of_cell, result_of_suite

pytestmark = pytest.mark.usefixtures("own_environment")

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENVIRONMENT = Environment(fedbench="1", python="3", torch="2", torchvision="0", cpu="x", threads=1)
SUITE = SuiteSpec(
    name="street", experiments=(Experiment(name="five", spec=SPEC),), rule=RegressionRule(false_alarms=0.05)
)


def result_of(run: str, scores: list[float], **more: object) -> SuiteResult:
    cells = tuple(
        result_of_cell(
            "five", seed=seed, points=[Point(round=0, figures={"map50_voc10": score}, passes=0, seconds=0, exchanged=0)]
        )
        for seed, score in enumerate(scores)
    )
    return result_of_suite(
        *cells, suite_run=run, suite_digest=SUITE.digest, code_version="1a2b3c", environment=ENVIRONMENT, **more
    )


class Handles:
    """A prefix of the session's store, which commands of the test use too."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings, self.prefix = objects, settings, settings.s3.prefix

    def start(self, run: str) -> None:
        start = SuiteStart(suite_run=run, suite=SUITE, digest=SUITE.digest, started=NOW)
        self.objects.put_json(SuiteLayout(self.prefix, run).suite, start.model_dump(mode="json"))

    def put(self, run: str, scores: list[float], **more: object) -> SuiteResult:
        self.start(run)
        result = result_of(run, scores, **more)
        self.objects.put_json(SuiteLayout(self.prefix, run).result, result.model_dump(mode="json"))
        return result


@pytest.fixture
def handles(object_store: ObjectStore, command_settings: Settings) -> Handles:
    return Handles(object_store, command_settings)


def command(*arguments: str) -> tuple[int, str]:
    result = fedbench("accept", *arguments)
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_an_accepted_result_can_be_read_and_the_replaced_one_is_kept(handles: Handles) -> None:
    objects, prefix = handles.objects, handles.prefix
    assert accepted_result(objects, prefix, "street") is None
    assert accepted_before(objects, prefix, "street") == []
    first = handles.put("one", [0.5, 0.51])
    assert compare_with_accepted(objects, prefix, first, RegressionRule()) is None
    accepted = accept(objects, prefix, "one", by="ada", note="the first")
    assert (accepted.result, accepted.by, accepted.note) == (first, "ada", "the first")
    assert accepted_result(objects, prefix, "street") == accepted
    assert accepted_before(objects, prefix, "street") == []
    handles.put("two", [0.6, 0.61])
    second = accept(objects, prefix, "two", by="ada", note="")
    third = accept(objects, prefix, "one", by="bob", note="back again")
    assert accepted_result(objects, prefix, "street") == third
    assert accepted_before(objects, prefix, "street") == [accepted, second]
    assert accepted_result(objects, prefix, "other") is None


def test_a_result_is_compared_with_the_accepted_one(handles: Handles) -> None:
    handles.put("one", [0.5, 0.51])
    accept(handles.objects, handles.prefix, "one", by="ada", note="")
    worse = result_of("two", [0.1, 0.11])
    comparison = compare_with_accepted(handles.objects, handles.prefix, worse, RegressionRule())
    assert comparison is not None
    assert [item.metric for item in comparison.regressions] == ["map50_voc10"]
    assert (comparison.reference_run, comparison.result_run) == ("one", "two")


def test_the_rule_is_the_one_of_the_suite_run(handles: Handles) -> None:
    handles.start("one")
    assert suite_rule(handles.objects, handles.prefix, "one") == SUITE.rule
    assert suite_rule(handles.objects, handles.prefix, "none") == RegressionRule()


def test_an_incomplete_result_is_refused_unless_incomplete_is_set(handles: Handles) -> None:
    lacking = {"failed": (FailedCell(cell="five.s8", reason="no slot"),), "missing": ("five.s9",)}
    handles.put("part", [0.5], **lacking)
    with pytest.raises(SpecError, match=r"part: expected a result of all cells, found 2 without: five\.s8 failed, five\.s9 is missing"):  # fmt: skip  # noqa: E501
        accept(handles.objects, handles.prefix, "part", by="ada", note="")
    assert accepted_result(handles.objects, handles.prefix, "street") is None
    assert accept(handles.objects, handles.prefix, "part", by="ada", note="", incomplete=True).result.missing == (
        "five.s9",
    )
    handles.put("empty", [], **lacking)
    with pytest.raises(SpecError, match="empty: expected at least one cell with a result, found none"):
        accept(handles.objects, handles.prefix, "empty", by="ada", note="", incomplete=True)


def test_without_a_result_nothing_is_accepted(handles: Handles) -> None:
    handles.start("begun")
    with pytest.raises(SpecError, match="begun: expected a result, found none yet"):
        accept(handles.objects, handles.prefix, "begun", by="ada", note="")
    with pytest.raises(SpecError, match="nobody: no such suite run in the store; expected one of: begun"):
        accept(handles.objects, handles.prefix, "nobody", by="ada", note="")
    with pytest.raises(SpecError, match="suite run: expected letters, digits"):
        suite_result(handles.objects, handles.prefix, "../x")
    handles.objects.put_json(SuiteLayout(handles.prefix, "newer").result, {"version": 9})
    with pytest.raises(SpecError, match=r"result\.json: version: 9 is newer"):
        accept(handles.objects, handles.prefix, "newer", by="ada", note="")


def test_clean_up_and_lists_leave_suites_alone(handles: Handles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_width", 160)  # in a narrow terminal a suite has several lines
    handles.put("one", [0.5])
    accept(handles.objects, handles.prefix, "one", by="ada", note="")
    accept(handles.objects, handles.prefix, "one", by="ada", note="")
    handles.objects.put_json(SuiteLayout(handles.prefix, "one").report("spec.json"), {})
    handles.objects.put_json(FederationLayout(handles.prefix, "mine").spec, SPEC.model_dump(mode="json"))
    folders = (SuiteLayout(handles.prefix, "any").all_runs, ReferenceLayout(handles.prefix, "any").all_suites)
    before = [handles.objects.list(folder) for folder in folders]
    assert [len(keys) for keys in before] == [3, 2]
    old = datetime(2099, 1, 1, tzinfo=UTC)
    result = clean(handles.settings, apply=True, now=old, temporary=handles.settings.home / "none")
    assert not [leftover for leftover in result.leftovers if leftover.federation.startswith("_")]
    assert [handles.objects.list(folder) for folder in folders] == before
    assert not [note for note in result.notes if "_suites" in note or "_references" in note]
    listed = fedbench("list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines()[1:]] == ["one", "mine"]
    for name in ("_suites", "_references"):
        refused = fedbench("remove", name, "--yes")
        assert refused.exit_code == 2
        assert "expected letters, digits" in refused.output


def test_the_command_prints_the_accepted_and_the_replaced_result_compared(handles: Handles) -> None:
    handles.put("one", [0.50, 0.51])
    code, told = command("one", "--note", "[the] first")
    assert code == 0
    assert told.splitlines()[0].startswith("street: accepted one, 2 cells, code 1a2b3c, accepted 20")
    assert told.splitlines()[0].endswith(": [the] first")
    assert told.splitlines()[1:] == ["replaces nothing: it is the first"]
    handles.put("two", [0.10, 0.11], failed=(FailedCell(cell="five.s7", reason="no slot"),))
    code, told = command("two")
    assert code == 2
    assert "expected a result of all cells" in told
    code, told = command("two", "--incomplete")
    assert code == 0
    lines = told.splitlines()
    assert lines[0].startswith("street: accepted two, 2 cells (1 without a result), code 1a2b3c, accepted 20")
    assert lines[1].startswith("replaces one, 2 cells, code 1a2b3c, accepted 20")
    assert lines[2] == "two against one: 1 figures compared, 1 worse, 0 better"
    assert lines[3].startswith("worse: five federated: map50_voc10 0.505 → 0.105, limit 0.")
    assert "note: five.s7: failed: no slot; not in the accepted result" in lines


def test_the_command_prints_the_accepted_result_and_earlier_ones(handles: Handles) -> None:
    for run in ("one", "two", "three"):
        handles.put(run, [0.5])
        assert command(run)[0] == 0
    code, told = command("--show", "street")
    assert code == 0
    assert [line.split(",")[0] for line in told.splitlines()] == ["street: three", "before: two", "before: one"]
    code, told = command("--show", "other")
    assert code == 2
    assert "other: no accepted result of this suite; expected one of: street" in told


@pytest.mark.parametrize("arguments", [(), ("one", "--show", "street")])
def test_the_command_needs_a_run_or_a_suite(handles: Handles, arguments: tuple[str, ...]) -> None:
    code, told = command(*arguments)
    assert code == 2
    assert "SUITE_RUN: expected the name of a suite run, or --show SUITE" in told


def test_a_damaged_accepted_result_is_named_and_can_be_replaced(handles: Handles) -> None:
    handles.put("first", [0.5])
    handles.put("second", [0.6])
    accept(handles.objects, handles.prefix, "first", by="me", note="")
    layout = ReferenceLayout(handles.prefix, "street")
    torn = handles.objects.get_bytes(layout.accepted).replace(b"0.5", b"0.7")
    handles.objects.put_bytes(layout.accepted, torn)
    with pytest.raises(SpecError, match=rf"{layout.accepted}: damaged: .*record_sha256: expected"):
        accepted_result(handles.objects, handles.prefix, "street")
    accept(handles.objects, handles.prefix, "second", by="me", note="")
    now = accepted_result(handles.objects, handles.prefix, "street")
    assert now is not None
    assert now.result.suite_run == "second"
    (kept,) = handles.objects.list(layout.replaced)
    assert kept.endswith(".damaged")
    assert handles.objects.get_bytes(kept) == torn
    assert accepted_before(handles.objects, handles.prefix, "street") == []
