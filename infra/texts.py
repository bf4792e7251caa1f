"""Text that others wrote, as records and messages can hold it."""

from __future__ import annotations

LONGEST = 2000  # characters


def cut(text: str) -> str:
    """``text`` with at most :data:`LONGEST` characters, its middle left out; what is no Unicode text becomes ``?``."""
    text = text.encode(errors="replace").decode()
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 5) // 2
    return f"{text[:half]} … {text[-half:]}"
