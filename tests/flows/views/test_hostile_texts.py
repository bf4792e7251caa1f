"""Texts of clients and of the store on the terminal, in the log, on Prefect's page and on record."""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt
from rich.text import Text

from flows.cli import app as command_line
from flows.cli import shared
from flows.cli.console import PlainConsole
from flows.commands.evaluate_model import classes_table
from flows.coordinator.restarts import servers_failed
from flows.views.live import LiveProgress
from flows.views.mlflow_figures import round_figures
from flows.views.prefect_page import client_table, round_description, summary
from flows.views.progress import Progress
from flows.views.tables import class_table
from flows.views.terminal import LineProgress, LogProgress
from infra.errors import PoolUnusable, SlotLost, StoreUnavailable
from infra.plain_text import first_line
from infra.settings import Settings
from infra.store.layout import federations
from infra.store.objects import ObjectStore
from infra.store.suite_layout import accepted_suites, suite_runs
from infra.views import Views
from tasks.errors import DataError, SpecError
from tasks.handles import Leavings
from tasks.plain_text import NAME_LIMIT, REASON_LIMIT, plain, visible
from tasks.replies import checked, failure_of
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.records import Decision, Environment, Metrics, RoundRecord
from tasks.spec.turns import ResourceRequest, TurnReply
from tests.flows.views.terminal_stream import Terminal
from tests.hostile_texts import HOSTILE, Html, commands, hostile
from tests.records import client_info, evaluation_record, round_record

SHA = "a" * 64
LONGEST_NAME = 500  # the longest name of a class in a record


def on_terminal(show: Callable[[PlainConsole], None]) -> str:
    """Return what ``show`` writes to a terminal with colours."""
    stream = Terminal()
    show(PlainConsole(file=stream, force_terminal=True, color_system="truecolor", width=200, height=50))
    return stream.getvalue()


def letters(output: str) -> str:
    """Return ``output`` without colours, with each run of white space as one space."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).split())


def record(text: str) -> RoundRecord:
    """Return a round with ``text`` in every field that a client or the store can word, as far as records allow."""
    text = text.encode(errors="replace").decode()[:LONGEST_NAME]
    per_class = {text: 0.5}
    return round_record(
        3,
        clients=(client_info(train_size=1, test_size=1, class_counts={text: 1}, host=text, device=text),),
        dropped=(ClientFailure(client="2", phase="wake_up", kind="client-error", reason=text),),
        model=WeightRef(key=text, sha256=SHA, bytes=1),
        evaluations=(evaluation_record("1", test_size=1, per_class=per_class, objects={text: 2}, score_threshold=0.1),),
        metrics=Metrics(map50_voc10=0.5, per_class=per_class, per_class_coco=per_class, per_class_recall=per_class),
        decision=Decision(stop=True, reason="max_rounds", best_round=0, best_map50_voc10=0.5),
        environment=Environment(fedbench="0", python="3", torch=text, torchvision="0", cpu=text, threads=1),
        committed="2026-01-02T00:00:00Z",
    )


# --- the terminal ------------------------------------------------------------------------------------------


def play(progress: Progress, text: str) -> None:
    progress.federation_started("street", text, 3)
    progress.round_started(1)
    progress.phase_started("request_update", 2)
    progress.client_done("request_update", "1", text)
    progress.client_retried("request_update", "2", 1, text)
    progress.client_failed("request_update", "2", "client-error", text)
    progress.message(text)
    progress.close()


@hostile
@pytest.mark.parametrize("kind", [LineProgress, LiveProgress])
def test_progress_sends_the_terminal_no_more_commands_than_for_harmless_texts(
    kind: Callable[[PlainConsole], Progress], text: str
) -> None:
    output = on_terminal(lambda console: play(kind(console), text))
    assert commands(output) <= commands(on_terminal(lambda console: play(kind(console), "harmless")))
    assert plain(text)[:60].strip() in letters(output)


@hostile
def test_a_dropped_clients_reason_takes_one_line(text: str) -> None:
    def lines(words: str) -> int:
        def show(console: PlainConsole) -> None:
            LineProgress(console).client_failed("wake_up", "2", "client-error", words)

        return on_terminal(show).count("\n")

    assert lines(text) == lines("harmless") == 1


@hostile
@pytest.mark.parametrize(
    "shown",
    [
        lambda text: text,
        lambda text: Text(text, "bold"),
        lambda text: class_table(record(text)),
        lambda text: classes_table(
            SimpleNamespace(
                metrics=record(text).metrics, records=[], model=SimpleNamespace(card=SimpleNamespace(classes=[text]))
            )  # type: ignore[arg-type]
        ),
    ],
    ids=["string", "Text", "classes of a round", "classes of an evaluation"],
)
def test_the_console_prints_no_commands_and_no_markup(text: str, shown: Callable[[str], object]) -> None:
    def printed(words: str) -> str:
        return on_terminal(lambda console: console.print(shown(words), highlight=False))  # without colours for numbers

    output = printed(text)
    assert commands(output) <= commands(printed("harmless")) | {"\t"}
    if not commands(text):  # [bold] and :bomb: are printed unchanged
        assert plain(text, NAME_LIMIT).removesuffix("…").strip()[:60] in letters(output)


@hostile
def test_errors_without_a_traceback_have_no_commands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_error("failed", text)
    assert commands(capsys.readouterr().err) <= {"\t"}
    assert commands(first_line(RuntimeError(text))) == set()
    assert not servers_failed(RuntimeError(text))


def test_a_traceback_has_no_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError(HOSTILE["clear the screen"])

    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "RuntimeError: begin\\x1b[2J" in printed
    assert commands(printed) == set()


def test_the_command_line_relies_on_no_markup() -> None:
    """Its consoles print markup as plain text. Styles come from Text."""
    for path in Path(shared.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"\[(/|bold|dim|red|green|yellow|cyan)[^\[]*\]", node.value), (
                    f"{path}: {node.value}"
                )


# --- logs --------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Return the log file of a run."""
    root = logging.getLogger()
    handlers, level, httpx = root.handlers, root.level, logging.getLogger("httpx").level
    try:
        yield shared.log_to(tmp_path / "run.log", Settings(home=tmp_path))
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level
        logging.getLogger("httpx").setLevel(httpx)
        logging.captureWarnings(False)


