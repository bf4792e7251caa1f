"""Pages open in the browser without a word on the terminal, and a machine without a browser is noticed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from flows.commands.browser import open_pages
from flows.commands.pages import no_browser
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="xdg-open is Linux's")
PAGES = ["http://127.0.0.1:4200/", "file:///home/me/login.html"]


def opener(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an ``xdg-open`` with the script first on the path, on a machine with a screen."""
    path = folder / "xdg-open"
    path.write_text(f"#!/bin/sh\necho noise\necho noise >&2\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":0")


@pytest.mark.parametrize(("code", "opened"), [(0, True), (3, False), (4, False)])
def test_it_opens_every_page_silently_and_notices_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int, opened: bool
) -> None:
    opener(tmp_path, f'echo "$1" >> "{tmp_path}/pages"; exit {code}', monkeypatch)
    assert open_pages(PAGES) is opened
    assert sorted((tmp_path / "pages").read_text().split()) == sorted(PAGES)
    assert capfd.readouterr() == ("", "")


def test_a_browser_that_runs_on_in_place_of_its_opener_has_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener(
        tmp_path,
        f'read line; echo $$ > "{tmp_path}/new"; mv "{tmp_path}/new" "{tmp_path}/pid"; exec sleep 60',
        monkeypatch,
    )
    monkeypatch.setattr("flows.commands.browser.SECONDS", 0.1)
    assert open_pages(PAGES[:1])
    assert eventually((tmp_path / "pid").exists)  # it does not wait for the terminal's input
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_without_a_screen_or_an_opener_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener(tmp_path, f'touch "{tmp_path}/started"', monkeypatch)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert not open_pages(PAGES)
    assert not (tmp_path / "started").exists()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert not open_pages(PAGES)
    assert no_browser({"Prefect": PAGES[0], "MLflow": PAGES[1]}).endswith(f"open in one: {PAGES[0]} · {PAGES[1]}")
