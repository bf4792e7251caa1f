"""Make text from others safe for terminals, logs, Markdown, plots and spreadsheets.

Clients, data files and the store supply reasons, class names and file names. Each of them may hold terminal commands,
characters that reverse the reading direction, Markdown or HTML. Code that prints such a text passes it through one of
the functions below. They keep ordinary letters and escape every character that would have an effect.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Most characters of a text:
REASON_LIMIT = 2000  # a failure's reason, in records and where it is printed in full
LIMIT = 500  # one text among others
NAME_LIMIT = 80  # a class or another name in a table
LABEL_LIMIT = 40  # a name in a plot
_ELLIPSIS = "…"

# Characters with a meaning in Markdown's dialects (CommonMark, GitHub's, and those of Prefect's and MLflow's pages):
# some anywhere; a backslash before a sign; an underscore at a word's end; parts of addresses and of emojis' names; some
# at the start of a line.
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
# Characters at which a formula starts in a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    """Return ``text`` with an escape such as ``\\x1b`` for every character without a glyph. Line ends and tabs stay.

    Escaped are control and format characters (also those that reverse the reading direction), line and paragraph
    separators, surrogates, and unassigned and private code points.
    """
    if text.isprintable():
        return text
    return "".join(letter if _shown(letter) else _escape(letter) for letter in text)


def plain(text: str, limit: int = LIMIT) -> str:
    """Return ``text`` in one line of at most ``limit`` characters, as :func:`visible`, white space as one space.

    A text that is cut ends in ``…``.
    """
    # The sender may send any length: look at no more than needed.
    shown = visible(" ".join(text[: 2 * limit].split()))
    if len(shown) <= limit and len(text) <= 2 * limit:
        return shown
    return shown[: limit - 1] + _ELLIPSIS


def plain_name(text: str, limit: int = NAME_LIMIT) -> str:
    """Return the name ``text`` in one line of at most ``limit`` characters, so that different names look different.

    Escapes such as ``car\\n`` stand for line ends, tabs, and spaces that readers overlook (at an end, or doubled).
    """
    shown = _SPACES_OF_NAMES.sub(_escaped_spaces, text[: 2 * limit])
    return plain(shown + text[2 * limit :], limit)


def plain_lines(text: str, limit: int = REASON_LIMIT) -> str:
    """Return ``text`` with each line as :func:`visible`, tabs as spaces, cut after ``limit`` characters."""
    lines = (visible(line[:limit].expandtabs(4)) + _ELLIPSIS * (len(line) > limit) for line in text.split("\n"))
    return "\n".join(lines)


def few_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first ``most`` names and the number of others, as ``1, 2, 5 and 4 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def markdown(text: str, limit: int = LIMIT) -> str:
    """Return :func:`plain` of ``text`` as Markdown for just this text: no link, picture, HTML, table cell or emphasis.

    Character references replace characters that have a meaning, because every dialect reads a reference as a letter.
    """
    shown = _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", plain(text, limit))
    return _LIST_NUMBER.sub(lambda found: f"{found[1]}&#{ord(found[2])};", shown)


def link_target(address: str) -> str:
    """Return ``address`` as the target of a Markdown link, with the characters escaped that would end the link."""
    return _NOT_IN_TARGETS.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), visible(address))


def web_address(address: str) -> str | None:
    """Return ``address`` if it is a web page's (http or https), else None: an address may also hold a script."""
    return address if address.startswith(("http://", "https://")) else None


def plot_label(text: str, limit: int = LABEL_LIMIT) -> str:
    """Return :func:`plain_name` of ``text`` for matplotlib, with ``$`` escaped, which would start a formula."""
    return plain_name(text, limit).replace("$", r"\$")


def spreadsheet_cell(text: str) -> str:
    """Return :func:`plain` of ``text`` as a spreadsheet's cell, with an apostrophe first if it could be a formula."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _shown(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _escaped_spaces(found: re.Match[str]) -> str:
    return "".join("\\x20" if letter == " " else _escape(letter) for letter in found[0])
