"""Texts of clients and of the store on the terminal, in the log, on Prefect's page and on record."""

from __future__ import annotations

import ast
import asyncio
import io
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile_texts import HOSTILE, Html, commands
from markdown_it import MarkdownIt
from rich.text import Text

from flows.artifacts import client_table, summary
from flows.cli import app as command_line
from flows.cli import shared
from flows.console import PlainConsole
from flows.coordinator import first_line, place_failed
from flows.model_evaluation import classes_table
from flows.progress import LineProgress, LiveProgress, LogProgress, Progress
from flows.round_tables import class_table
from infra.errors import SlotLost, StoreUnavailable
from infra.place import Leavings
from infra.residents.mailbox import MAILBOX_VERSION, Mailbox
from infra.residents.pool import Resident
from infra.residents.slots import ResidentSlots
from infra.settings import PoolSettings, Settings
from infra.store.layout import FederationLayout, federations
from infra.store.objects import ObjectStore
from infra.store.suite_layout import accepted_suites, suite_runs
from infra.tracking import round_metrics
from tasks.plain_text import LIMIT, NAME_LIMIT, REASON_LIMIT, plain
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.records import (
    ClientFailure,
    ClientInfo,
    Decision,
    Environment,
    EvaluationRecord,
    Metrics,
    RoundRecord,
    WeightRef,
)
from tasks.spec.turns import TurnReply, WakeUpRequest
from tasks.turns import with_plain_reasons

SHA = "a" * 64
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
# JSON, and so a record, has no half of a pair of surrogates.
recorded = pytest.mark.parametrize("text", [text for text in HOSTILE.values() if "\ud83d" not in text])


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(show: Callable[[PlainConsole], None]) -> str:
    """What ``show`` writes to a terminal with colours."""
    stream = Terminal()
    show(PlainConsole(file=stream, force_terminal=True, color_system="truecolor", width=200, height=50))
    return stream.getvalue()


def letters(output: str) -> str:
    """Without colours, and white space as one space."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).split())


def record(text: str) -> RoundRecord:
    """A round in which everything that a client or the store can word says ``text``."""
    per_class = {text: 0.5}
    return RoundRecord(
        federation="street",
        round=3,
        spec_digest=SHA,
        clients=(
            ClientInfo(
                client="1", train_size=1, test_size=1, test_digest=SHA, class_counts={text: 1}, host=text, device=text
            ),
        ),
        dropped=(ClientFailure(client="2", phase="wake_up", kind="client-error", reason=text),),
        model=WeightRef(key=text, sha256=SHA, bytes=1),
        evaluations=(
            EvaluationRecord(
                clients=("1",), test_digest=SHA, test_size=1, loss=1.0, map50_voc10=0.5, recall=0.5,
                per_class=per_class, objects={text: 2}, score_threshold=0.1, seconds=1.0,
            ),
        ),
        metrics=Metrics(map50_voc10=0.5, per_class=per_class, per_class_coco=per_class, per_class_recall=per_class),
        decision=Decision(stop=True, reason="max_rounds", best_round=0, best_map50_voc10=0.5),
        seconds={},
        environment=Environment(fedbench="0", python="3", torch=text, torchvision="0", cpu=text, threads=1),
        committed="2026-01-02T00:00:00Z",
    )  # fmt: skip


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
def test_progress_gives_the_terminal_no_more_commands_than_for_harmless_texts(
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
def test_the_console_prints_letters_alone(text: str, shown: Callable[[str], object]) -> None:
    def printed(words: str) -> str:
        return on_terminal(lambda console: console.print(shown(words), highlight=False))  # no colours for numbers

    output = printed(text)
    assert commands(output) <= commands(printed("harmless")) | {"\t"}
    if not commands(text):  # neither [bold] nor :bomb: has become something else
        assert plain(text, NAME_LIMIT).removesuffix("…").strip()[:60] in letters(output)


@hostile
def test_errors_without_a_traceback(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_error("failed", text)
    assert commands(capsys.readouterr().err) <= {"\t"}
    assert commands(first_line(RuntimeError(text))) == set()
    assert not place_failed(RuntimeError(text))


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
    """Its consoles print markup as it stands: a style comes from Text."""
    for path in Path(shared.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"\[(/|bold|dim|red|green|yellow|cyan)[^\[]*\]", node.value), (
                    f"{path}: {node.value}"
                )


# --- logs --------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The file that a run's log goes to."""
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


