"""Text that others wrote, made safe to show: on a terminal, in logs, in Markdown, in plots and in spreadsheets.

Clients, data files and the store supply reasons, class names and file names. Each of them may hold terminal commands,
letters that turn the reading direction round, Markdown or HTML. Whoever shows such a text passes it through one of the
functions below. The text keeps its letters; what it could do becomes visible instead.
"""

from __future__ import annotations

import re
import unicodedata

REASON_LIMIT = 2000  # characters of a failure's reason, in records and where it is shown in full
LIMIT = 500  # of one text among others
NAME_LIMIT = 80  # of a class or another name in a table
LABEL_LIMIT = 40  # of a name in a plot
_ELLIPSIS = "…"

# What Markdown's dialects (CommonMark, GitHub's, and those of Prefect's and MLflow's pages) read as more than a letter:
# some letters anywhere; a backslash before a sign; an underscore at a word's end; parts of addresses and of emojis'
# names; some letters at the start of a line.
_MARKDOWN = re.compile(
    r"[`*\[\]<>&|~@$]"
    r"|\\(?![A-Za-z0-9 ])"
    r"|(?<![^\W_])_|_(?![^\W_])"
    r"|:(?=//|[\w+-]+:)"
    r"|(?<=www)\."
    r"|^[-+=#]",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^([0-9]+)([.)])(?= |$)")
_SPACES_OF_NAMES = re.compile(r"^ +| +$|(?<= ) +|[^\S ]+")
_NOT_IN_TARGETS = re.compile(r"[\s()<>\\\"'`\[\]|]")
# What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    """``text`` with every character that has no glyph as its escape, such as ``\\x1b``; lines and tabs stay.

    These are control and format characters (with those that turn the reading direction round), line and paragraph
    separators, surrogates, and code points that are no character, or one of a private font.
    """
    if text.isprintable():
        return text
    return "".join(letter if _shown(letter) else _escape(letter) for letter in text)


def plain(text: str, limit: int = LIMIT) -> str:
    """``text`` in one line of at most ``limit`` characters: white space becomes one space, the rest is visible.

    A text that is cut ends in ``…``.
    """
    # No more than needed of a text that may be as long as its sender wants.
    shown = visible(" ".join(text[: 2 * limit].split()))
    if len(shown) <= limit and len(text) <= 2 * limit:
        return shown
    return shown[: limit - 1] + _ELLIPSIS


def plain_name(text: str, limit: int = NAME_LIMIT) -> str:
    """The name ``text`` in one line of at most ``limit`` characters, so that names that differ look different.

    Line ends, tabs, and spaces that no reader sees (at an end, or after another one) are their escapes: ``car\\n``.
    """
    shown = _SPACES_OF_NAMES.sub(_escaped_spaces, text[: 2 * limit])
    return plain(shown + text[2 * limit :], limit)


def plain_lines(text: str, limit: int = REASON_LIMIT) -> str:
    """Each line of ``text`` as :func:`visible` has it, without tabs, cut at ``limit`` characters."""
    lines = (visible(line[:limit].expandtabs(4)) + _ELLIPSIS * (len(line) > limit) for line in text.split("\n"))
    return "\n".join(lines)


def markdown(text: str, limit: int = LIMIT) -> str:
    """:func:`plain` as Markdown that shows just this text: no link, picture, HTML, table cell, emphasis or list.

    Character references stand for what would have a meaning, because every dialect of Markdown takes them as letters.
    """
    shown = _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", plain(text, limit))
    return _LIST_NUMBER.sub(lambda found: f"{found[1]}&#{ord(found[2])};", shown)


def link_target(address: str) -> str:
    """``address`` as the target of a Markdown link, which it cannot end."""
    return _NOT_IN_TARGETS.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), visible(address))


def web_address(address: str) -> str | None:
    """``address`` if a browser opens it as a page of the web, else None: a script may stand in an address too."""
    return address if address.startswith(("http://", "https://")) else None


def plot_label(text: str, limit: int = LABEL_LIMIT) -> str:
    """:func:`plain_name` as matplotlib draws it, which takes what is between two ``$`` for a formula."""
    return plain_name(text, limit).replace("$", r"\$")


def spreadsheet_cell(text: str) -> str:
    """:func:`plain` as a cell that no spreadsheet takes for a formula: where it could be, an apostrophe comes first."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _shown(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _escaped_spaces(found: re.Match[str]) -> str:
    return "".join("\\x20" if letter == " " else _escape(letter) for letter in found[0])
