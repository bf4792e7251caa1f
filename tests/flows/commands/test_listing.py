"""``fedbench list``: its lines and columns, what it folds, what its options choose, and its JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from flows.cli.shared import out
from flows.commands.listing import read_listing, since_of
from flows.commands.listing_table import cells_text, date_of, listing_table
from flows.suite.plan import SuitePlan, claim
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec
from tasks.spec.presets import preset
from tasks.spec.records import Decision, Metrics
from tasks.spec.suite import Experiment, SuiteSpec
from tasks.spec.suite_records import CellRecord
from tests.flows.command import fedbench
from tests.records import round_record

pytestmark = pytest.mark.usefixtures("own_environment")

SPEC = FederationSpec(max_rounds=2, seed=7)
SUITE = SuiteSpec(
    name="tiny", experiments=(Experiment(name="a", spec=preset("smoke"), seeds=(1, 2, 3, 4), centralised=False),)
)
NOW = datetime.now(UTC)


class Store:
    """A prefix of the session's store with federations and a suite run, which commands of the test use too."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings = objects, settings

    def put(
        self, name: str, rounds: int, spec: FederationSpec = SPEC, *, ago: timedelta = timedelta(), score: float = 0.25
    ) -> None:
        """Store a federation whose last round was committed ``ago``; each round took 90 seconds."""
        layout = FederationLayout(self.settings.s3.prefix, name)
        self.objects.put_json(layout.spec, spec.model_dump(mode="json"))
        for number in range(rounds):
            record = round_record(
                number,
                federation=name,
                metrics=Metrics(map50_voc10=score),
                decision=Decision(stop=False, best_round=0, best_map50_voc10=score),
                seconds={"all": 90.0},
                committed=NOW - ago - timedelta(seconds=90 * (rounds - 1 - number)),
            )
            self.objects.put_json(layout.marker(number), record.model_dump(mode="json"))

    def begin(self, run: str) -> SuitePlan:
        return claim(self.objects, self.settings.s3.prefix, run, SUITE)

    def end(self, plan: SuitePlan, number: int, state: Any, **fields: Any) -> None:
        """Store the record of a cell that has ended, and its federation unless ``federation`` is false."""
        cell = plan.to_run[number]
        if fields.pop("federation", True):
            self.put(plan.federation(cell), 3, cell.spec)
        record = {
            "suite_run": plan.name, "cell": cell.name, "spec_digest": cell.spec.digest, "code_version": plan.code,
            "federation": plan.federation(cell), "state": state, "seconds": 60.0, "ended": NOW,
        }  # fmt: skip
        plan.keep(CellRecord.model_validate({**record, **fields}))

    def listed(self, *words: str) -> dict[str, Any]:
        result = fedbench("list", "--json", *words)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def names(self, *words: str) -> list[str]:
        found = self.listed(*words)
        return [line["name"] for line in (*found["suites"], *found["federations"])]


@pytest.fixture
def store(object_store: ObjectStore, command_settings: Settings) -> Store:
    return Store(object_store, command_settings)


@pytest.fixture
def suite(store: Store) -> Iterator[SuitePlan]:
    """Begin a suite run with a cell that is done, one that failed, one that runs, and one that has not begun."""
    plan = store.begin("mine")
    store.end(plan, 0, "done")
    store.end(plan, 1, "failed", reason="its process ended\nby signal 9")
    running = plan.federation(plan.to_run[2])
    store.put(running, 1, plan.to_run[2].spec)
    with run_lock(store.settings.home, running):
        yield plan


def test_each_federation_has_its_date_duration_and_seed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_width", 160)  # of a narrow terminal the table has other columns
    store.put("done", 3)
    store.put("half", 2, SPEC.model_copy(update={"seed": 9}), ago=timedelta(days=3))
    result = fedbench("list")
    assert result.exit_code == 0, result.output
    head, *lines = result.output.splitlines()
    assert head.split() == ["name", "state", "rounds", "best", "seed", "last", "commit", "took", "specification"]
    done, half = (" ".join(line.split()) for line in lines if line.split()[0] in ("done", "half"))
    date = date_of(NOW, NOW)
    assert done.startswith(f"done finished 2/2 map50_voc10 0.250 7 {date} 0:04:30 synthetic-street ·")
    assert half.startswith(f"half stopped 1/2 map50_voc10 0.250 9 {date_of(NOW - timedelta(days=3), NOW)} 0:03:00 ")
    assert SPEC.digest[:8] in result.output