def test_no_text_in_the_log_is_a_command_or_starts_a_record(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_LOGGING_ROOT_HANDLERS", "MLFLOW_CONFIGURE_LOGGING"):
        monkeypatch.setenv(name, os.environ[name])  # log_to sets it; monkeypatch restores it after the test
    for text in HOSTILE.values():
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("test").warning("client 1: %s", text, exc_info=True)
    written = log.read_text(encoding="utf-8")
    assert commands(written) == set()
    records = [line for line in written.split("\n") if line and not line.startswith("    ")]
    assert len(records) == len(HOSTILE)
    assert all(re.match(r"[0-9-]{10} [0-9:,]{12} WARNING test: client 1: ", line) for line in records)


@hostile
def test_the_log_on_prefects_page_has_no_commands(text: str) -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            lines.append(entry.getMessage())

    logger = logging.Logger("run")
    logger.addHandler(Lines())
    play(LogProgress(logger), text)
    assert commands("\n".join(lines)) == set()
    assert [line for line in lines if "dropped" in line] == [
        f"round 1 request_update: client 2 dropped (client-error): {plain(text)}"
    ]


# --- Prefect's page and MLflow -----------------------------------------------------------------------------


@hostile
def test_tables_on_prefects_page_have_no_markup_of_clients(text: str) -> None:
    """Prefect's page renders the cells of a table and its description as Markdown."""
    told = record(text)
    (_, dropped) = client_table(told)
    description = round_description(told)
    page = Html(MarkdownIt("commonmark", {"html": True}).enable("table").render(description))
    assert page.tags == ["p", "ul", "li"]
    assert page.text.strip().splitlines()[-1] == "client 2 dropped: " + plain(f"client-error: {told.dropped[0].reason}")
    assert commands(str(dropped) + description) == set()


def test_the_summary_on_prefects_page_has_no_text_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.views.prefect_page._curves", lambda history: [])  # drawing the picture takes seconds
    source = summary(
        "street", [record("<evil>")], Leavings({}, "models:/street@best", "http://127.0.0.1:5/#/x"), Views()
    )
    assert "evil" not in source
    assert "Model: models:/street&#64;best" in source


@hostile
def test_names_of_metrics_are_valid_for_mlflow(text: str) -> None:
    for name in round_figures(record(text).model_copy(update={"plan": None})).figures:
        assert re.fullmatch(r"[\w.\- :/]{1,250}", name)


# --- on record ---------------------------------------------------------------------------------------------


@hostile
def test_reasons_are_recorded_as_one_line(text: str) -> None:
    request = ResourceRequest(federation="f", spec=FederationSpec(), clients=("2",))
    failure = ClientFailure.model_construct(client="2", phase="wake_up", kind="client-error", reason=text)
    (found,) = checked(request, TurnReply.model_construct(failures=(failure,))).failures
    assert (found.client, found.reason) == ("2", plain(text, REASON_LIMIT))


@hostile
def test_stored_records_are_read_unchanged(text: str) -> None:
    document = record(text).model_dump(mode="json")
    assert parse(RoundRecord, document, source="round.json", newest=RECORD_VERSION).model_dump(mode="json") == document


@hostile
def test_errors_of_services_and_of_data_are_printable(text: str) -> None:
    """Their messages contain foreign text: a SlotLost a resident's failure, a DataError a file's content."""
    for error in (SlotLost(text), PoolUnusable(text), StoreUnavailable(text), DataError(text), SpecError(text)):
        assert str(error) == visible(text)


def test_the_layers_agree_on_what_is_printable() -> None:
    samples = (range(0x3100), range(0xD7F0, 0xE010), range(0xFE00, 0x10010), range(0xE0000, 0xE0200), (sys.maxunicode,))
    every = "".join(chr(number) for numbers in samples for number in numbers)
    assert str(SlotLost(every)) == visible(every)
    assert commands(visible(every)) == {"\t"}


def test_invalid_names_are_not_listed() -> None:
    keys = [f"p/{name}/spec.json" for name in ("street5", "<img src=x>", "a b", "\x1b[2J", "..", "_suites", "x" * 101)]
    assert federations("p", keys) == ["street5"]
    assert suite_runs("p", ["p/_suites/one/suite.json", "p/_suites/\x1b[2J/suite.json"]) == ["one"]
    assert accepted_suites("p", ["p/_references/one/accepted.json", "p/_references/a|b/accepted.json"]) == ["one"]


def test_errors_of_services_stay_readable() -> None:
    assert first_line(StoreUnavailable("bucket b at http://x does not answer\nmore")) == (
        "bucket b at http://x does not answer"
    )


def test_a_round_with_a_file_name_that_is_no_utf_8_can_be_stored(object_store: ObjectStore) -> None:
    name = b"camera-\xff.jpg".decode(errors="surrogateescape")  # as Python decodes it from the file system
    reply = TurnReply(failures=(failure_of("wake_up", "1", str(DataError(f"{name}: no image"))),))
    object_store.put_json("hostile/reasons.json", reply.model_dump(mode="json"))
    (stored,) = TurnReply.model_validate(object_store.get_json("hostile/reasons.json")).failures
    assert stored.reason == "camera-\\udcff.jpg: no image"
