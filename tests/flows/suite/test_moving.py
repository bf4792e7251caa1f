"""Move a suite run's finished cells between two real stores, and refuse files that are damaged or do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.suite.accepted import accept, suite_result
from flows.suite.export_file import export_text, read_export
from flows.suite.moved_cells import imported_notes
from flows.suite.moving import Import, export_suite, import_suite, write_export
from flows.suite.plan import SuitePlan, claim, read_plan
from flows.suite.result import build_result
from infra.errors import RunLocked
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store import lease
from infra.store.holding import Subject, subject_held
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.sealed import DIGEST, content_digest
from infra.store.suite_layout import SuiteLayout
from tasks.code_version import code_version
from tasks.errors import SpecError
from tasks.spec.data import Holdout
from tasks.spec.plans import WeightRef
from tasks.spec.presets import preset
from tasks.spec.records import Decision, Metrics
from tasks.spec.suite import Cell, Experiment, SuiteSpec, with_seeds
from tasks.spec.suite_records import CellRecord, SuiteResult
from tests.flows.command import fedbench
from tests.records import NOW, client_info, evaluation_record, round_record, update_record

SPEC = preset("smoke")
SUITE = SuiteSpec(name="test", target=0.3, experiments=(Experiment(name="five", spec=SPEC, seeds=(1, 2)),))
RUN = "first"
BOTH = ("five.s1", "five.s2")
SCORES = (None, 0.3, 0.2)


@dataclass(frozen=True)
class Machine:
    """A machine with a home and a store of its own, on which suite runs have cells."""

    objects: ObjectStore
    settings: Settings

    def plan(self, run: str = RUN, suite: SuiteSpec = SUITE) -> SuitePlan:
        return claim(self.objects, self.settings.s3.prefix, run, suite)

    def finish(
        self, names: Iterable[str], scores: Iterable[float | None] = SCORES, *, seconds: float = 1.0, **more: Any
    ) -> None:
        """Store the federations of the cells ``names``, and the records that they are done."""
        plan = self.plan(**more)
        for cell in plan.to_run:
            if cell.name in names:
                put_federation(self.objects, self.settings, plan.federation(cell), cell, list(scores), seconds)
                plan.keep(record_of(plan, cell))

    def export(self, path: Path, run: str = RUN) -> Path:
        write_export(export_suite(self.objects, self.settings, run), path)
        return path

    def take(self, path: Path, **more: Any) -> Import:
        return import_suite(self.objects, self.settings, read_export(path), path, **more)

    def result(self, run: str = RUN) -> SuiteResult:
        return build_result(read_plan(self.objects, self.settings.s3.prefix, run), self.settings)

    def written(self) -> dict[str, int]:
        """Return the objects of suite runs but their leases."""
        return {key: size for key, size in self.objects.list(self.settings.s3.prefix).items() if "/lease/" not in key}


def record_of(plan: SuitePlan, cell: Cell, **fields: Any) -> CellRecord:
    defaults = {
        "suite_run": plan.name, "cell": cell.name, "spec_digest": cell.spec.digest, "code_version": plan.code,
        "federation": plan.federation(cell), "state": "done", "seconds": 3.0, "ended": NOW,
    }  # fmt: skip
    return CellRecord.model_validate({**defaults, **fields})


def put_federation(
    objects: ObjectStore, settings: Settings, name: str, cell: Cell, scores: list[float | None], seconds: float
) -> None:
    """Store the specification and the rounds of a cell's federation, without weights."""
    layout = FederationLayout(settings.s3.prefix, name)
    objects.put_json(layout.spec, cell.spec.model_dump(mode="json"))
    for number, score in enumerate(scores):
        figures = {
            "train_loss": 1 / 3,
            "loss": 2.5,
            "map50_voc10": score,
            "map50_voc07": None if score is None else 1 - score,
        }
        record = round_record(
            number,
            federation=name,
            spec_digest=cell.spec.digest,
            clients=[client_info(client) for client in ("1", "2")],
            updates=[update_record(client) for client in ("1", "2")] if number else [],
            evaluations=[
                evaluation_record(client, test_digest=client * 64, map50_voc10=score) for client in ("1", "2")
            ],
            metrics=Metrics(**figures, per_class={"chair": score, "Tür": 1 / 7}, holdout=Metrics(**figures)),
            decision=Decision(stop=False, best_round=min(number, 1)),
            model=WeightRef(key=layout.global_weights(number), sha256=f"{number:064d}", bytes=1),
            seconds={"all": seconds},
        )
        objects.put_json(layout.marker(number), record.model_dump(mode="json"))


