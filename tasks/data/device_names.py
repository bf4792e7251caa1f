"""Find the devices of images in the images' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tasks.data.entries import Entry, Faults, Parsed
from tasks.data.notes import named
from tasks.spec.clients import ByName
from tasks.spec.name_patterns import LONGEST_NAME


def take_devices_from_names(clients: ByName, parsed: Parsed, where: str, faults: Faults) -> None:
    """Set the device of ``parsed``'s images to the part of their names that the pattern's group matches.

    Each training image needs a device. Either each test image has a training image's device (a test set per device), or
    no test image has any (one global test set). ``where`` is the pattern as messages name it.
    """
    pattern = re.compile(clients.pattern)
    parsed.train = _with_devices(pattern, parsed.train)
    without = [entry.inside for entry in parsed.train if entry.device is None]
    if without:
        faults.add(
            f"{where}: expected a match in the name of each training image, found none in {len(without)} of "
            f"{len(parsed.train)}: {named(without)}"
        )
    if clients.test == "global":
        return
    tests = _with_devices(pattern, parsed.test)
    known = {entry.device for entry in parsed.train} - {None}
    others = [entry.inside for entry in tests if entry.device not in known]
    if not others:
        parsed.test = tests
    elif any(entry.device is not None for entry in tests):
        faults.add(
            f"{where}: expected a training image's device in the name of each test image, or a match in none, found "
            f"another device or no match in {len(others)} of {len(tests)}: {named(others)}; with "
            "data.clients.test=global all devices share the test images"
        )


def _with_devices(pattern: re.Pattern[str], entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with their devices: None where nothing matches, or where the name is too long to try."""
    found = [pattern.search(entry.inside) if len(entry.inside) <= LONGEST_NAME else None for entry in entries]
    return [replace(entry, device=match and match[1]) for entry, match in zip(entries, found, strict=True)]
