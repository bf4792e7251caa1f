"""Errors in the text of a YAML or JSON document, as opposed to the values of its fields."""

from __future__ import annotations


class DocumentError(ValueError):
    """A document is refused because it is no YAML, or because tools would read it differently.

    Its text names neither the file nor the place; :meth:`of` does.
    """

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column

    def of(self, source: object) -> str:
        """Return the message for a user: the file ``source``, the place in it if that is known, and the fault."""
        line = "" if self.line is None else f", line {self.line}"
        column = "" if self.column is None else f", column {self.column}"
        return f"{source}{line}{column}: {self}"


class DuplicateKey(DocumentError):
    """A mapping has a key twice. ``key`` is the key's dotted path if that is known."""

    def __init__(self, key: str, first: int | None = None, second: int | None = None) -> None:
        where = "" if first is None else f" on line {first}" if first == second else f" on lines {first} and {second}"
        super().__init__(f"{key}: expected each key once, found it twice{where}")
        self.key = key
