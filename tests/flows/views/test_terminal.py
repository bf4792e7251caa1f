"""The progress as plain lines and as a live display, and the tables of rounds and classes."""

from __future__ import annotations

import io
import logging
import os
import re
from datetime import UTC, datetime
from threading import Thread

import pytest
from rich.console import Console

from flows.cli.console import PlainConsole
from flows.views.live import LiveProgress
from flows.views.progress import Progress, SafeReporter, clock
from flows.views.tables import best_line, bytes_note, class_table, round_table
from flows.views.terminal import LineProgress, LogProgress, QuietProgress, make_progress
from infra.views import Views
from tasks.spec.plans import WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.flows.views.terminal_stream import Terminal
from tests.records import evaluation_record, round_plan, round_record, update_record

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def record(number: int, score: float | None, updates: int = 2) -> RoundRecord:
    """Return a committed round with two clients, of which ``updates`` sent an update."""
    plan = round_plan("1", "2", round=max(1, number), learning_rate=0.1, created=NOW)
    return round_record(
        number,
        plan=plan if number else None,
        updates=tuple(
            update_record(str(client + 1), round=max(1, number), train_size=1)
            for client in range(updates if number else 0)
        ),
        metrics=Metrics(train_loss=2.5 if number else None, loss=3.25, map50_voc10=score, recall=0.5),
        decision=Decision(stop=False, best_round=number, best_map50_voc10=score),
        seconds={"request_update": 4.0, "stop_and_eval": 1.5},
        bytes_up=34_700_000,
        bytes_down=35_600_000,
        committed=NOW,
    )


def play(progress: Progress) -> None:
    """Report round 1 with two clients: one answers, the other is lost twice and dropped."""
    progress.federation_started("street", "synthetic street, 2 devices", 3)
    progress.resumed(0, [record(0, 0.0)])
    progress.round_started(1)
    progress.phase_started("request_update", 2)
    progress.client_done("request_update", "1", "loss 2.50, 10 images")
    progress.client_retried("request_update", "2", 1, "the slot died")
    progress.client_failed("request_update", "2", "infrastructure-lost", "[Errno 111]\nno answer")
    progress.phase_finished("request_update", 4.04)
    progress.phase_started("aggregate", 0)
    progress.phase_finished("aggregate", 0.5)
    progress.round_committed(record(1, 0.125, updates=1))
    progress.message("stopping")
    progress.close()