def test_tables_are_not_wrapped_in_a_pipe(store: Store) -> None:
    """Not even where the environment has the width of a terminal."""
    names = [f"{'long-name-' * 9}{number}" for number in range(2)]
    for name in names:
        store.put(name, 3)
    command = [sys.executable, "-m", "flows.cli", "list"]
    result = subprocess.run(
        command, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, timeout=120, check=True
    )
    _, *lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == names
    assert all(line.rstrip().endswith(SPEC.digest[:8]) for line in lines)


def test_a_suite_run_has_no_duration_before_a_cell_has_ended(store: Store) -> None:
    store.begin("mine")
    (line,) = fedbench("list").output.splitlines()[1:]
    assert line.split()[:2] == ["mine", "stopped"]
    assert "0:00:00" not in line


def test_a_date_of_another_year_has_no_time() -> None:
    assert date_of(datetime(2026, 3, 4, 5, 6).astimezone(), datetime(2026, 12, 1).astimezone()) == "03-04 05:06"
    assert date_of(datetime(2025, 3, 4, 5, 6).astimezone(), datetime(2026, 12, 1).astimezone()) == "2025-03-04"
    assert date_of(None, NOW) == "–"


def test_cells_are_folded_into_a_line_of_their_suite_run(store: Store, suite: SuitePlan) -> None:
    store.put("alone", 1)
    found = store.listed()
    (line,) = found["suites"]
    assert (line["name"], line["suite"], line["state"]) == ("mine", "tiny", "running")
    assert line["cells"] == {"done": 1, "failed": 1, "running": 1, "stopped": 0, "waiting": 1}
    assert line["seconds"] == 120
    assert [run["name"] for run in found["federations"]] == ["alone"]
    printed = fedbench("list").output
    assert "suite tiny · 4 cells: 1 done, 1 failed, 1 running, 1 waiting" in " ".join(printed.split())
    assert ".a.s1." not in printed


def test_a_suite_run_is_unfolded(store: Store, suite: SuitePlan) -> None:
    store.put("alone", 1)
    found = store.listed("--suite", "mine")
    assert [line["name"] for line in found["suites"]] == ["mine"]
    assert [(run["cell"], run["state"], run["rounds"]) for run in found["federations"]] == [
        ("a.s1", "finished", 2), ("a.s2", "failed", 2), ("a.s3", "running", 0), ("a.s4", "waiting", None),
    ]  # fmt: skip
    assert {run["suite_run"] for run in found["federations"]} == {"mine"}
    assert [run["seed"] for run in found["federations"]] == [1, 2, 3, 4]
    assert found["federations"][1]["reason"] == "its process ended\nby signal 9"
    printed = fedbench("list", "--suite", "mine").output
    assert f"{suite.federation(suite.to_run[1])} failed: its process ended by signal 9" in printed
    unknown = fedbench("list", "--suite", "nine")
    assert unknown.exit_code == 2
    assert "--suite nine: no such suite run in the store; expected one of: mine; did you mean mine?" in unknown.output


def test_cells_of_other_code_are_folded_too(store: Store) -> None:
    plan = store.begin("mine")
    store.put("mine.a.s1.00000000", 3)
    store.put("mine.not-a-cell", 1)
    assert store.names() == ["mine", "mine.not-a-cell"]
    assert store.names("--suite", "mine") == [
        "mine", *(plan.federation(cell) for cell in plan.to_run), "mine.a.s1.00000000",
    ]  # fmt: skip


def test_a_suite_run_ends_as_its_cells_do(store: Store) -> None:
    plan = store.begin("mine")
    states = []
    for number in range(4):
        states.append(store.listed()["suites"][0]["state"])
        store.end(plan, number, "done")
    states.append(store.listed()["suites"][0]["state"])
    store.end(plan, 3, "failed", reason="x")
    states.append(store.listed()["suites"][0]["state"])
    with run_lock(store.settings.home, "suite-mine"):
        states.append(store.listed()["suites"][0]["state"])
    assert states == ["stopped"] * 4 + ["finished", "failed", "running"]


