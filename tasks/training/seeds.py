"""Seeds: every random draw of an experiment comes from (seed, purpose, …), never from a shared generator."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for ``parts`` (purpose, round, client, …), the same on every machine and Python."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
