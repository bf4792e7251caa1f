"""Make text from others safe for the messages, logs and records of this layer.

The functions for output that people read are in :mod:`tasks.plain_text`, a layer above. They use the same escapes.
"""

from __future__ import annotations

import unicodedata

NAME_LIMIT = 80  # characters of a name in a message
REASON_LIMIT = 2000  # characters of a reason on record


def visible(text: str) -> str:
    """Return ``text`` with an escape, such as ``\\x1b``, for each character without a glyph. Newlines and tabs stay."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable(text: object, limit: int = NAME_LIMIT) -> str:
    """Return ``text`` escaped as by :func:`visible`, on one line of at most ``limit`` characters; ``…`` marks a cut."""
    shown = visible(" ".join(str(text).split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def cut(text: str, limit: int = REASON_LIMIT) -> str:
    """Return at most ``limit`` characters of ``text``, leaving out its middle. Lone surrogates become ``?``."""
    text = text.encode(errors="replace").decode()
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def _escaped(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def first_line(error: BaseException, limit: int = REASON_LIMIT) -> str:
    """Return the first line of an error's text as by :func:`printable`, or its type's name if it has no text."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], limit)
