"""docs/json.md lists the fields of every JSON document that a command prints, and no others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.cli.json_output import json_text
from flows.suite.plan import claim
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure
from tasks.spec.presets import preset
from tasks.spec.records import ClientSpread, Decision, Metrics, PersonalMetrics
from tasks.spec.references import twin
from tasks.spec.suite import Experiment, SuiteSpec
from tasks.spec.suite_records import CellRecord
from tests.flows.command import fedbench
from tests.records import client_info, evaluation_record, round_plan, round_record, update_record

pytestmark = pytest.mark.usefixtures("own_environment")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "json.md"
SPEC = FederationSpec(max_rounds=2)
SUITE = SuiteSpec(
    name="tiny", experiments=(Experiment(name="a", spec=preset("smoke"), seeds=(1, 2), centralised=False),)
)


def documented(command: str) -> set[str]:
    """Return the fields that the page lists for a command."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (text for text in sections if f"`fedbench {command}" in text.splitlines()[0])
    cells = re.findall(r"^\| (`.+?`) \| ", section, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def fields(value: Any, known: set[str], path: str = "") -> Iterator[str]:
    """Yield the dotted paths of a document's fields, down to those that the page describes as a whole."""
    below = (f"{path}.", f"{path}[]")
    if path and not any(name.startswith(below) for name in known):
        yield path
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from fields(item, known, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, known, f"{path}[]")


class Store:
    """A prefix of the session's store with federations and a suite run that has a failed and a missing cell."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.prefix = objects, settings.s3.prefix

    def put(self, name: str, spec: FederationSpec, hours: int) -> None:
        """Store a federation with a dropped client and figures of the clients' own models."""
        layout = FederationLayout(self.prefix, name)
        self.objects.put_json(layout.spec, spec.model_dump(mode="json"))
        clients = ("all",) if spec.data.pooled else ("1", "2")
        spread = ClientSpread(mean=0.5, worst=0.2, worst_client="1", deviation=0.1, clients=2)
        own = PersonalMetrics(figures={"map50_voc10": spread}, clients=2)
        for number, score in enumerate((None, 0.25, 0.5)):
            record = round_record(
                number,
                federation=name,
                plan=round_plan(*clients) if number else None,
                clients=[client_info(client, train_size=20 // len(clients)) for client in clients],
                updates=[update_record(clients[0])] if number else [],
                dropped=[ClientFailure(client="2", phase="request_update", kind="client-error", reason="\x1b[31mé")],
                evaluations=[evaluation_record(*clients, map50_voc10=score, per_class={"chair": score})],
                metrics=Metrics(map50_voc10=score, per_class={"chair": score}, personal=own),
                decision=Decision(stop=False, best_round=number, best_map50_voc10=score),
                seconds={"request_update": 8.0},
            )
            committed = record.committed + timedelta(hours=hours, seconds=number)
            self.objects.put_json(
                layout.marker(number), record.model_copy(update={"committed": committed}).model_dump(mode="json")
            )

    def put_suite(self) -> None:
        plan = claim(self.objects, self.prefix, "tiny-1", SUITE)
        for cell, state in zip(plan.to_run, ("done", "failed"), strict=True):
            self.put(plan.federation(cell), cell.spec, 1)
            record = {
                "suite_run": plan.name, "cell": cell.name, "spec_digest": cell.spec.digest, "code_version": plan.code,
                "federation": plan.federation(cell), "state": state, "reason": "x", "seconds": 60.0,
                "ended": "2026-01-01T00:00:00Z",
            }  # fmt: skip
            plan.keep(CellRecord.model_validate(record))


@pytest.fixture
def store(object_store: ObjectStore, command_settings: Settings, tmp_path: Path) -> Store:
    found = Store(object_store, command_settings)
    found.put("mine", SPEC, 1)
    found.put("its-twin", twin(SPEC), 2)
    found.put_suite()
    return found


COMMANDS = {
    "list": ("list",),
    "show RUN": ("show", "mine"),
    "compare RUN": ("compare", "mine", "its-twin", "--out", "{out}"),
    "suite show": ("suite", "show", "tiny-1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_lists_the_fields_of_the_document_and_no_others(store: Store, command: str, tmp_path: Path) -> None:
    result = fedbench(*(word.format(out=tmp_path / "out") for word in COMMANDS[command]), "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.isascii()  # so that no name or reason of a client can command the terminal
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    known = documented(command)
    found = set(fields(document, known))
    unseen = {"gains[].experiment", "gains[].passes", "gains[].difference"}  # they need a local-only reference
    assert found - known == set()
    assert known - found <= (unseen if command.startswith("compare") else set())


def test_absent_figures_are_null(store: Store) -> None:
    document = json.loads(fedbench("show", "mine", "--json").stdout)
    first, *_, last = document["by_round"]
    assert (first["test"]["map50_voc10"], first["test"]["per_class"], first["holdout"]) == (None, {"chair": None}, None)
    assert last["test"]["map50_voc10"] == 0.5
    assert last["test"]["own_models"]["figures"]["map50_voc10"]["worst"] == 0.2
    assert document["best"] == {"round": 2, "metric": "map50_voc10", "on": "test", "value": 0.5}
    assert (document["exchanged_bytes"], document["seconds"], document["rounds"]) == (4, 24.0, 2)
    assert document["specification"] == SPEC.model_dump(mode="json")
    assert document["by_round"][1]["dropped"][0]["reason"] == "\x1b[31mé"


def test_a_comparison_has_differences_and_the_gap(store: Store, tmp_path: Path) -> None:
    document = json.loads(fedbench("compare", "mine", "its-twin", "--out", tmp_path, "--json").stdout)
    mine, its_twin = document["federations"]
    assert mine["differences"] == {}
    assert its_twin["differences"]["data.pooled"] == {"first": False, "this": True}
    assert (mine["exchanged_bytes"], its_twin["exchanged_bytes"]) == (4, None)
    assert [Path(file).exists() for file in document["files"]] == [True] * len(document["files"])


def test_a_suite_has_its_cells_and_what_is_missing(store: Store) -> None:
    document = json.loads(fedbench("suite", "show", "tiny-1", "--json").stdout)
    assert [cell["name"] for cell in document["cells"]] == ["a.s1"]
    assert document["failed"] == [{"cell": "a.s2", "reason": "x"}]
    (experiment,) = document["experiments"]
    assert experiment["roles"]["federated"]["figures"]["map50_voc10"] == {"mean": 0.5, "sd": None, "n": 1}
    assert experiment["gap"] is None


def test_what_is_not_finite_becomes_null() -> None:
    assert json.loads(json_text({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (-math.inf,)}})) == {
        "a": None, "b": [None, 1.5], "c": {"d": [None]},
    }  # fmt: skip


@pytest.mark.parametrize("words", [("show", "nobody"), ("compare", "mine", "nobody"), ("suite", "show", "nobody")])
def test_an_error_leaves_standard_output_empty(store: Store, words: tuple[str, ...]) -> None:
    result = fedbench(*words, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nobody: no such" in result.stderr
