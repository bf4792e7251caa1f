"""Hostile texts that a client, a data file or the store may hold, and helpers for tests that display them."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest

# Keyed by what they attempt. Each contains "begin" and ends with "end", by which a test finds it.
HOSTILE = {
    "clear the screen": "begin\x1b[2J\x1b[1;1H\x1b[7;35mend",
    "link of the terminal": "begin\x1b]8;;https://evil.example\x07click\x1b]8;;\x07end",
    "write the clipboard": "begin\x1b]52;c;cm0gLXJmIC8=\x1b\\end",
    "C1 controls": "begin\x9b2J\x9d0;title\x9cend",
    "turn the direction": "begin\u202egpj.exe\u2066\u200fend",
    "overwrite the line": "begin\rround 9 of 9 committed\x08\x08\x7fend",
    "a line of its own": "begin\n2026-01-01 00:00:00,000 ERROR root: forged\n\nfailed: forged\u2028\x85forgedend",
    "rich's markup": "begin[bold red]error:[/] [link=https://evil.example]x[/link] [/nothing] :bomb:end",
    "a link": "begin[log in](https://evil.example)end",
    "bare addresses": "begin https://evil.example www.evil.example mail@evil.example <https://evil.example> end",
    "a picture": "begin![x](https://evil.example/x.png)end",
    "HTML": "begin<img src=x onerror=alert(1)><script>alert(1)</script><a href='https://evil.example'>x</a>&lt;b&gt;end",
    "an attribute": 'begin" onmouseover="alert(1)" x=\'end',
    "table cells": "begin | more | cells | \\| end",
    "code": "begin`code` ``` ~~~ end",
    "emphasis": "begin **strong** __strong__ *em* _em_ ~~gone~~ end",
    "a heading": "# begin end",
    "a list": "- begin end",
    "a numbered list": "1. begin end",
    "a backslash at the end": "begin end\\",
    "a formula": "begin $\\foo$ $\\frac{1}$ $x$ end",
    "LaTeX": "begin \\input{/etc/passwd} % { } & # ^ ~ end",
    "a template": "begin {{ 7 * 7 }} {% raw %} end",
    "null and surrogates": "begin\x00\ud83d\udc00\ufffe\U000e0041end",
    "letters that are wanted": "begin straße 交通灯 é end",
    "too long": "begin" + "x" * 100_000 + "end",
}

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())

_COMMAND = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)


def commands(output: str) -> set[str]:
    """Return what a terminal would execute instead of printing: escape sequences and other control characters."""
    rest = _COMMAND.sub("", output)
    return set(_COMMAND.findall(output)) | {letter for letter in rest if unicodedata.category(letter)[0] == "C"} - {
        "\n"
    }


class Html(HTMLParser):
    """A parsed HTML document: its tags and attributes, in order, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data
