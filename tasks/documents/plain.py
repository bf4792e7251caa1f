"""Plain scalars of YAML: values without quotes, whose type the reader decides.

YAML 1.1, which most tools read, and YAML 1.2 decide differently: ``010`` is 8 or 10, ``no`` is false or a text,
``1:30`` is 90 or a text. So a plain scalar is kept as written until the type of its field is known. In a field of text,
the value is this text. In other fields it is the value that both versions read; if they differ, that is an error.
"""

from __future__ import annotations

import re
from typing import Any

from tasks.documents.errors import DocumentError

# The numbers of JSON. PyYAML takes 1e-05 for text, as YAML 1.1 does. In JSON and YAML 1.2 it is a number; since a field
# of numbers takes no text, only the number can be meant.
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# YAML 1.2.2, section 10.3.2, the core schema.
_INT_12 = re.compile(r"[-+]?[0-9]+")
_OCTAL_12, _HEX_12 = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT_12 = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL_12 = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# YAML 1.1 (yaml.org/type) as in PyYAML, and y and n, which PyYAML reads as text and other tools as true and false.
_BOOL_11 = re.compile(r"y|Y|yes|Yes|YES|on|On|ON|n|N|no|No|NO|off|Off|OFF")
_TRUE_11 = re.compile(r"y|Y|yes|Yes|YES|on|On|ON")
_INT_11 = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_FLOAT_11 = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SIXTIES_11 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE_11 = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*)?")
_BOTH = {word: True for word in ("true", "True", "TRUE")} | {word: False for word in ("false", "False", "FALSE")}
_NULL = ("", "~", "null", "Null", "NULL")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]")


class Plain(str):
    """A plain scalar, as written in the document.

    where: the file and line, or the command's option, for messages.
    """

    where: str

    def __new__(cls, text: str, where: str = "") -> Plain:
        plain = super().__new__(cls, text)
        plain.where = where
        return plain

    @property
    def is_null(self) -> bool:
        """Return whether every version of YAML reads it as null."""
        return self in _NULL

    def value(self, field: str = "") -> Any:
        """Return the value that YAML 1.1 and 1.2 both read.

        Raises:
            DocumentError: they differ, or it is a number with a leading zero. The message names where it is written,
                the ``field`` and both readings.
        """
        place = ": ".join(part for part in (self.where, field) if part)
        try:
            return read_plain(str(self))
        except ValueError as error:
            raise DocumentError(f"{place}: {error}" if place else str(error)) from None


def read_plain(text: str) -> Any:
    """Return the plain scalar ``text`` as YAML 1.1 and 1.2 both read it.

    The value is None, a boolean, an integer, a float or a text.

    Raises:
        ValueError: they read it differently, or it is a number with a leading zero.
    """
    if text in _NULL:
        return None
    if text in _BOTH:
        return _BOTH[text]
    number = _JSON_NUMBER.fullmatch(text)
    if number is not None:
        return _int(text) if number[1] is number[2] is None else float(text)
    old, new = _read_11(text), _read_12(text)
    if _LEADING_ZERO.match(text) and not old == new == text:
        raise ValueError(
            f"{_short(text)} has a leading zero: it is {_described(old, text)} in YAML 1.1 and "
            f"{_described(new, text)} in YAML 1.2; expected quotes where text is meant, else the number without it"
        )
    if type(old) is not type(new) or (old != new and old == old):  # not-a-number differs from itself
        raise ValueError(
            f"{_short(text)} is {_described(old, text)} in YAML 1.1 and {_described(new, text)} in YAML 1.2; "
            "expected quotes where text is meant, else a value that both read alike"
        )
    return new


class _Date:
    """Stands for a date. No field takes one."""


class _Default:
    """Stands for ``=``, which in YAML 1.1 is a mapping's default value."""


def _read_11(text: str) -> Any:
    if _BOOL_11.fullmatch(text):
        return bool(_TRUE_11.fullmatch(text))
    bare = text.replace("_", "")
    if _INT_11.fullmatch(text):
        sign, digits = (-1 if bare[0] == "-" else 1), bare.lstrip("+-")
        if digits.startswith("0b"):
            return sign * _int(digits[2:] or "0", 2)
        if digits.startswith("0x"):
            return sign * _int(digits[2:] or "0", 16)
        return sign * _int(digits, 8 if digits[0] == "0" else 10)
    if _FLOAT_11.fullmatch(text):
        return _float(bare)
    if _SIXTIES_11.fullmatch(text):
        parts = bare.lstrip("+-").split(":")
        total: float = 0
        for part in parts:
            total = total * 60 + (float(part) if "." in part else _int(part))
        return -total if bare[0] == "-" else total
    if text == "=":
        return _Default()
    if _DATE_11.fullmatch(text):
        return _Date()
    return text


def _read_12(text: str) -> Any:
    if _INT_12.fullmatch(text):
        return _int(text)
    if _OCTAL_12.fullmatch(text):
        return _int(text[2:], 8)
    if _HEX_12.fullmatch(text):
        return _int(text[2:], 16)
    if _FLOAT_12.fullmatch(text) or _SPECIAL_12.fullmatch(text):
        return _float(text)
    return text


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _int(digits: str, base: int = 10) -> int:
    try:
        return int(digits, base)
    except ValueError:  # Python converts at most a few thousand digits
        raise ValueError(f"expected a number of fewer digits, found {len(digits)}") from None


def _described(value: Any, text: str) -> str:
    if isinstance(value, _Date):
        return "a date"
    if isinstance(value, _Default):
        return "a default"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a text" if value == text else _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
