"""The files that open both pages logged in."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from infra.servers.credentials import StackKeys
from infra.servers.login_page import (
    credentials_lines,
    how_to_log_in,
    stays_here,
    what_pages_ask,
    write_login_page,
    write_openers,
)

KEYS = StackKeys(prefect_password="p-secret", mlflow_password="m-secret", mlflow_secret_key="s-secret")
PREFECT = "http://127.0.0.1:4200/v2/runs/flow-run/1"
MLFLOW = "http://127.0.0.1:5000/#/experiments/1/runs/2?workflowType=machine_learning"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "services").mkdir()
    return tmp_path


def links(page: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'href="([^"]*)"', page)]


def test_the_file_opens_each_page_and_has_what_each_asks_for(home: Path) -> None:
    path = write_login_page(home, "up", KEYS, PREFECT, MLFLOW)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert 'action="http://127.0.0.1:4200/fedbench-login"' in text
    assert 'name="to" value="/v2/runs/flow-run/1"' in text
    (link,) = links(text)
    parts = urlsplit(link)
    assert (parts.username, parts.password, parts.port) == ("fedbench", "m-secret", 5000)
    assert parts.path == "/fedbench-login"
    assert parse_qs(parts.query) == {"to": [MLFLOW.removeprefix("http://127.0.0.1:5000")]}
    assert text.count("fedbench:p-secret</code>") == 1
    assert "user <code>fedbench</code> and the password <code>m-secret</code>" in text
    assert text.count("Open both") == 1
    # Nobody who looks at the screen reads a password: both are shown on a click.
    seen = re.sub(r"<details>.*?</details>|<script>.*?</script>", "", text)
    assert not re.search(r"<code>[^<]*secret", seen)
    assert str(home) in seen


def test_a_server_of_others_is_not_on_the_file(home: Path) -> None:
    alone = write_login_page(home, "run", KEYS, PREFECT, None).read_text()
    assert "m-secret" not in alone
    assert "Open both" not in alone
    assert "p-secret" not in write_login_page(home, "ui", KEYS, None, MLFLOW).read_text()


def test_openers_log_in_without_a_click(home: Path) -> None:
    both = write_openers(home, KEYS, PREFECT, MLFLOW)
    assert [path.stat().st_mode & 0o777 for path in both] == [0o600, 0o600]
    prefect, mlflow = (path.read_text() for path in both)
    assert "document.forms[0].submit()" in prefect
    assert "m-secret" not in prefect
    assert "location.replace(" in mlflow
    assert "p-secret" not in mlflow
    assert write_openers(home, KEYS, None, MLFLOW) == both[1:]


def test_lines_for_the_terminal_have_no_secret_unless_asked_for(home: Path) -> None:
    printed = how_to_log_in(home / "login-up.html") + what_pages_ask("fedbench ui --show-login")
    assert "secret" not in printed
    asked = credentials_lines(KEYS)
    assert asked == ["Prefect asks for: fedbench:p-secret", "MLflow asks for: user fedbench, password m-secret"]


@pytest.mark.parametrize("address", ["//evil.example", "/\\evil.example", "http://evil.example", "", "/a\r\nb: c"])
def test_a_login_leads_to_its_own_server_only(address: str) -> None:
    assert stays_here(address) == "/"
    assert (
        stays_here(MLFLOW.removeprefix("http://127.0.0.1:5000"))
        == "/#/experiments/1/runs/2?workflowType=machine_learning"
    )
