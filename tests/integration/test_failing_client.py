"""Clients that fail by their own fault are dropped, and the record has the reason. A round needs its quorum."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.views.files import reported
from tasks.data.catalog import load_data
from tasks.data.synthetic import CONTENTS
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import RoundRecord
from tests.integration.homes import PLAIN_SGD, TINY, Home, assert_tracked_once, tiny

pytestmark = pytest.mark.integration

BAD = "3"
CLIENTS = ["1", "2", "3", "4", "5"]
# A seed of its own gives it its own images, so that those of the shared home's other runs stay undamaged.
FAILING = tiny(max_rounds=2, data={"seed": 8}, participation={"clients": CLIENTS})


def training_images(home: Home, spec: FederationSpec, client: str) -> list[Path]:
    data = load_data(spec.data, root_of=lambda name: None, cache=home.path / "cache" / "data")
    return [sample.path for sample in data.train[client]]


@pytest.fixture(scope="module")
def bad_home(shared_home: Home) -> Home:
    """Return the shared home with damaged images of client 3. The client notices only when it trains on them."""
    for path in training_images(shared_home, parse_spec(FAILING, source="test"), BAD):
        damage(path)
    return shared_home


def damage(path: Path) -> None:
    """Damage a JPEG: keep its header, so that the data set loads, but give it a Huffman table that no decoder accepts.

    Put the hash of the damaged file into the set's list of hashes, otherwise the set would be drawn again.
    """
    data = bytearray(path.read_bytes())
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16
    path.write_bytes(data)
    folder = next(parent for parent in path.parents if (parent / CONTENTS).exists())
    contents = json.loads((folder / CONTENTS).read_text())
    file = path.relative_to(folder).as_posix()
    assert file in contents
    (folder / CONTENTS).write_text(json.dumps({**contents, file: hashlib.sha256(data).hexdigest()}))


@pytest.fixture(scope="module")
def both_failing(bad_home: Home) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start the run that needs all five clients. It runs beside the test of the run that does not."""
    spec = bad_home.spec_file({**FAILING, "participation": {"clients": CLIENTS, "min_updates": 5}}, "strict")
    output = bad_home.path / "strict.txt"
    process = bad_home.start("run", spec, "--name", "strict", "--slots", 1, output=output)
    yield process, output
    process.kill()
    process.wait()


def test_a_run_completes_although_one_of_five_clients_always_fails(
    bad_home: Home, both_failing: tuple[subprocess.Popen[bytes], Path]
) -> None:
    result = bad_home.run("run", bad_home.spec_file(FAILING, "failing"), "--name", "failing", "--slots", 2)
    assert result.returncode == 0, result.stdout
    records = bad_home.records("failing")
    assert [record.round for record in records] == [0, 1, 2]
    names = {path.name for path in training_images(bad_home, bad_home.stored_spec("failing"), BAD)}
    for record in records[1:]:
        assert [update.client for update in record.updates] == ["1", "2", "4", "5"]
        (failure,) = record.dropped
        assert (failure.client, failure.phase, failure.kind) == (BAD, "request_update", "client-error")
        assert "expected an image that can be decoded" in failure.reason
        assert any(name in failure.reason for name in names)
        assert f"client 3 dropped (client-error): {failure.reason}" in result.stdout
    assert "4/5" in result.stdout
    run = assert_tracked_once(bad_home, "failing", "FINISHED", records)
    assert run.data.metrics["clients/dropped"] == 1
    shown = bad_home.run("show", "failing")
    assert shown.returncode == 0, shown.stdout
    for record in records[1:]:
        reason = f"client 3 dropped (client-error): {record.dropped[0].reason}"
        assert f"round {record.round}: {reason}" in shown.stdout.splitlines()


def test_without_its_quorum_a_run_fails_and_names_the_missing_clients(
    bad_home: Home, both_failing: tuple[subprocess.Popen[bytes], Path]
) -> None:
    process, output = both_failing
    assert process.wait(timeout=120) == 1
    lines = output.read_text().splitlines()
    failed = next(line for line in lines if line.startswith("failed: "))
    assert "4 of 5" in failed
    assert "client 3" in failed
    assert "expected an image that can be decoded" in failed
    assert any(line.endswith(f"go on with: fedbench resume strict --home {bad_home.path}") for line in lines)
    assert not any("Traceback" in line for line in lines)
    records = bad_home.records("strict")
    assert [record.round for record in records] == [0]
    assert_tracked_once(bad_home, "strict", "FAILED", records)
    assert bad_home.flow_runs("strict") == [
        ("strict", "FAILED"),
        ("strict · initial model", "COMPLETED"),
        ("strict · round 1", "FAILED"),
    ]


