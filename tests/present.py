"""Unwrap an optional value in a test."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """Return ``value``. Fail if it is None."""
    assert value is not None
    return value
