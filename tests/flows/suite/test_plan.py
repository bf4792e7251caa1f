"""Suite runs in a real store: how they start, how they go on, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.suite.plan import claim, default_name, pinned, read_plan, read_start
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import DataError, SpecError
from tasks.spec.data import Coco, FederatedStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.presets import preset
from tasks.spec.suite import Experiment, SuiteSpec
from tasks.spec.suite_records import CellRecord

SPEC = preset("smoke")
SUITE = SuiteSpec(
    name="test",
    experiments=(
        Experiment(name="five", spec=SPEC, seeds=(1, 2)),
        Experiment(
            name="twenty",
            spec=SPEC.model_copy(update={"data": SPEC.data.model_copy(update={"split": 20})}),
            seeds=(1,),
        ),
    ),
)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"suites/{request.node.name}"


def test_a_suite_run_starts_once_and_then_goes_on(s3_settings: S3Settings, prefix: str) -> None:
    objects = ObjectStore(s3_settings)
    plan = claim(objects, prefix, default_name(SUITE), SUITE)
    begun = read_start(objects, prefix, plan.name).started
    assert plan.name == f"test-{SUITE.digest[:8]}"
    assert [cell.name for cell in plan.to_run] == [
        "five.s1",
        "five.s1-central",
        "twenty.s1",
        "five.s2",
        "five.s2-central",
    ]
    assert len(plan.cells) == 6
    shared = next(cell for cell in plan.cells if cell.name == "twenty.s1-central")
    assert plan.federation(shared) == f"{plan.name}.five.s1-central.{plan.code[-8:]}"
    record = CellRecord(
        suite_run=plan.name,
        cell="five.s1-central",
        spec_digest=shared.spec.digest,
        code_version=plan.code,
        federation=plan.federation(shared),
        state="done",
        seconds=1.0,
        ended=datetime.now(UTC),
    )
    plan.keep(record)
    again = claim(objects, prefix, plan.name, SUITE)
    assert again.record(shared) == record
    assert [again.record(cell) for cell in again.to_run].count(None) == 4
    assert read_start(objects, prefix, plan.name).started == begun
    assert read_plan(objects, prefix, plan.name).suite == SUITE


def test_cells_of_other_code_are_read_but_run_again(
    s3_settings: S3Settings, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = ObjectStore(s3_settings)
    for code, month in (("0.1.0-00000002", 2), ("0.1.0-00000001", 1)):
        monkeypatch.setattr("flows.suite.plan.code_version", lambda code=code: code)
        plan = claim(objects, prefix, "test", SUITE)
        cell = plan.cells[0]
        record = CellRecord(
            suite_run=plan.name,
            cell=cell.name,
            spec_digest=cell.spec.digest,
            code_version=plan.code,
            federation=plan.federation(cell),
            state="done",
            seconds=1.0,
            ended=datetime(2026, month, 1, tzinfo=UTC),
        )
        plan.keep(record)
    assert (
        read_plan(objects, prefix, "test").code == "0.1.0-00000001"
    )  # this code's own cell, although the other code's is newer
    monkeypatch.setattr("flows.suite.plan.code_version", lambda: "0.1.0-00000003")
    assert read_plan(objects, prefix, "test").code == "0.1.0-00000002"
    assert claim(objects, prefix, "test", SUITE).record(cell) is None


def test_a_name_belongs_to_one_suite(s3_settings: S3Settings, prefix: str) -> None:
    objects = ObjectStore(s3_settings)
    claim(objects, prefix, "mine", SUITE)
    other = SUITE.model_copy(update={"experiments": SUITE.experiments[:1]})
    with pytest.raises(SpecError, match="--name mine: expected the suite that was begun under this name"):
        claim(objects, prefix, "mine", other)
    with pytest.raises(SpecError, match="expected letters, digits"):
        claim(objects, prefix, "a/b", SUITE)
    with pytest.raises(SpecError, match="expected a name that is 21 characters shorter"):
        claim(objects, prefix, "n" * 96, SUITE)
    with pytest.raises(SpecError, match="yours: no such suite run in the store; expected one of: mine"):
        read_start(objects, prefix, "yours")
    objects.put_json(FederationLayout(prefix, "street").spec, {})
    with pytest.raises(SpecError, match=r"street: expected a suite run, found a federation \(fedbench show street\)"):
        read_start(objects, prefix, "street")


def test_data_are_checked_before_anything_runs(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    street = FederationSpec(data=FederatedStreet())
    for spec, says in ((street, "data.name: no folder is known"), (FederationSpec(data=Coco(name="mine")), "'mine'")):
        asked = SuiteSpec(name="test", experiments=(Experiment(name="a", spec=SPEC), Experiment(name="b", spec=spec)))
        with pytest.raises(DataError, match=says):
            pinned(asked, settings)
    assert (
        pinned(SUITE, settings) == SUITE
    )  # synthetic data are drawn from the specification, so there is nothing to pin


def flipped(content: bytes) -> bytes:
    """Flip a bit in a digit of the record, not of its digest."""
    at = content.index(b"20")  # the start of a year
    return content[:at] + b"3" + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[: len(content) // 2]], ids=["bit", "half"])
def test_a_damaged_cell_runs_again_and_a_damaged_start_is_written_again(
    s3_settings: S3Settings, prefix: str, damage: Callable[[bytes], bytes]
) -> None:
    prefix = prefix.replace("[", "-").replace("]", "")
    objects = ObjectStore(s3_settings)
    plan = claim(objects, prefix, "mine", SUITE)
    cell = plan.cells[0]
    record = CellRecord(
        suite_run="mine", cell=cell.name, spec_digest=cell.spec.digest, code_version=plan.code,
        federation=plan.federation(cell), state="done", seconds=1.0, ended=datetime.now(UTC),
    )  # fmt: skip
    plan.keep(record)
    for key in (plan.layout.cell(cell.spec.digest, plan.code), plan.layout.suite):
        objects.put_bytes(key, damage(objects.get_bytes(key)))
    torn = objects.get_bytes(plan.layout.suite)
    other = SUITE.model_copy(update={"experiments": SUITE.experiments[1:]})  # without the experiment of the cell
    with pytest.raises(SpecError, match=f"{plan.layout.suite}: damaged: "):
        claim(objects, prefix, "mine", other)
    again = claim(objects, prefix, "mine", SUITE)
    assert again.record(cell) is None
    again.keep(record)
    assert again.record(cell) == record
    assert read_start(objects, prefix, "mine").suite == SUITE
    assert objects.get_bytes(f"{plan.layout.suite}.damaged") == torn
