"""An unreadable federation does not prevent commands from listing, comparing or removing others in its store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from flows.cli.runs import report
from flows.cli.stored import list_runs
from flows.cli.suite import list_suites
from flows.commands.compare import read_compared
from flows.stored.leftovers import clean
from flows.stored.removal import remove_federation
from flows.stored.runs import DamagedRun, StoredRun, read_run, read_runs, stored_spec
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Decision, Metrics
from tests.records import round_record

SPEC = FederationSpec(max_rounds=1)
SPEC_JSON = SPEC.model_dump(mode="json")
WHOLE = json.dumps(SPEC_JSON).encode()
# The content of `spec.json`, and a part of the error about it.
BAD_SPECS = {
    "torn": (WHOLE[:-20], "expected JSON in bucket"),
    "empty": (b"", "expected JSON in bucket"),
    "zeros": (bytes(len(WHOLE)), "expected JSON in bucket"),
    "no-utf-8": (b'{"seed": "\xff"}', "expected JSON in bucket"),
    "deep": (b"[" * 100_000, "expected JSON in bucket"),
    "long-number": (b"1" * 10_000, "expected JSON in bucket"),
    "null": (b"null", "expected a JSON document in bucket"),
    "list": (b"[]", "spec.json: damaged: expected a mapping of fields, found list"),
    "newer": (json.dumps({**SPEC_JSON, "version": 2}).encode(), "version: 2 is newer than this fedbench"),
    "versioned": (json.dumps({**SPEC_JSON, "version": "1"}).encode(), "version: expected a whole number"),
    "unknown": (json.dumps({**SPEC_JSON, "colour": "red"}).encode(), "colour: no such field"),
    "infinite": (WHOLE.replace(b'"seed": 1234', b'"seed": Infinity'), "seed: expected"),
    "surrogate": (json.dumps({**SPEC_JSON, "data": {"kind": "\ud800"}}).encode(), "data.kind: expected one of"),
}


def marker(name: str, number: int) -> bytes:
    """Return the record of a committed round as JSON."""
    record = round_record(
        number,
        federation=name,
        spec_digest=SPEC.digest,
        model=WeightRef(key="k", sha256="0" * 64, bytes=1),
        metrics=Metrics(map50_voc10=0.1),
        decision=Decision(stop=number == 1, reason="max_rounds" if number == 1 else None, best_round=0),
    )
    return record.model_dump_json().encode()


@pytest.fixture
def settings(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, s3_settings: S3Settings
) -> Settings:
    """Return settings of a home with the session's store. Commands read the same settings."""
    prefix = f"damaged/{request.node.name}"
    assert s3_settings.endpoint is not None
    assert s3_settings.access_key is not None
    assert s3_settings.secret_key is not None
    for name, value in (
        ("HOME", str(tmp_path / "home")),
        ("S3__ENDPOINT", s3_settings.endpoint),
        ("S3__PREFIX", prefix),
        ("S3__ACCESS_KEY", s3_settings.access_key.get_secret_value()),
        ("S3__SECRET_KEY", s3_settings.secret_key.get_secret_value()),
    ):
        monkeypatch.setenv(f"FEDBENCH_{name}", value)
    return Settings(home=tmp_path / "home", s3=s3_settings.model_copy(update={"prefix": prefix}))


def put_good(store: ObjectStore, settings: Settings, name: str) -> FederationLayout:
    layout = FederationLayout(settings.s3.prefix, name)
    store.put_bytes(layout.spec, WHOLE)
    for number in (0, 1):
        store.put_bytes(layout.marker(number), marker(name, number))
    return layout


def test_unreadable_specifications_are_listed_with_the_reason(
    object_store: ObjectStore, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a-good", "z-good"):
        put_good(object_store, settings, name)
    for name, (content, _) in BAD_SPECS.items():
        object_store.put_bytes(FederationLayout(settings.s3.prefix, name).spec, content)
    for stranger in (".hidden", "with blank", "ü", "a" * 200):
        object_store.put_bytes(f"{settings.s3.prefix}/{stranger}/spec.json", b"no")
    found = {run.name: run for run in read_runs(object_store, settings)}
    assert {name for name, run in found.items() if isinstance(run, StoredRun)} == {"a-good", "z-good"}
    for name, (_, reason) in BAD_SPECS.items():
        run = found[name]
        assert isinstance(run, DamagedRun)
        assert f"{name}/spec.json: " in run.reason
        assert reason in run.reason
        assert run.spec is None
    list_runs()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["z-good", "finished", "1/1"] for line in lines)
    assert any(line.split()[:2] == ["torn", "damaged"] for line in lines)
    assert any(line.startswith("torn is damaged: ") and "expected JSON" in line for line in lines)


