"""Damage that disks do to stored files: flipped bits, files cut in half, and lost files that were never synced."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random


def flip_bit(path: Path, rng: Random) -> int:
    """Flip one bit of a file in place. Return the position of its byte."""
    path.chmod(path.stat().st_mode | 0o200)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = rng.randrange(size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    return at


def tear(path: Path) -> int:
    """Cut a file in half in place. Return how many bytes are left."""
    size = path.stat().st_size // 2
    os.truncate(path, size)
    return size


@dataclass(frozen=True)
class Lasting:
    """The contents and folder entries that a power loss at some time would keep.

    contents: (inode, time of its last change) of each file that was synced after this change.
    entries: (folder, name, inode) of each entry that was in its folder when the folder was synced.
    """

    contents: frozenset[tuple[int, int]]
    entries: frozenset[tuple[str, str, int]]


def all_lasting(root: Path) -> Lasting:
    """Return everything that is below ``root`` now, as after a sync of the whole disk."""
    contents, entries = set(), {(str(root.parent), root.name, root.stat().st_ino)}
    for path in root.rglob("*"):
        status = path.stat()
        entries.add((str(path.parent), path.name, status.st_ino))
        contents.add((status.st_ino, status.st_mtime_ns))
    return Lasting(frozenset(contents), frozenset(entries))


def synced_since(log: Path, before: Lasting) -> Lasting:
    """Return ``before`` with the syncs that the hook has written to ``log`` (:mod:`sitecustomize`)."""
    contents, entries = set(before.contents), set(before.entries)
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        line = json.loads(text)
        contents.add((line["inode"], line["time"]))
        entries |= {(line["path"], name, inode) for name, inode in line.get("entries", {}).items()}
    return Lasting(frozenset(contents), frozenset(entries))


def drop_unsynced(root: Path, lasting: Lasting) -> Sequence[str]:
    """Remove each file below ``root`` whose content, name or folder was not synced after its last change. Return them.

    Folders have names too: a new folder whose parent was not synced is removed with everything in it.
    """
    dropped: list[str] = []

    def look(folder: Path, stays: bool) -> None:
        for path in sorted(folder.iterdir()):
            status = path.stat()
            named = stays and (str(folder), path.name, status.st_ino) in lasting.entries
            if path.is_dir():
                look(path, named)
                if not named and not any(path.iterdir()):
                    path.rmdir()
            elif not named or (status.st_ino, status.st_mtime_ns) not in lasting.contents:
                path.unlink()
                dropped.append(str(path.relative_to(root)))

    look(root, True)
    return dropped