def draw(progress: LiveProgress, width: int = 100, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(progress)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_progress_is_printed_as_lines() -> None:
    stream = io.StringIO()
    play(LineProgress(Console(file=stream, width=40)))
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\[\d:\d\d:\d\d\] ", line) for line in lines)
    assert [line.partition("] ")[2] for line in lines] == [
        "federation street: synthetic street, 2 devices; up to 3 rounds",
        "resumed: round 0 is committed, going on from there",
        "round 1 of 3",
        "round 1 request_update starts: 2 clients",
        "round 1 request_update: client 1 done (1 of 2): loss 2.50, 10 images",
        "round 1 request_update: client 2 lost, retry 1: the slot died",
        "round 1 request_update: client 2 dropped (infrastructure-lost): [Errno 111] no answer",
        "round 1 request_update finished in 4.0 s",
        "round 1 aggregate starts",
        "round 1 aggregate finished in 0.5 s",
        "round 1 of 3 committed: train loss 2.500, test loss 3.250, map50_voc10 0.125, recall 0.500, "
        "34.7 MB up, 35.6 MB down, 5.5 s",
        "stopping",
    ]


@pytest.mark.parametrize(
    ("phase", "client", "total", "expected"),
    [
        ("stop_and_eval", "1, 2, 3 and 2 more", 1, "evaluation for clients 1, 2, 3 and 2 more done (1 of 1): loss 1"),
        ("stop_and_eval", "4", 5, "evaluation for client 4 done (1 of 5): loss 1"),
        ("request_update", "4", 5, "client 4 done (1 of 5): loss 1"),
    ],
)
def test_an_evaluation_is_counted_as_such(phase: str, client: str, total: int, expected: str) -> None:
    stream = io.StringIO()
    progress = LineProgress(Console(file=stream, width=200))
    progress.phase_started(phase, total)
    progress.client_done(phase, client, "loss 1")
    starts, done = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    noun = "evaluation" if phase == "stop_and_eval" else "client"
    assert starts == f"round 0 {phase} starts: {total} {noun}{'s' if total > 1 else ''}"
    assert done == f"round 0 {phase}: {expected}"


def test_the_columns_of_bytes_are_explained() -> None:
    weights = WeightRef(key="k", sha256="a" * 64, bytes=3_000_000)
    updates = [update_record(client, weights=weights, bytes_down=2_000_000) for client in ("1", "2")]
    assert bytes_note([round_record(0)]) is None
    note = bytes_note([round_record(0), round_record(1, updates=updates), round_record(2, updates=updates)])
    assert note is not None
    assert note.startswith("MB up, MB down: to the store and from it; a model that this machine's cache has does not")
    assert note.endswith("In all, the clients needed and sent 20.0 MB.")


def test_lines_are_flushed() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    LineProgress(Console(file=stream)).message("here")
    assert raw.getvalue().endswith(b"here\n")


def test_quiet_prints_nothing_and_keeps_the_records() -> None:
    stream = Terminal()
    progress = make_progress(Console(file=stream, force_terminal=True), quiet=True)
    play(progress)
    assert stream.getvalue() == ""
    assert [kept.round for kept in progress.records] == [0, 1]


def test_the_kind_of_progress_depends_on_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert type(make_progress(Console(file=Terminal()), quiet=False)) is LiveProgress
    assert type(make_progress(Console(file=io.StringIO()), quiet=False)) is LineProgress
    assert type(make_progress(Console(file=Terminal()), quiet=True)) is QuietProgress
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(make_progress(Console(file=io.StringIO()), quiet=False)) is LineProgress


def test_phases_between_rounds_name_the_committed_round() -> None:
    stream = io.StringIO()
    progress = LineProgress(Console(file=stream, width=200))
    progress.federation_started("street", "synthetic street, 2 devices", 3)
    progress.resumed(3, [record(3, 0.0)])
    progress.phase_started("fine_tune", 2)
    progress.client_done("fine_tune", "1", "loss 2.50")
    progress.phase_finished("fine_tune", 4.04)
    assert [line.partition("] ")[2] for line in stream.getvalue().splitlines()][2:] == [
        "round 3 fine_tune starts: 2 clients",
        "round 3 fine_tune: client 1 done (1 of 2): loss 2.50",
        "round 3 fine_tune finished in 4.0 s",
    ]


def test_the_live_display_in_the_middle_of_a_phase() -> None:
    progress = LiveProgress(Console(file=io.StringIO()))
    progress.federation_started("street", "synthetic street, 2 devices", 3)
    try:
        progress.resumed(1, [record(0, 0.0), record(1, 0.125)])
        progress.round_started(2)
        progress.phase_started("check_client_resource", 2)
        progress.phase_finished("check_client_resource", 0.31)
        progress.phase_started("request_update", 3)
        progress.client_done("request_update", "7", "")
        progress.client_failed("request_update", "9", "client-error", "NaN")
        text = draw(progress)
    finally:
        progress.close()
    assert "fedbench street" in text
    assert "round 2/3" in text
    assert "best map50_voc10 0.125 in round 1" in text
    assert "✓ check_client_resource 0.3s" in text
    assert re.search(r"request_update +0:00:\d\d +1/3 +✓ 7 +✗ 9", text)
    assert re.search(r"1 +2/2 +2\.500 +3\.250 +0\.125 +0\.500", text)


def test_the_live_display_counts_many_clients() -> None:
    progress = LiveProgress(Console(file=io.StringIO()))
    progress.phase_started("request_update", 20)
    for client in range(10):
        progress.client_done("request_update", f"c{client}", "")
    progress.client_failed("request_update", "c11", "deadline", "late")
    text = draw(progress)
    assert "10/20  1 dropped" in text
    assert "c3" not in text


@pytest.mark.parametrize("height", [16, 24])
def test_the_live_display_fits_the_screen(height: int) -> None:
    progress = LiveProgress(Console(file=io.StringIO()))
    progress.federation_started("street", "synthetic " * 30, 1000)
    progress.close()
    progress.resumed(99, [record(number, 0.1) for number in range(100)])
    progress.round_started(100)
    for phase in ("wake_up", "check_client_resource", "request_update", "aggregate", "stop_and_eval"):
        progress.phase_started(phase, 5)
        progress.phase_finished(phase, 1234.5)
    lines = draw(progress, width=80, height=height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"\b99 +2/2", line) for line in lines)
    assert any("map50_voc10  " in line or "map50_voc10 " in line for line in lines)


