"""Text of others, for terminals and messages."""

from __future__ import annotations


def printable(text: object, longest: int = 80) -> str:
    """``text`` on one line, without control characters and escape sequences, cut to ``longest`` characters."""
    safe = "".join(character if character.isprintable() else "?" for character in str(text))
    return safe if len(safe) <= longest else f"{safe[: longest - 1]}…"