def test_no_text_in_the_log_is_a_command_or_a_record_of_its_own(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_LOGGING_ROOT_HANDLERS", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # what log_to has set is put back afterwards
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
def test_the_log_on_prefects_page(text: str) -> None:
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


@recorded
def test_the_tables_on_prefects_page(text: str) -> None:
    """Prefect's page takes texts in the cells of a table for Markdown."""
    (_, dropped) = client_table(record(text))
    page = Html(MarkdownIt("commonmark", {"html": True}).enable("table").render(str(dropped["dropped"])))
    assert page.tags == ["p"]
    assert page.text.strip() == plain(f"client-error: {text}")
    assert commands(str(dropped)) == set()


def test_the_summary_on_prefects_page_holds_no_text_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.artifacts._curves", lambda history: [])  # a picture, which takes seconds
    source = summary("street", [record("<evil>")], Leavings({}, "models:/street@best", "http://127.0.0.1:5/#/x"))
    assert "evil" not in source
    assert "Model: models:/street&#64;best" in source


@recorded
def test_mlflow_takes_the_names_of_metrics(text: str) -> None:
    document = record(text).model_dump(mode="json")
    for name in round_metrics({**document, "plan": None}):
        assert re.fullmatch(r"[\w.\- :/]{1,250}", name)


# --- on record ---------------------------------------------------------------------------------------------


@hostile
def test_reasons_go_on_record_as_one_line(text: str) -> None:
    failure = ClientFailure.model_construct(client="2", phase="wake_up", kind="client-error", reason=text)
    reply = with_plain_reasons(TurnReply.model_construct(failures=(failure,)))
    assert reply.failures[0].reason == plain(text, REASON_LIMIT)
    assert reply.failures[0].client == "2"


@recorded
def test_what_is_on_record_already_is_read_as_it_stands(text: str) -> None:
    document = record(text).model_dump(mode="json")
    assert parse(RoundRecord, document, source="round.json", newest=RECORD_VERSION).model_dump(mode="json") == document


@pytest.mark.parametrize("kind", ["lost", "error"])
def test_what_a_resident_writes_of_its_failure(kind: str, object_store: ObjectStore) -> None:
    layout = FederationLayout("hostile", kind)
    text = "x" * 5000 + HOSTILE["a line of its own"] + HOSTILE["clear the screen"]

    async def ask() -> None:
        slots = ResidentSlots(
            object_store,
            layout,
            PoolSettings(turns="silo"),
            ["1"],
            job_variables={},
            read_reply=TurnReply.model_validate,
            say=print,
            code_version="0",
            plain=lambda words: plain(words, REASON_LIMIT),
        )
        (pool,) = slots._pools.values()
        resident = Resident(1, pool, Mailbox(object_store, layout, "silo", "session", 1))
        pool.residents.append(resident)
        pool.offer(resident)
        resident.mailbox.put_answer(1, {"version": MAILBOX_VERSION, kind: text})
        await slots.run(lambda request: None, WakeUpRequest(federation=kind, spec=FederationSpec(), clients=("1",)))

    with pytest.raises(SlotLost if kind == "lost" else RuntimeError) as failed:
        asyncio.run(ask())
    message = str(failed.value)
    assert commands(message) == set()
    assert "\n" not in message
    assert len(message) < REASON_LIMIT + LIMIT
    assert message.startswith("resident 1 of pool silo: ")


def test_names_that_nobody_can_have_are_not_listed() -> None:
    keys = [f"p/{name}/spec.json" for name in ("street5", "<img src=x>", "a b", "\x1b[2J", "..", "_suites", "x" * 101)]
    assert federations("p", keys) == ["street5"]
    assert suite_runs("p", ["p/_suites/one/suite.json", "p/_suites/\x1b[2J/suite.json"]) == ["one"]
    assert accepted_suites("p", ["p/_references/one/accepted.json", "p/_references/a|b/accepted.json"]) == ["one"]


def test_the_errors_of_places_stay_readable() -> None:
    assert first_line(StoreUnavailable("bucket b at http://x does not answer\nmore")) == (
        "bucket b at http://x does not answer"
    )