def test_the_live_display_prints_failures_above_and_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    progress = make_progress(Console(file=stream, width=120, force_terminal=True), quiet=False)
    play(progress)
    progress.close()
    text = stream.getvalue()
    assert "client 2 dropped (infrastructure-lost): [Errno 111] no answer" in text
    assert text.endswith("\x1b[2K")  # at the end, the display's lines are erased


def test_events_from_many_threads_do_not_block_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    progress = make_progress(Console(file=Terminal(), width=80, force_terminal=True), quiet=False)
    assert isinstance(progress, LiveProgress)
    progress._live.refresh_per_second = 1000
    progress.federation_started("street", "", 1)
    progress.phase_started("request_update", 200)

    def report(first: int) -> None:
        for client in range(first, first + 50):
            progress.client_retried("request_update", str(client), 1, "lost")
            progress.client_done("request_update", str(client), "")

    threads = [Thread(target=report, args=(first,), daemon=True) for first in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    progress.close()
    assert len(progress.done) == 200


def test_the_table_of_rounds() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(round_table([record(0, None), record(1, 0.25), record(2, 0.125, updates=1)]))
    lines = console.export_text().splitlines()
    headers = "round  clients  train loss  test loss  map50_voc10  recall  MB up  MB down  s"
    assert lines[0].split() == headers.split()
    assert lines[1].split() == ["0", "-", "-", "3.250", "-", "0.500", "34.7", "35.6", "5.5"]
    assert lines[2].split() == ["1", "2/2", "2.500", "3.250", "0.250", "0.500", "34.7", "35.6", "5.5"]
    assert lines[3].split() == ["2", "1/2", "2.500", "3.250", "0.125", "0.500", "34.7", "35.6", "5.5"]


def test_times_are_formatted_as_hours_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 3723.4)] == ["0:00:00", "0:00:59", "1:02:03"]


def test_the_wide_table_of_rounds_fits_all_four_maps() -> None:
    maps = {"map50_voc10": 0.5, "map50_voc07": 0.375, "map50_coco": 0.25, "map_coco": 0.125}
    decision = Decision(stop=False, best_round=1, best_metric="map_coco", best_value=0.125)
    rows = []
    for number in range(2):
        metrics = Metrics(train_loss=12345.678, loss=12345.678, recall=0.5, **(maps if number else {}))
        rows.append(record(number, None).model_copy(update={"metrics": metrics, "decision": decision}))
    console = Console(file=io.StringIO(), width=100, record=True, force_terminal=True)
    console.print(round_table(rows, wide=True))
    styled = console.export_text(styles=True, clear=False)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert "…" not in "".join(lines)
    assert lines[1].split() == [
        "round",
        "clients",
        "loss",
        "loss",
        "voc10",
        "voc07",
        "coco",
        "coco",
        "recall",
        "up",
        "down",
        "s",
    ]
    assert lines[3].split()[4:9] == ["0.500", "0.375", "0.250", "0.125", "0.500"]
    assert lines[2].split()[4:9] == ["-", "-", "-", "-", "0.500"]
    assert re.findall(r"\x1b\[1;32m([0-9.]+)", styled) == ["0.125"]  # the best round, by the chosen metric
    assert best_line(decision) == "round 1, map_coco 0.125"
    assert best_line(Decision(stop=False, best_round=0)) is None
    assert best_line(Decision(stop=False, best_round=4, best_map50_voc10=0.5)) == "round 4, map50_voc10 0.500"


