"""Read numbers that users' files hold as text. Every tool that reads such files must read the same number.

Python's own ``float`` and ``int`` take more: ``1_0`` is 10, ``inf`` and ``nan`` are numbers, and so are digits of other
scripts. Other tools refuse these, or stop reading at the underscore.
"""

from __future__ import annotations

import math
import re

_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def read_decimal(text: str) -> float:
    """Return the decimal number in ``text``, with or without a fraction and an exponent.

    Raises:
        ValueError: it is anything else, has blanks around it, or is too large for a float.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("expected a decimal number")
    value = float(text)
    if math.isinf(value):
        raise ValueError("expected a number of at most 1.8e308")
    return value


def is_digits(text: str) -> bool:
    """Return whether ``text`` consists of the digits 0 to 9 alone."""
    return text.isascii() and text.isdecimal()
