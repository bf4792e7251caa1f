"""``fedbench deploy --notify``: a failed suite's message reaches a webhook through a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client

from infra.orchestrator.automations import REGRESSIONS
from tests.integration.homes import FEDBENCH
from tests.integration.workers import client_variables, prefect_server
from tests.waiting import eventually

pytestmark = pytest.mark.integration

MESSAGE = "five federated: map50_voc10 0.531 → 0.412, limit 0.482 (3 seeds before, 3 now)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Serve a webhook. Yield its address, and the list of messages that it receives."""
    found: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing on the terminal."""

    webhook = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=webhook.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{webhook.server_port}/", found
    webhook.shutdown()
    thread.join()
    webhook.server_close()


def deploy(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBENCH_", "PREFECT_"))}
    environment = kept | {
        **client_variables(),
        "PREFECT_HOME": str(home / "client"),
        "FEDBENCH_HOME": str(home / "home"),
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [FEDBENCH, "deploy", *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )


def automations() -> list[str]:
    async def ask() -> list[str]:
        async with get_client() as client:
            return [str(item.id) for item in await client.read_automations_by_name(REGRESSIONS)]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("team", "--notify team: expected TYPE/NAME of a block, as in slack-webhook/team"),
        ("custom-webhook/nobody", "--notify custom-webhook/nobody: no such block on the Prefect server"),
        ("secret/word", "--notify secret/word: expected a notification block"),
    ],
)
def test_a_block_that_cannot_notify_is_refused_before_any_change(
    server: str, tmp_path: Path, block: str, says: str
) -> None:
    Secret(value="x").save("word", overwrite=True)
    done = deploy(tmp_path, "--notify", block)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert automations() == []


@pytest.mark.slow
def test_a_failed_suites_message_arrives_and_other_failures_send_none(
    server: str, tmp_path: Path, received: tuple[str, list[dict[str, str]]]
) -> None:
    address, sent = received
    CustomWebhookNotificationBlock(
        name="ci", url=address, json_data={"title": "{{subject}}", "text": "{{body}}"}
    ).save("ci", overwrite=True)  # fmt: skip
    for word in ("made", "there already"):
        done = deploy(tmp_path, "--notify", "custom-webhook/ci")
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if REGRESSIONS in line)
        assert word in line
    assert len(automations()) == 1
    assert deploy(tmp_path).returncode == 0
    assert len(automations()) == 1  # a deploy without --notify leaves it as it is

    @flow(name="suite", flow_run_name="night")
    def suite() -> None:
        raise RuntimeError(MESSAGE)

    @flow(name="another", flow_run_name="night")
    def another() -> None:
        raise RuntimeError("not a suite's")

    for run in (another, suite):
        with pytest.raises(RuntimeError):
            run()
    assert eventually(lambda: bool(sent), 60)
    assert [item["title"] for item in sent] == ["fedbench: suite night Failed"]
    assert MESSAGE in sent[0]["text"]
    assert UUID(sent[0]["text"].rpartition(" ")[2])
