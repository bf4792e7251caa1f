"""Open pages in this machine's browser, and say whether there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import typer

SECONDS = 3.0  # xdg-open ends sooner if it fails; the browser itself may run in its place
# Without any of these there is no screen, and xdg-open would start a browser for terminals.
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME")


def open_pages(pages: Sequence[str]) -> bool:
    """Open the addresses in the browser. Return whether one was found.

    Not ``typer.launch`` on Linux: it lets xdg-open print to the terminal, and does not return whether it failed.
    """
    if not sys.platform.startswith("linux"):
        return all([typer.launch(page) == 0 for page in pages])
    opener = shutil.which("xdg-open")
    if opener is None or not any(os.environ.get(name) for name in _SCREENS):
        return False
    started = [
        subprocess.Popen(
            [opener, page],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the command, not the browser
        )
        for page in pages
    ]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and any(process.poll() is None for process in started):
        time.sleep(0.05)
    return all(process.poll() in (None, 0) for process in started)