def test_lines_are_chosen_by_state_and_date(store: Store, suite: SuitePlan) -> None:
    store.put("new", 3)
    store.put("old", 3, ago=timedelta(days=10))
    store.put("half", 1, ago=timedelta(hours=5))
    assert store.names() == ["mine", "half", "new", "old"]
    assert store.names("--state", "finished") == ["new", "old"]
    assert store.names("--state", "running") == ["mine"]
    assert store.names("--since", "1d") == ["mine", "half", "new"]
    assert store.names("--since", "2h", "--state", "finished") == ["new"]
    week_ago = (datetime.now().astimezone() - timedelta(days=7)).date()
    assert store.names("--since", str(week_ago)) == ["mine", "half", "new"]
    assert store.names("--suite", "mine", "--state", "failed") == [suite.federation(suite.to_run[1])]
    nothing = fedbench("list", "--state", "damaged")
    assert nothing.exit_code == 0
    assert "nothing in the store is in this state" in nothing.output


def test_what_runs_is_never_too_old(store: Store) -> None:
    store.put("busy", 1, ago=timedelta(days=10))
    with run_lock(store.settings.home, "busy"):
        assert store.names("--since", "1h") == ["busy"]
    assert store.names("--since", "1h") == []


@pytest.mark.parametrize("text", ["", "yesterday", "7", "d", "-3d", "1y", "2026-13-01", "9999999d", "30.11.2026"])
def test_a_bad_date_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"--since: expected a date, as 2026-11-30 .*, found "):
        since_of(text)
    result = fedbench("list", "--since", text)
    assert result.exit_code == 2
    assert "--since: expected a date" in result.output


def test_dates_are_of_this_machines_zone_and_times_count_back() -> None:
    assert since_of("2026-11-30") == datetime(2026, 11, 30).astimezone()
    assert since_of("2026-11-30T08:30+02:00") == datetime(2026, 11, 30, 6, 30, tzinfo=UTC)
    for text, back in (("30m", timedelta(minutes=30)), ("12h", timedelta(hours=12)), ("2w", timedelta(days=14))):
        assert since_of(text, NOW) == NOW - back


def test_a_damaged_suite_run_and_a_damaged_federation_are_listed(store: Store) -> None:
    prefix = store.settings.s3.prefix
    store.begin("mine")
    store.put("mine.a.s1.00000000", 1)
    store.objects.put_bytes(SuiteLayout(prefix, "mine").suite, b"{")
    store.objects.put_bytes(FederationLayout(prefix, "torn").spec, b"[]")
    found = store.listed()
    assert [(line["name"], line["state"]) for line in found["suites"]] == [("mine", "damaged")]
    assert [(line["name"], line["state"]) for line in found["federations"]] == [("torn", "damaged")]
    assert "suite.json: damaged" in found["suites"][0]["reason"]
    assert store.names("--suite", "mine") == ["mine", "mine.a.s1.00000000"]
    assert "torn is damaged: " in fedbench("list").output


def test_an_empty_store_is_valid_json(store: Store) -> None:
    assert store.listed() == {"version": 1, "suites": [], "federations": []}


@pytest.mark.parametrize("width", [80, 100, 140])
def test_names_states_and_dates_are_whole_at_every_width(store: Store, width: int) -> None:
    store.put("synthetic5-e6b255e8", 3)
    listing = read_listing(store.objects, store.settings)
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(listing_table(listing, wide=width >= 100, now=NOW))
    text = console.export_text()
    for whole in ("synthetic5-e6b255e8", "finished", "2/2", date_of(NOW, NOW), "0:04:30", SPEC.digest[:8]):
        assert whole in text
    assert "…" not in text


def test_cells_are_counted_in_words() -> None:
    assert cells_text({"done": 1, "failed": 0}) == "1 cell: 1 done"
    assert cells_text({"done": 4, "waiting": 2}) == "6 cells: 4 done, 2 waiting"
    assert cells_text({}) == "no cells"
