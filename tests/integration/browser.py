"""A real browser, headless Chromium. Its DevTools protocol sends mouse and keyboard events and reads the screen."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import connect
from websockets.sync.connection import Connection

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONTROL = 2  # DevTools' bit for the Ctrl key

# Defined in every page. `seen` returns where to click an element: its middle, or null if another element covers it.
_HELPERS = """
window.seen = e => {
  if (!e || e.disabled || !e.getClientRects().length) return null;
  e.scrollIntoView({block: 'center', behavior: 'instant'});
  const r = e.getBoundingClientRect(), at = [r.x + r.width / 2, r.y + r.height / 2];
  const top = document.elementFromPoint(...at);
  return top && (e.contains(top) || top.contains(e)) ? at : null;
};
window.found = (selector, text) =>
  [...document.querySelectorAll(selector)].find(e => e.innerText.includes(text) && e.getClientRects().length);
window.after = (place, nodes) =>
  nodes.find(n => !place || place.compareDocumentPosition(n) & Node.DOCUMENT_POSITION_FOLLOWING);
"""


class Browser:
    """A page. Every method waits until it can act, for at most ``patience`` seconds."""

    def __init__(self, socket: Connection, patience: float = 60.0) -> None:
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
        # Use the window's own page: a page in the background gets no frames.
        pages = [info for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page"]
        target = pages[0]["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_HELPERS)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def credentials(self, name: str, password: str) -> None:
        """Send basic authentication with every request."""
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.call("Network.enable")
        self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    # Looking.

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def address(self) -> str:
        return str(self.run("location.href"))

    def wait_for(self, script: str, what: str, seconds: float | None = None) -> Any:
        """Wait until the expression ``script`` is true. Return its value, or True for an element."""
        deadline = time.monotonic() + (seconds or self.patience)
        while True:
            with contextlib.suppress(AssertionError):  # the page is being replaced
                value = self.run(f"(value => value instanceof Node || value)({script})")
                if value:
                    return value
            assert time.monotonic() < deadline, f"{what}: did not appear; the page has: {self.text()[:600]}"
            time.sleep(0.2)

    def wait_for_text(self, text: str, seconds: float | None = None) -> None:
        self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(text)})", text, seconds)

    def cut_off(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.run("document.documentElement.scrollWidth - window.innerWidth"))

    def look(self, selector: str | None = None) -> Image.Image:
        """Return a picture of the screen, or of the part with the element."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        image = Image.open(io.BytesIO(png)).convert("RGB")
        if selector is None:
            return image
        script = f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
        return image.crop(self.run(script + "return [r.left, r.top, r.right, r.bottom]; })()"))

    def settled(self) -> Image.Image:
        """Return a picture of the screen after two equal ones in a row: nothing is loading or being drawn any more."""
        deadline = time.monotonic() + self.patience
        before = self.look()
        while True:
            time.sleep(0.5)
            now = self.look()
            if now.tobytes() == before.tobytes():
                return now
            assert time.monotonic() < deadline, f"the page does not come to rest: {self.text()[:600]}"
            before = now

    # Doing.

    def press_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def click(self, selector: str, text: str = "") -> None:
        """Click the first visible element that matches ``selector`` and contains ``text``."""
        found = f"found({json.dumps(selector)}, {json.dumps(text)})"
        self.press_at(*self.wait_for(f"seen({found})", f"{selector} with {text!r}"))

    def open_tab(self, text: str) -> None:
        """Click a tab until it is open. Content that loads meanwhile may move it away from the mouse."""
        deadline = time.monotonic() + self.patience
        opened = f"found('[role=tab]', {json.dumps(text)})?.getAttribute('aria-selected') === 'true'"
        while not self.run(opened):
            assert time.monotonic() < deadline, f"the tab {text} does not open"
            self.click("[role=tab]", text)
            time.sleep(0.5)

    def move_away(self) -> None:
        """Move the mouse into a corner, where it changes nothing."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)

    def key(self, key: str, text: str = "", modifiers: int = 0, **more: Any) -> None:
        down = {"type": "keyDown", "key": key, "modifiers": modifiers, **more}
        self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def write(self, text: str) -> None:
        """Replace the text of the field with the focus, key by key."""
        self.key("a", modifiers=CONTROL, commands=["selectAll"])
        for character in text:
            self.key(character, text=character)

    def type_into(self, selector: str, text: str) -> None:
        self.click(selector)
        self.write(text)

    def label(self, text: str, section: str | None = None) -> str:
        """Return a script for the field labelled ``text``, the first one below the heading ``section``."""
        headings = (
            f"[...document.querySelectorAll('label, span, p')].filter(e => e.innerText === {json.dumps(section)})"
        )
        place = "null" if section is None else f"after(null, {headings})"
        fields = f"[...document.querySelectorAll('label')].filter(e => e.innerText === {json.dumps(text)} && e.control)"
        return f"(after({place}, {fields}) || {{}}).control"

    def fill(self, text: str, value: str, section: str | None = None) -> None:
        """Write ``value`` into the field labelled ``text``."""
        field = self.label(text, section)
        self.press_at(*self.wait_for(f"seen({field})", f"the field {text!r}"))
        self.write(value)
        held = self.run(f"{field}.value")
        assert held == value, f"{text}: {held!r} after writing {value!r}"

    def choose(self, text: str, option: str, section: str | None = None) -> None:
        """Open the list labelled ``text`` and click ``option``."""
        field = self.label(text, section)
        self.press_at(*self.wait_for(f"seen({field})", f"the list {text!r}"))
        self.click("[role=option]", option)
        self.wait_for(f"{field}.innerText.includes({json.dumps(option)})", f"{text}: {option}")


@contextlib.contextmanager
def browser(profile: Path, width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """Run Chromium with an empty ``profile``. Yield a page of it. It cannot reach other machines."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
    command += ["--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    # Have a mouse: without one, Plotly lays its buttons over every plot.
    command += [
        "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
    ]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
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