def test_the_error_names_a_deadline_that_no_client_keeps(shared_home: Home) -> None:
    late = {**TINY, "participation": {"clients": ["4", "5"], "turn_deadline": 0.02}}
    result = shared_home.run("run", shared_home.spec_file(late, "late"), "--name", "late", "--slots", 2)
    assert result.returncode == 1, result.stdout
    failed = next(line for line in result.stdout.splitlines() if line.startswith("failed: "))
    assert "0 of 2" in failed
    for client in ("4", "5"):
        assert f"client {client}" in failed
    assert "no answer within participation.turn_deadline (0.02 s)" in failed
    assert "fedbench resume late" in result.stdout


@pytest.mark.slow
def test_a_client_that_fails_in_round_2_has_its_state_of_round_1_in_round_3(shared_home: Home) -> None:
    """Its images are damaged before round 2 and whole again before round 3. The method is SCAFFOLD."""
    home = shared_home
    document = tiny(data={"seed": 10}, strategy={"kind": "scaffold"}, training=PLAIN_SGD)
    command = ("run", home.spec_file(document, "restated"), "--name", "restated", "--slots", 2, "-q", "--max-rounds")

    def run_to(last: int) -> RoundRecord:
        result = home.run(*command, last)
        assert result.returncode == 0, result.stdout
        return home.records("restated")[last]

    first = run_to(1)
    assert set(first.states) == {"3", "4", "5"}
    images = training_images(home, parse_spec(document, source="test"), BAD)
    contents = next(parent / CONTENTS for parent in images[0].parents if (parent / CONTENTS).exists())
    whole = {path: path.read_bytes() for path in (*images, contents)}
    for path in images:
        damage(path)
    second = run_to(2)
    assert [(failure.client, failure.phase) for failure in second.dropped] == [(BAD, "request_update")]
    assert second.states[BAD] == first.states[BAD]
    assert [second.states[client] == first.states[client] for client in ("4", "5")] == [False, False]
    for path, content in whole.items():
        path.write_bytes(content)
    third = run_to(3)
    assert third.dropped == ()
    assert third.plan is not None
    assert third.plan.states == second.states
    (update,) = [update for update in third.updates if update.client == BAD]
    assert second.shared is not None
    assert update.started_from == (second.shared.sha256, first.states[BAD].sha256)
    assert third.states[BAD] == update.state
    best = home.records("restated")[third.decision.best_round]
    kept = {ref.key for record in (best, second, third) for ref in record.state_refs}
    assert {key for key in home.keys("restated") if home.layout("restated").is_state(key)} == kept


def test_a_run_without_any_figure_fails_and_registers_no_model(shared_home: Home) -> None:
    document = {**tiny(max_rounds=1, data={"seed": 9}), "participation": {"clients": ["4", "5"]}}
    data = load_data(
        parse_spec(document, source="test").data,
        root_of=lambda name: None,
        cache=shared_home.path / "cache" / "data",
    )
    for sample in data.test["4"]:
        damage(sample.path)
    command = ("run", shared_home.spec_file(document, "unscored"), "--name", "unscored", "--slots", 2)
    result = shared_home.run(*command)
    assert result.returncode == 1, result.stdout
    failed = next(line for line in result.stdout.splitlines() if line.startswith("failed: "))
    assert "unscored: every evaluation failed, so no round has a figure and no model is registered" in failed
    assert "expected an image that can be decoded" in failed
    assert "Traceback" not in result.stdout
    records = shared_home.records("unscored")
    assert [(record.round, len(record.evaluations), len(record.updates)) for record in records] == [
        (0, 0, 0),
        (1, 0, 2),
    ]
    assert_tracked_once(shared_home, "unscored", "FAILED", records)
    assert shared_home.flow_runs("unscored")[0] == ("unscored", "FAILED")
    folder = shared_home.path / "runs" / "unscored"
    assert reported(folder)
    assert not (folder / "model.json").exists()
    again = shared_home.run(*command)
    assert again.returncode == 1
    assert failed in again.stdout.splitlines()
    assert "starting services" not in again.stdout
