"""Read JSON that others than the coordinator wrote, and refuse values that Python reads but cannot write or use."""

from __future__ import annotations

from typing import Any

from tasks.documents.json_text import read_json

DEEPEST = 32  # lists and mappings inside each other


def read_foreign(body: bytes) -> Any:
    """Return the document in ``body``.

    It must be UTF-8 with no NaN, each key once, whole numbers in 64 bits, no lone surrogates in its texts, and at most
    :data:`DEEPEST` lists and mappings inside each other.

    Raises:
        ValueError: it is not such a document; the message names what was expected.
    """
    try:
        document = read_json(body.decode(), parse_constant=_no_number, parse_int=_in_64_bits)
    except RecursionError:
        raise ValueError(f"expected at most {DEEPEST} lists and mappings inside each other, found more") from None
    _check(document, may_have_surrogates=b"\\u" in body)
    return document


def _check(document: Any, *, may_have_surrogates: bool) -> None:
    level = [[document]]  # the contents of all lists and mappings at one depth
    for _ in range(DEEPEST + 1):
        below = []
        for items in level:
            for item in items:
                if isinstance(item, list):
                    below.append(item)
                elif isinstance(item, dict):
                    below.append([*item.values(), *item.keys()])
                elif may_have_surrogates and isinstance(item, str):
                    item.encode()  # UnicodeEncodeError is a ValueError
        if not below:
            return
        level = below
    raise ValueError(f"expected at most {DEEPEST} lists and mappings inside each other, found more")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _in_64_bits(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) >= 2**64:
        raise ValueError(f"expected a whole number in 64 bits, found {digits[:40]}")
    return int(digits)
