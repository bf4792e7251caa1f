"""A real browser, Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. Everything waits, at most ``patience`` seconds."""

    def __init__(self, socket: ClientConnection, patience: float = 60.0) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.patience = patience

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        deadline = time.monotonic() + self.patience
        while True:
            answer = json.loads(self._socket.recv(timeout=max(deadline - time.monotonic(), 0.1)))
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def open_page(self, width: int, height: int) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def on_every_page(self, script: str) -> None:
        """Run ``script`` before anything else of each page that is opened from now on."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def credentials(self, name: str, password: str) -> None:
        """Send basic authentication with every request."""
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.call("Network.enable")
        self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_for(self, script: str, what: str, seconds: float | None = None) -> Any:
        """Until the expression is true; its value."""
        deadline = time.monotonic() + (seconds or self.patience)
        while True:
            with contextlib.suppress(AssertionError):  # the page is being replaced
                value = self.run(script)
                if value:
                    return value
            assert time.monotonic() < deadline, f"{what}: waited in vain; the page says: {self.text()[-3000:]}"
            time.sleep(0.2)

    def wait_for_text(self, text: str, seconds: float | None = None) -> None:
        self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(text)})", text, seconds)

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that matches and is seen, with ``text`` in it, as a mouse does."""
        find = (
            f"(() => {{ const e = [...document.querySelectorAll({json.dumps(selector)})].find(e => "
            f"e.innerText.includes({json.dumps(text)}) && e.getClientRects().length && !e.disabled); "
            "if (!e) return null; e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        x, y = self.wait_for(find, f"{selector} with {text!r}")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type_into(self, selector: str, text: str) -> None:
        """Replace what a text field holds."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextlib.contextmanager
def browser(profile: Path, width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """Chromium with an empty ``profile``, and a page in it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--remote-debugging-port=0", "--no-first-run", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        note, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not note.exists() or len(note.read_text().split()) < 2:
            assert process.poll() is None, "Chromium does not start"
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        port, path = note.read_text().split()[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as socket:
            page = Browser(socket)
            page.open_page(width, height)
            yield page
    finally:
        process.kill()
        process.wait()
