"""Text that others wrote, made safe for messages, logs and records of this layer.

The functions for what is shown to people are in :mod:`tasks.plain_text`, a layer above, with the same escapes.
"""

from __future__ import annotations

import unicodedata

NAME_LIMIT = 80  # characters of a name in a message
REASON_LIMIT = 2000  # characters of a reason on record


def visible(text: str) -> str:
    """``text`` with each character that has no glyph as its escape, such as ``\\x1b``; lines and tabs stay."""
    return text if text.isprintable() else "".join(map(_shown, text))


def printable(text: object, limit: int = NAME_LIMIT) -> str:
    """``text`` on one line of at most ``limit`` characters, as :func:`visible` has it; what is cut ends in ``…``."""
    shown = visible(" ".join(str(text).split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def cut(text: str, limit: int = REASON_LIMIT) -> str:
    """``text`` with at most ``limit`` characters, its middle left out; what is no Unicode text becomes ``?``."""
    text = text.encode(errors="replace").decode()
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def _shown(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