@pytest.fixture
def machines(s3_settings: S3Settings, own_prefix: str, tmp_path: Path) -> tuple[Machine, Machine]:
    """Return two machines, each with a bucket of its own."""
    found = []
    for name in ("one", "two"):
        s3 = s3_settings.model_copy(update={"prefix": own_prefix, "bucket": f"{s3_settings.bucket}-{name}"})
        objects = ObjectStore(s3, outage_seconds=10.0)
        objects.ensure_bucket()
        (tmp_path / name).mkdir()
        found.append(Machine(objects, Settings(home=tmp_path / name, s3=s3)))
    return found[0], found[1]


def test_imported_cells_are_done_and_have_the_same_result(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    one.finish(BOTH)
    file = one.export(tmp_path / "cells.json")
    done = two.take(file)
    assert (dict(done.taken), done.known, list(done.left)) == (
        {code_version(): 2},
        0,
        ["five.s1-central", "five.s2-central"],
    )
    plan = two.plan()
    states = {cell.name: plan.record(cell) for cell in plan.to_run}
    assert [name for name, record in states.items() if record is not None and record.state == "done"] == list(BOTH)
    record = states["five.s1"]
    assert record is not None
    assert record.imported is not None
    assert record.imported.weights == {number: f"{number:064d}" for number in (0, 1, 2)}
    ours, theirs = one.result(), two.result()
    assert [cell.model_copy(update={"machine": None}) for cell in theirs.cells] == list(ours.cells)
    assert (theirs.missing, theirs.environment) == (ours.missing, ours.environment)
    assert {cell.machine for cell in theirs.cells} == {ours.environment}
    assert theirs.cells[0].per_client.keys() == {"1", "2"}
    assert imported_notes(ours) == []
    assert imported_notes(theirs) == ["2 of 2 cells imported, run on x, 1 thread, torch 2"]
    assert not [key for key in two.written() if "/_suites/" not in key]  # no federation, no weights
    assert two.export(tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_the_file_has_a_line_for_each_cell_and_the_same_bytes_each_time(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, _ = machines
    one.finish(["five.s1"])
    before = one.export(tmp_path / "cells.json").read_text(encoding="utf-8").splitlines()
    one.finish(["five.s2"])
    after = one.export(tmp_path / "cells.json").read_text(encoding="utf-8")
    assert json.loads(after)["cells"].keys() == set(BOTH)
    assert one.export(tmp_path / "cells.json").read_text(encoding="utf-8") == after
    old = [line.removesuffix(",") for line in before]
    new = [line for line in after.splitlines() if line.removesuffix(",") not in old]
    assert [line.partition(":")[0] for line in new] == ['"five.s2"', f'"{DIGEST}"']
    assert list(tmp_path.glob(".*")) == []


def test_cells_shared_out_over_two_machines_come_together(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    one.finish(["five.s1"], suite=with_seeds(SUITE, [1]))
    two.finish(["five.s2"], [0.1, 0.4], run="other", suite=with_seeds(SUITE, [2]))
    first, second = one.export(tmp_path / "1.json"), two.export(tmp_path / "2.json", "other")
    assert list(two.take(first, name="all", suite=SUITE).left) == ["five.s1-central", "five.s2", "five.s2-central"]
    assert list(two.take(second, name="all").left) == ["five.s1-central", "five.s2-central"]
    result = two.result("all")
    assert [(cell.name, cell.last.figures["map50_voc10"]) for cell in result.cells] == [
        ("five.s1", 0.2),
        ("five.s2", 0.4),
    ]
    assert result.suite_digest == SUITE.digest
    with pytest.raises(SpecError, match=r"--name first: expected the suite that was begun under this name"):
        one.take(second, name=RUN, suite=SUITE)
    with pytest.raises(SpecError, match=r"2\.json: cells\.five\.s2: expected a cell of suite test as suite run first"):
        one.take(second, name=RUN)


def test_an_equal_cell_stays_and_one_with_other_figures_is_named(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, two = machines
    one.finish(BOTH)
    file = one.export(tmp_path / "cells.json")
    two.finish(["five.s1"], seconds=9.0)  # another machine needs another time
    before = two.written()
    done = two.take(file)
    assert (dict(done.taken), done.known) == ({code_version(): 1}, 1)
    assert two.written().items() >= before.items()
    assert two.result().cells[0].last.seconds == 27
    again = two.take(file)
    assert (dict(again.taken), again.known) == ({}, 2)
    two.finish(["five.s2"], [None, 0.25, 0.2])
    there = two.written()
    with pytest.raises(SpecError) as refused:
        two.take(file)
    assert str(refused.value).startswith(
        f"{file}: cells.five.s2: points.1.figures.map50_voc10: expected 0.25, found 0.3; suite run first has this cell"
    )
    assert two.written() == there


def test_a_cell_that_failed_or_whose_federation_was_removed_is_taken(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, _ = machines
    one.finish(BOTH)
    file = one.export(tmp_path / "cells.json")
    before, plan = one.result(), one.plan()
    one.objects.delete(one.objects.list(FederationLayout(one.settings.s3.prefix, plan.federation(plan.to_run[0])).root))
    plan.keep(
        record_of(plan, next(cell for cell in plan.to_run if cell.name == "five.s2"), state="failed", reason="lost")
    )
    assert dict(one.take(file).taken) == {code_version(): 2}
    assert [cell.model_copy(update={"machine": None}) for cell in one.result().cells] == list(before.cells)


def test_cells_are_not_taken_while_another_process_runs_the_suite(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    one, two = machines
    one.finish(BOTH)
    file = one.export(tmp_path / "cells.json")
    two.finish(["five.s1"])
    elsewhere = two.settings.model_copy(update={"home": tmp_path / "one"})
    before = two.written()
    with subject_held(two.objects, elsewhere, Subject.suite(elsewhere, RUN), "fedbench suite run"):
        for machine in (two, Machine(two.objects, elsewhere)):
            with pytest.raises(RunLocked, match=r"suite.first: "):
                machine.take(file)
    assert two.written() == before
    assert dict(two.take(file).taken) == {code_version(): 1}


def test_cells_of_other_code_are_kept_but_not_done_for_this_code(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machines
    monkeypatch.setattr("flows.suite.plan.code_version", lambda: "0.1.0-00000001")
    one.finish(BOTH)
    file = one.export(tmp_path / "cells.json")
    monkeypatch.setattr("flows.suite.plan.code_version", lambda: "0.1.0-00000002")
    assert dict(two.take(file).taken) == {"0.1.0-00000001": 2}
    plan = two.plan()
    assert [plan.record(cell) for cell in plan.to_run] == [None] * 4  # a run of this code runs them again
    result = two.result()
    assert (result.code_version, len(result.cells)) == ("0.1.0-00000001", 2)
    two.finish(["five.s1"])
    assert (two.result().code_version, len(two.result().cells)) == ("0.1.0-00000002", 1)
    with pytest.raises(SpecError, match=r"would be lost: five\.s1 \(code 0\.1\.0-00000001\), five\.s2 \(code"):
        two.export(file)
    assert read_export(file).cells.keys() == set(BOTH)


def test_a_complete_import_can_be_accepted(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    names = [cell.name for cell in one.plan().to_run]
    one.finish(names)
    file, prefix = one.export(tmp_path / "cells.json"), two.settings.s3.prefix
    assert list(two.take(file).left) == []
    result = suite_result(two.objects, prefix, RUN)
    assert [cell.name for cell in result.cells] == names
    assert accept(two.objects, prefix, RUN, by="me", note="").result == result


def test_what_depends_on_metric_and_target_follows_the_suite(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    chosen = SPEC.model_copy(
        update={
            "data": SPEC.data.model_copy(update={"holdout": Holdout()}),
            "evaluation": SPEC.evaluation.model_copy(update={"on": "both"}),
        }
    )
    suite = SUITE.model_copy(update={"experiments": (Experiment(name="five", spec=chosen, centralised=False),)})
    one.finish(["five.s1234"], suite=suite)
    other = suite.model_copy(update={"metric": "map50_voc07", "target": 0.75})
    assert other.digest == suite.digest
    two.take(one.export(tmp_path / "cells.json"), suite=other)
    key = SuiteLayout(one.settings.s3.prefix, RUN).suite
    one.objects.put_json(key, two.objects.get_json(key))
    (ours,), (theirs,) = one.result().cells, two.result().cells
    assert (ours.best_round, ours.rounds_to_target) == (2, 2)
    assert theirs.model_copy(update={"machine": None}) == ours
    plan = two.plan(suite=suite)
    (before,) = build_result(plan, two.settings).cells
    assert (before.best_round, before.rounds_to_target) == (1, 1)


def resealed(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    """Return a change of a file's document after which all digests fit again."""

    def changed(text: str) -> str:
        document = json.loads(text)
        change(document)
        for cell in document["cells"].values():
            cell[DIGEST] = content_digest(cell)
        return json.dumps({**document, DIGEST: content_digest(document)})

    return changed


def edited(old: str, new: str) -> Callable[[str], str]:
    def changed(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return changed


def without_a_cell(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith('"five.s1"'))


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "expected a whole file of fedbench suite export, found no JSON: "),
    "empty": (lambda text: "", "expected a whole file of fedbench suite export, found no JSON: "),
    "no text": (lambda text: "\ud800", "expected a whole file of fedbench suite export, found no JSON: "),
    "a list": (lambda text: "[1]", "kind: expected suite-cells, as fedbench suite export writes, found 'list'"),
    "another file": (lambda text: '{"version": 1}', "kind: expected suite-cells, as fedbench suite export writes,"),
    "a newer version": (edited('"version": 1', '"version": 2'), "version: 2 is newer than this fedbench understands"),
    "no version": (edited('"version": 1,', ""), "record_sha256: expected "),
    "an edited figure": (edited('"map50_voc10":0.3', '"map50_voc10":0.9'), "cells.five.s1: record_sha256: expected "),
    "an edited suite": (edited('"target":0.3', '"target":0.4'), "record_sha256: expected "),
    "a lost cell": (without_a_cell, "record_sha256: expected "),
    "no seal": (
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != DIGEST}),
        "record_sha256: expected the digest of its content, found none",
    ),
    "an unsealed cell": (
        lambda text: json.dumps(json.loads(text) | {"cells": {"five.s1": {"cell": "five.s1"}}}),
        "cells.five.s1: record_sha256: expected the digest of its content, found none",
    ),
    "cells that are no mapping": (
        lambda text: json.dumps({**(found := json.loads(text) | {"cells": [1]}), DIGEST: content_digest(found)}),
        "cells: expected",
    ),
    "an unknown field": (resealed(lambda it: it.update(more=1)), "more: "),
    "a figure that is none": (
        resealed(lambda it: it["cells"]["five.s1"]["imported"]["result"]["points"][1].update(passes="x")),
        "cells.five.s1.imported.result.points.1.passes: ",
    ),
    "another suite's digest": (resealed(lambda it: it.update(digest="a" * 64)), "digest: expected "),
    "an unknown cell": (
        resealed(lambda it: it["cells"].update(six=it["cells"]["five.s1"])),
        "cells.six: expected a cell of the file's suite: five.s1, five.s1-central",
    ),
    "a cell under another name": (
        resealed(lambda it: it["cells"].update({"five.s1-central": it["cells"]["five.s1"]})),
        "cells.five.s1-central: cell: expected five.s1-central, found five.s1",
    ),
    "another specification": (
        resealed(lambda it: it["cells"]["five.s2"].update(spec_digest="b" * 64)),
        "cells.five.s2: spec_digest: expected ",
    ),
    "a failed cell": (
        resealed(lambda it: it["cells"]["five.s2"].update(state="failed")),
        "cells.five.s2: state: expected done, found failed",
    ),
    "no figures": (
        resealed(lambda it: it["cells"]["five.s2"].update(imported=None)),
        "cells.five.s2: imported: expected the cell's figures, found none",
    ),
    "a code version that is no part of a key": (
        resealed(lambda it: it["cells"]["five.s2"].update(code_version="../../x")),
        "cells.five.s2: code_version: expected a version such as 0.1.0-3f2a9c1e, found '../../x'",
    ),
    "no machine": (
        resealed(lambda it: it["cells"]["five.s2"]["imported"]["result"].update(machine=None)),
        "cells.five.s2: imported.result.machine: expected the machine",
    ),
    "a lost round": (
        resealed(lambda it: it["cells"]["five.s2"]["imported"]["result"]["points"].pop(1)),
        "cells.five.s2: imported.result.points: expected [0, 1], found [0, 2]",
    ),
}  # fmt: skip


@pytest.fixture
def sound(machines: tuple[Machine, Machine], tmp_path: Path) -> str:
    one, _ = machines
    one.finish(BOTH)
    return one.export(tmp_path / "cells.json").read_text(encoding="utf-8")


def test_files_that_are_damaged_or_do_not_fit_are_refused_and_nothing_is_taken(
    sound: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    _, two = machines
    path = tmp_path / "bad.json"
    for name, (damage, says) in DAMAGE.items():
        path.write_text(damage(sound), encoding="utf-8", errors="surrogatepass")
        with pytest.raises(SpecError) as refused:
            two.take(path)
        assert str(refused.value).startswith(f"{path}: {says}"), (name, str(refused.value))
        # Nothing that the file lacks is written over it either.
        with pytest.raises(SpecError, match=f"{path} is not replaced"):
            write_export(read_export(tmp_path / "cells.json"), path)
    assert two.written() == {}


def test_a_cell_with_another_specification_is_refused_with_the_fields(
    sound: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    _, two = machines
    longer = SPEC.model_copy(update={"max_rounds": SPEC.max_rounds + 1})
    two.plan(suite=SUITE.model_copy(update={"experiments": (Experiment(name="five", spec=longer, seeds=(1, 2)),)}))
    with pytest.raises(SpecError) as refused:
        two.take(tmp_path / "cells.json")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path}/cells.json: cells.five.s1: spec_digest: expected ")
    assert lines[0].endswith(f": max_rounds: expected {SPEC.max_rounds + 1}, found {SPEC.max_rounds}")


def test_a_record_from_before_cells_could_be_imported_is_read(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    plan = one.plan()
    record = record_of(plan, plan.to_run[0])
    document = record.model_dump(mode="json")
    del document["imported"]
    one.objects.put_json(plan.layout.cell(record.spec_digest, plan.code), document)
    assert plan.record(plan.to_run[0]) == record


def test_a_file_of_another_run_is_not_replaced_and_an_unfinished_run_is_not_exported(
    sound: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, _ = machines
    one.plan("second")
    with pytest.raises(SpecError, match="second: expected a finished cell, found none yet"):
        one.export(tmp_path / "new.json", "second")
    one.finish(["five.s1"], run="second")
    with pytest.raises(SpecError, match="suite_run: expected an export of second, found one of first"):
        one.export(tmp_path / "cells.json", "second")
    assert (tmp_path / "cells.json").read_text(encoding="utf-8") == sound
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.json", "one", "two"]


def test_a_cell_of_many_rounds_is_a_few_kilobytes(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, _ = machines
    one.finish(["five.s1"], [1 / (3 + number) for number in range(61)])
    lines = export_text(export_suite(one.objects, one.settings, RUN)).splitlines()
    assert max(map(len, lines)) < 20_000


@pytest.mark.usefixtures("own_environment")
def test_the_commands_export_and_import(
    object_store: ObjectStore, command_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Machine(object_store, command_settings)
    one.finish(BOTH)
    file = tmp_path / "cells.json"
    exported = fedbench("suite", "export", RUN, file)
    assert exported.exit_code == 0, exported.output
    assert exported.output.startswith(f"exported 2 cells of code {code_version()}: {file}, ")
    prefix = f"{command_settings.s3.prefix}-two"
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", prefix)
    imported = fedbench("suite", "import", file)
    assert imported.exit_code == 0, imported.output
    first, last = imported.output.splitlines()
    assert first == f"imported 2 cells into suite run first, of code {code_version()}"
    assert last.startswith("2 cells of 4 not done yet; to run them: fedbench suite run SUITE --name first")
    again = fedbench("suite", "import", file)
    assert again.output.startswith("already in suite run first, with the same figures: 2 cells\n")
    shown = fedbench("suite", "show", RUN)
    assert shown.exit_code == 0, shown.output
    assert "2 of 2 cells imported, run on x, 1 thread, torch 2\n" in shown.output
    assert "not run yet: five.s1-central, five.s2-central" in shown.output
    file.write_text(file.read_text(encoding="utf-8").replace("0.3", "0.4"), encoding="utf-8")
    for arguments, says in (
        (("import", file), f"error: {file}: cells.five.s1: record_sha256: expected "),
        (("import", tmp_path / "none.json"), f"error: {tmp_path}/none.json: No such file or directory"),
        (("import", file, "--seed", "1"), "error: --seed: expected --suite with it"),
        (("export", "third", file), "error: third: no such suite run in the store; expected one of: first"),
        (("export", RUN, tmp_path / "none" / "cells.json"), "error: "),
    ):
        refused = fedbench("suite", *arguments)
        assert (refused.exit_code, refused.output[: len(says)]) == (2, says)


def test_other_code_is_named(
    object_store: ObjectStore,
    command_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_environment: None,
) -> None:
    one = Machine(object_store, command_settings)
    with monkeypatch.context() as other:
        other.setattr("flows.suite.plan.code_version", lambda: "0.1.0-00000001")
        one.finish(BOTH)
        file = one.export(tmp_path / "cells.json")
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", f"{command_settings.s3.prefix}-two")
    lines = fedbench("suite", "import", file).output.splitlines()
    assert lines[0] == "imported 2 cells into suite run first, of code 0.1.0-00000001"
    assert lines[1] == f"the installed code, {code_version()}, would run cells of code 0.1.0-00000001 again"
    assert read_export(file).cells["five.s1"].ended == NOW + timedelta(0)