def test_the_table_of_classes() -> None:
    metrics = Metrics(
        per_class={"chair": 0.25, "table": None},
        per_class_coco={"chair": 0.125, "table": None},
        per_class_recall={"chair": 0.75, "table": None},
    )
    tests = [
        evaluation_record(client, test_size=3, map50_voc10=0.2, objects={"chair": count, "table": 0})
        for client, count in (("1", 4), ("2", 7))
    ]
    console = Console(file=io.StringIO(), width=80, record=True)
    for evaluations in (tests, ()):  # older records do not count objects
        changes = {"metrics": metrics, "evaluations": tuple(evaluations)}
        console.print(class_table(record(1, 0.2).model_copy(update=changes)))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[1:3] == [["chair", "11", "0.250", "0.125", "0.750"], ["table", "0", "-", "-", "-"]]
    assert lines[4:6] == [["chair", "-", "0.250", "0.125", "0.750"], ["table", "-", "-", "-", "-"]]


def test_no_event_fails_when_the_terminal_is_gone() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    progress, views = LineProgress(Console(file=Gone())), Views()
    reporter = SafeReporter(progress, views)
    reporter.round_started(1)
    reporter.phase_started("request_update", 2)
    reporter.client_done("request_update", "1", "")
    reporter.round_committed(record(1, 0.5))
    reporter.warning("no picture")
    assert [progress.round, progress.done, len(progress.records)] == [1, ["1"], 1]
    assert views.lines() == ["the progress on the terminal failed: OSError: [Errno 5] Input/output error"]


def test_all_shown_progresses_get_the_events_and_fail_by_themselves() -> None:
    class Failing(Progress):
        def _show_round(self) -> None:
            raise ConnectionError("no page")

    records: list[logging.LogRecord] = []
    logger = logging.Logger("of this test")

    class Kept(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            records.append(entry)

    logger.addHandler(Kept())
    views = Views()
    reporter = SafeReporter(QuietProgress(), views)
    reporter.round_started(1)  # before there is a log
    reporter.also_to("the page", Failing())
    log = LogProgress(logger)
    log.federation_started("street", "synthetic street, 2 devices", 3)
    reporter.also_to("the log", log)
    reporter.round_started(2)
    assert views.lines() == ["the page failed: ConnectionError: no page"]
    reporter.warning("no picture")
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("INFO", "federation street: synthetic street, 2 devices; up to 3 rounds"),
        ("INFO", "round 2 of 3"),
        ("WARNING", "warning: no picture"),
    ]
    assert views.lines() == []  # the page got the warning


def test_a_run_outlives_the_process_that_reads_its_output(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as file:
        console = PlainConsole(file=file)
        console.outlives_reader = True
        progress = LineProgress(console)
        progress.round_started(1)
        assert os.read(reading, 1000).endswith(b"round 1 of 0\n")
        os.close(reading)
        progress.round_started(2)
        progress.round_committed(record(2, 0.5))
        assert (console.quiet, progress.round, len(progress.records)) == (True, 2, 1)
    print("the command's own standard output is left as it is")
    assert capfd.readouterr().out.startswith("the command's own")


def test_a_quiet_run_prints_warnings_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    QuietProgress().message("a message")
    QuietProgress().warning("MLflow\x1b[2J failed")
    assert capsys.readouterr() == ("", "warning: MLflow\\x1b[2J failed\n")
