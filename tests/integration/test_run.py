"""An undisturbed run: its output, and its results in the store, MLflow and Prefect."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from infra.servers.credentials import read_keys
from infra.servers.login_page import how_to_log_in, login_path
from tasks.spec.federation import flatten
from tests.integration.conftest import MANY_ROUNDS, FinishedRun
from tests.integration.homes import TINY, Home, assert_consistent, assert_no_process_left, assert_tracked_once, digests
from tests.strangers import Stranger, mlflow_target, prefect_target
from tests.waiting import eventually

pytestmark = pytest.mark.integration


def test_a_run_prints_its_rounds_and_where_its_results_are(undisturbed: FinishedRun) -> None:
    lines = undisturbed.result.stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.split()[:2] == ["round", "clients"])
    table = [line.split() for line in lines[header + 1 : header + 5]]
    assert [row[:2] for row in table] == [["0", "-"], ["1", "3/3"], ["2", "3/3"], ["3", "3/3"]]
    assert any("request_update: client 4 done" in line for line in lines)
    folder = undisturbed.home.path / "runs" / "tiny"
    assert f"plots: {folder}" in lines
    assert f"pages: fedbench ui tiny --home {undisturbed.home.path}" in lines
    for file in ("rounds.png", "class-by-device.png", "client-losses.png", "sheet.png", "errors.png"):
        assert (folder / file).read_bytes().startswith(b"\x89PNG")
    assert (folder / "run.log").stat().st_size > 0
    assert_no_process_left(undisturbed.home)


def test_the_home_becomes_private_whatever_its_mode_and_the_umask(undisturbed: FinishedRun) -> None:
    assert undisturbed.open_to_others == ()
    said = f"{undisturbed.home.path}: others could enter it (0777); from now on only you can (0700)"
    assert undisturbed.result.stdout.count(said) == 1


def test_a_run_prints_once_how_to_log_in_but_not_the_password(undisturbed: FinishedRun) -> None:
    page, keys = login_path(undisturbed.home.path, "run"), read_keys(undisturbed.home.path / "services")
    assert undisturbed.result.stdout.count(how_to_log_in(page)) == 1
    log = (undisturbed.home.path / "runs" / "tiny" / "run.log").read_text()
    for text in (undisturbed.result.stdout, log):
        assert not any(word in text for word in keys.model_dump().values())
    assert keys.prefect_auth in page.read_text()


def test_prefects_page_has_the_lines_of_every_round(undisturbed: FinishedRun) -> None:
    log = undisturbed.home.page_log("tiny")
    for number in (1, 2, 3):
        assert any(line.startswith(f"INFO round {number} of 3 committed: train loss ") for line in log), log
        done = [line for line in log if line.startswith(f"INFO round {number} request_update: client ")]
        assert len(done) == 3
    assert log[-1] == "INFO Finished in state Completed()"
    # The terminal has each line once, and so has the log file.
    printed = undisturbed.result.stdout + (undisturbed.home.path / "runs" / "tiny" / "run.log").read_text()
    assert printed.count("round 2 of 3 committed") == 1


def test_the_store_holds_every_round_and_the_best_and_last_weights(undisturbed: FinishedRun) -> None:
    records = assert_consistent(undisturbed.home, "tiny", rounds=3)
    assert len(set(digests(records))) == 4
    sizes = {info.client: info.train_size for info in records[0].clients}
    for record in records[1:]:
        assert {update.client: update.train_size for update in record.updates} == sizes
        assert all(update.weights.bytes == record.model.bytes for update in record.updates)
        assert record.decision.stop == (record.round == 3)
    assert records[-1].decision.reason == "max_rounds"


def test_mlflow_has_one_finished_run_with_parameters_metrics_and_artifacts(undisturbed: FinishedRun) -> None:
    run = assert_tracked_once(undisturbed.home, "tiny", "FINISHED", undisturbed.records)
    spec = undisturbed.home.stored_spec("tiny")
    assert run.data.params == {name: str(value) for name, value in flatten(spec.model_dump(mode="json")).items()}
    last = undisturbed.records[-1]
    assert run.data.metrics["global/loss"] == pytest.approx(last.metrics.loss)
    assert run.data.metrics["client/4/loss"] == pytest.approx(last.updates[1].train_loss)
    assert run.data.metrics["bytes/up"] == last.bytes_up
    bucket, _, key = run.info.artifact_uri.removeprefix("s3://").partition("/")
    assert bucket == "fedbench"
    artifacts = undisturbed.home.object_path(key)
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    files = ("rounds", "class-by-device", "client-losses", "sheet", "precision-recall", "confusion", "errors")
    plots = {f"plots/{file}.png" for file in files}
    assert found == {"spec.yaml", "best.json"} | plots
    assert yaml.safe_load((artifacts / "spec.yaml").read_bytes()) == spec.model_dump(mode="json")
    best = undisturbed.records[last.decision.best_round].model
    assert json.loads((artifacts / "best.json").read_bytes()) == {
        "uri": f"s3://fedbench/{best.key}",
        "sha256": best.sha256,
    }


def test_prefect_has_a_completed_flow_run_and_a_table_of_clients_for_each_round(undisturbed: FinishedRun) -> None:
    rounds = [f"tiny · round {number}" for number in (1, 2, 3)]
    names = ["tiny", "tiny · initial model", *rounds]
    # Other tests may have run the same command again, which starts only the federation's flow.
    assert sorted(set(undisturbed.home.flow_runs("tiny"))) == [(name, "COMPLETED") for name in names]
    kind, rows = undisturbed.home.artifact("round-tiny")
    assert kind == "table"
    assert [(row["client"], row["images"], row["dropped"]) for row in rows] == [
        (update.client, update.train_size, "") for update in undisturbed.records[-1].updates
    ]
    kind, text = undisturbed.home.artifact("federation-tiny")
    assert kind == "markdown"
    assert "| 3 | 3 |" in text


def test_one_slot_and_loader_workers_do_not_change_a_bit(undisturbed: FinishedRun, one_slot: FinishedRun) -> None:
    assert digests(one_slot.records) == digests(undisturbed.records)
    assert "client 4 done" not in one_slot.result.stdout  # -q
    assert "pages: fedbench ui workers" in one_slot.result.stdout


def test_the_same_command_prints_the_result_and_trains_nothing(undisturbed: FinishedRun, shared_home: Home) -> None:
    before = {key: shared_home.object_path(key).stat().st_mtime_ns for key in shared_home.keys("tiny")}
    runs = shared_home.flow_runs("tiny")
    result = shared_home.run("run", undisturbed.spec, "--name", "tiny", "--slots", 2)
    assert result.returncode == 0, result.stdout
    assert "tiny is finished; nothing was left to do." in result.stdout
    assert "3/3" in result.stdout
    assert "request_update" not in result.stdout
    assert {key: shared_home.object_path(key).stat().st_mtime_ns for key in shared_home.keys("tiny")} == before
    assert shared_home.flow_runs("tiny") == runs


def test_another_experiment_under_the_same_name_is_refused(undisturbed: FinishedRun, shared_home: Home) -> None:
    arguments = ("-s", "training.optimizer.lr=0.5", "--seed", "9")
    result = shared_home.run("run", undisturbed.spec, "--name", "tiny", *arguments)
    assert result.returncode == 2, result.stdout
    assert "tiny: this name belongs to another experiment" in result.stdout
    assert "seed (was 1234, now 9)" in result.stdout
    assert "training.optimizer.lr (was 0.001, now 0.5)" in result.stdout
    assert "max_rounds (" not in result.stdout
    assert "Traceback" not in result.stdout


def test_fewer_rounds_are_refused(undisturbed: FinishedRun, shared_home: Home) -> None:
    result = shared_home.run("resume", "tiny", "--max-rounds", 2)
    assert result.returncode == 2, result.stdout
    assert "max_rounds (was 3, now 2)" in result.stdout
    assert "Traceback" not in result.stdout


def test_more_rounds_extend_a_run(extended: FinishedRun, one_slot: FinishedRun) -> None:
    home, name = extended.home, extended.name
    assert "resumed: round 3 is committed, going on from there" in extended.result.stdout
    assert "round 3 request_update" not in extended.result.stdout
    records = assert_consistent(home, name, rounds=MANY_ROUNDS)
    assert records[:4] == one_slot.records
    run = assert_tracked_once(home, name, "FINISHED", records)
    assert run.data.params["max_rounds"] == "3"  # MLflow keeps the first value
    assert run.data.tags["fedbench.max_rounds"] == str(MANY_ROUNDS)
    assert {state for _, state in home.flow_runs(name)} == {"COMPLETED"}


def test_a_second_run_of_the_same_name_at_once_is_refused(shared_home: Home, tmp_path: Path) -> None:
    spec = shared_home.spec_file(TINY)
    output = tmp_path / "first.txt"
    first = shared_home.start("run", spec, "--name", "twice", "--slots", 2, output=output)
    try:
        assert eventually(lambda: first.poll() is not None or "starting services" in output.read_text(), 60)
        second = shared_home.run("run", spec, "--name", "twice")
        assert second.returncode == 2, second.stdout
        assert f"twice: already running in process {first.pid}" in second.stdout
        assert "Traceback" not in second.stdout
        listed = shared_home.run("list")
        assert any(line.split()[:2] == ["twice", "running"] for line in listed.stdout.splitlines())
    finally:
        first.kill()
        first.wait()


def test_runs_are_compared(undisturbed: FinishedRun, one_slot: FinishedRun, shared_home: Home, tmp_path: Path) -> None:
    result = shared_home.run("compare", "tiny", "workers", "--out", tmp_path / "figures")
    assert result.returncode == 0, result.stdout
    differs = next(line for line in result.stdout.splitlines() if line.startswith("workers differs from tiny in: "))
    assert "training.loader_workers 0 → 1" in differs
    # Another test may have extended one of them.
    scores = [shared_home.records(name)[-1].metrics.map50_voc10 for name in ("tiny", "workers")]
    last = next(line for line in result.stdout.splitlines() if line.startswith("map50_voc10 last"))
    assert scores[0] is not None
    assert scores[1] is not None
    digits = 4 if 0 < abs(scores[0] - scores[1]) < 0.0015 else 3
    assert last.split()[2:4] == [f"{score:.{digits}f}" for score in scores]
    assert "gap to centralised" not in result.stdout
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"report.html", "table.tex", "comparison.csv", "by-round.png", "federations-by-bytes.svg"} <= written


def test_the_pages_of_a_run_ask_for_credentials(shared_home: Home, tmp_path: Path) -> None:
    output = tmp_path / "pages.txt"
    pages = shared_home.start("ui", "tiny", "--no-browser", output=output)
    try:
        assert eventually(lambda: pages.poll() is not None or "Ctrl-C ends it" in output.read_text(), 300)
        said = output.read_text()
        assert said.count(how_to_log_in(login_path(shared_home.path, "ui"))) == 1, said
        keys = read_keys(shared_home.path / "services")
        assert not any(word in said for word in keys.model_dump().values())
        addresses = dict(re.findall(r"^(Prefect|MLflow) +(http://\S+?:\d+)", said, re.MULTILINE))
        targets = {
            "prefect": prefect_target(addresses["Prefect"], keys.prefect_auth),
            "mlflow": mlflow_target(addresses["MLflow"]),
        }
        found = Stranger().try_all("tiny", targets)  # the name of the run
        assert found == {name: [] for server in targets for name in (server, f"{server} sockets")}
    finally:
        pages.terminate()
        pages.wait(60)


def test_resume_show_and_list(undisturbed: FinishedRun, shared_home: Home) -> None:
    home = shared_home
    resumed = home.run("resume", "tiny")
    assert resumed.returncode == 0, resumed.stdout
    assert "tiny is finished; nothing was left to do." in resumed.stdout
    shown = home.run("show", "tiny")
    assert shown.returncode == 0, shown.stdout
    assert "finished" in shown.stdout
    assert home.stored_spec("tiny").digest[:12] in shown.stdout
    assert shown.stdout.count("3/3") == 3
    by_class = home.run("show", "tiny", "--classes").stdout
    assert "test objects" in by_class
    assert "sunshade" in by_class
    listed = home.run("list")
    assert listed.returncode == 0, listed.stdout
    row = next(line for line in listed.stdout.splitlines() if line.split()[:1] == ["tiny"])
    assert row.split()[1:3] == ["finished", "3/3"]
    unknown = home.run("show", "nobody")
    assert unknown.returncode == 2
    assert "nobody: no such federation in the store; expected one of:" in unknown.stdout
    assert "Traceback" not in unknown.stdout
