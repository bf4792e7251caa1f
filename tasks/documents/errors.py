"""What is wrong with the text of a YAML or JSON document, apart from what its fields may hold."""

from __future__ import annotations


class DocumentError(ValueError):
    """A document that is not read, because people and tools would read different things in it."""


class DuplicateKey(DocumentError):
    """One mapping has a key twice. ``key`` is its dotted path where that is known."""

    def __init__(self, key: str, first: int | None = None, second: int | None = None) -> None:
        where = "" if first is None else f" on line {first}" if first == second else f" on lines {first} and {second}"
        super().__init__(f"{key}: expected each key once, found it twice{where}")
        self.key = key