def test_unreadable_rounds_are_listed_with_the_reason(object_store: ObjectStore, settings: Settings) -> None:
    whole = marker("x", 1)
    put_good(object_store, settings, "good")
    for name, number, content, reason in (
        ("torn", 1, whole[:-9], "rounds/0001/round.json: damaged: expected JSON"),
        ("newer", 1, whole.replace(b'"version":1', b'"version":2'), "rounds/0001/round.json: version: 2 is newer"),
        ("no-figure", 1, whole.replace(b"0.1", b"NaN"), "rounds/0001/round.json: damaged: metrics.map50_voc10: "),
        ("gap", 3, whole, "rounds/0002/round.json is missing in the store"),
        ("far", 20_260_101_120_000, whole, "rounds/0002/round.json is missing in the store"),
    ):
        layout = put_good(object_store, settings, name)
        object_store.put_bytes(layout.marker(number), content)
        found = {run.name: run for run in read_runs(object_store, settings)}
        run = found[name]
        assert isinstance(run, DamagedRun)
        assert reason in run.reason
        assert run.spec == SPEC
        result = clean(settings, apply=False, names=[name])
        assert [note.partition(":")[0] for note in result.notes] == [name]
    other = put_good(object_store, settings, "strangers")
    object_store.put_bytes(f"{other.rounds}00001/round.json", b"no")
    kinds = {run.name: type(run) for run in read_runs(object_store, settings)}
    assert (kinds["strangers"], kinds["good"]) == (StoredRun, StoredRun)


def test_resume_can_mend_a_damaged_last_round(object_store: ObjectStore, settings: Settings) -> None:
    layout = put_good(object_store, settings, "torn")
    object_store.put_bytes(layout.marker(1), marker("torn", 1)[:-9])
    with pytest.raises(SpecError, match="to do this round again: fedbench resume torn\n"):
        read_run(object_store, settings, "torn")
    assert stored_spec(settings, "torn") == SPEC
    object_store.put_bytes(layout.spec, WHOLE[:-9])
    with pytest.raises(SpecError, match="it is written again by fedbench run SPEC --name torn"):
        stored_spec(settings, "torn")


def test_only_finished_federations_are_reported(
    object_store: ObjectStore, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = FederationLayout(settings.s3.prefix, "it")
    object_store.put_bytes(layout.spec, WHOLE)
    object_store.put_bytes(layout.marker(0), marker("it", 0))
    with pytest.raises(typer.Exit) as ended:
        report("it")
    assert ended.value.exit_code == 2
    assert "found one that is stopped; go on with: fedbench resume it --home " in capsys.readouterr().err
    with run_lock(settings.home, "it"), pytest.raises(typer.Exit) as ended:
        report("it")
    assert ended.value.exit_code == 2
    assert "found one that is running; wait for its end\n" in capsys.readouterr().err


def test_commands_work_for_the_others_and_a_damaged_federation_can_be_removed(
    object_store: ObjectStore, settings: Settings
) -> None:
    for name in ("one", "two"):
        put_good(object_store, settings, name)
    torn = FederationLayout(settings.s3.prefix, "torn")
    object_store.put_bytes(torn.spec, WHOLE[:100])
    object_store.put_bytes(torn.marker(0), b"{")
    assert [item.name for item in read_compared(settings, ["one", "two"], "map50_voc10")] == ["one", "two"]
    assert [note.partition(":")[0] for note in clean(settings, apply=True).notes] == ["torn"]
    assert remove_federation(settings, "torn")[0] == 2
    assert remove_federation(settings, "one")[0] == 3
    assert [run.name for run in read_runs(object_store, settings)] == ["two"]


def test_an_unreadable_suite_run_is_listed_with_the_reason(
    object_store: ObjectStore, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    object_store.put_bytes(SuiteLayout(settings.s3.prefix, "torn").suite, b'{"suite_run": "to')
    list_suites()
    output = capsys.readouterr().out
    assert "torn is damaged: " in output
    assert "suite.json: damaged: expected JSON" in output
