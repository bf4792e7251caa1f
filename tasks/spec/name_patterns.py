"""Check a regular expression that finds an image's device in its name.

A specification may come from another organisation, and Python's ``re`` has no limit of time: ``(a+)+b`` takes longer
than anybody waits, even for a short name. So a pattern has few repetitions of unknown length, few choices and no group
that repeats, and the names that it is matched against are short. The slowest pattern that is left takes seconds for an
image whose name was made for it.
"""

from __future__ import annotations

import re

LONGEST_PATTERN = 200
LONGEST_NAME = 200
# Points: a repetition of unknown length (*, +, {2,}) has three, a choice (? or |) has one.
MOST_POINTS = 9

_ESCAPE = re.compile(r"\\.", re.DOTALL)
# An escaped character, or a class of characters such as [^\]_].
_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
# Two things that hide a repetition from the search below. In a comment a bracket opens no class of characters, and the
# flag x allows blanks before a repetition.
_COMMENT = re.compile(r"\(\?#")
_VERBOSE = re.compile(r"\(\?[A-Za-z-]*x")
_EXACT_COUNT = re.compile(r"\{\d+\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{)")
_REPEAT = re.compile(r"(?:[*+]|\{[\d,]+\})[?+]?")
_CHOICE = re.compile(r"[?|]")


def pattern_fault(pattern: str) -> str | None:
    """Return what was expected of ``pattern`` and what was found, or None if nothing is wrong with it."""
    if len(pattern) > LONGEST_PATTERN:
        return f"expected at most {LONGEST_PATTERN} characters, found {len(pattern)}"
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"expected a regular expression of Python, found {pattern!r}: {error}"
    if compiled.groups != 1:
        return f"expected exactly one group, (…), whose text is the device, found {compiled.groups} in {pattern!r}"
    without_escapes = _ESCAPE.sub("_", pattern)
    if _VERBOSE.search(without_escapes):
        return f"expected a regular expression without the flag x, found {pattern!r}"
    if _COMMENT.search(without_escapes):
        return f"expected a regular expression without a comment, (?#…), found {pattern!r}"
    return _cost_fault(pattern)


def _cost_fault(pattern: str) -> str | None:
    plain = _ONE_CHARACTER.sub("x", pattern).replace("(?", "(")
    if _REPEATED_GROUP.search(plain):
        return f"expected no group that repeats, because matching may never end, found {pattern!r}"
    without_repeats, repeats = _REPEAT.subn("", _EXACT_COUNT.sub("", plain))
    if 3 * repeats + len(_CHOICE.findall(without_repeats)) > MOST_POINTS:
        return (
            "expected at most three of *, + and {…}, and for each one fewer three of ? and |, because matching may "
            f"never end, found {pattern!r}"
        )
    return None
