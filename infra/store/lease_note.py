"""The note by which a process holds a federation, and what other processes conclude from it.

Another machine may have written a note, so neither its clock nor the types of its fields are trusted.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from infra.plain_text import printable

VERSION = 2
EXPIRY_SECONDS = 60.0
LONGEST_EXPIRY = 3600.0  # a note with a longer time, or with no number, gets EXPIRY_SECONDS
# A watcher that was stopped, or could not reach the store, saw nothing meanwhile. No more of such a gap is counted.
LONGEST_GAP = 5.0
HOME_LIMIT = 400  # the most characters of a home's path in messages
_NAME = re.compile(r"([0-9]{1,12})(?:-([0-9a-f]+))?\.json")


@dataclass(frozen=True)
class Holder:
    """A process that wants a federation.

    lock: file of :func:`infra.files.lock.run_lock` that it keeps locked while it holds the federation, or None.
    """

    home: str
    what: str
    nonce: str
    lock: Path | None = None
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)

    def document(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "what": self.what,
            "home": self.home,
            "host": self.host,
            "process": self.process,
            "process_started": process_started(self.process),
            "boot": boot(),
            "processes": process_names(),
            "lock": lock_identity(self.lock),
            "nonce": self.nonce,
        }


@dataclass(frozen=True)
class Note:
    """A holder's note in the store. ``fields`` is empty if the object is not a JSON mapping."""

    key: str
    generation: int
    body: bytes
    fields: dict[str, Any]

    @property
    def released(self) -> bool:
        return self.fields.get("released") is True

    @property
    def expiry(self) -> float:
        """Seconds without a change of the note after which its holder has lost the lease."""
        found = self.fields.get("expiry_seconds")
        known = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found <= LONGEST_EXPIRY
        return float(found) if known else EXPIRY_SECONDS  # type: ignore[arg-type]

    @property
    def holder(self) -> str:
        """Return text as ``fedbench run on host-b (process 17, home /home/b/.fedbench)``."""
        if not self.fields:
            return f"somebody whose note {self.key} cannot be read"
        what, host, process = (printable(self.fields.get(name, "?")) for name in ("what", "host", "process"))
        home = printable(self.fields.get("home", "?"), HOME_LIMIT)
        return f"{what} on {host} (process {process}, home {home})"

    def is_of_dead(self, own: Holder) -> bool:
        """Return whether its holder is known to be gone, without waiting.

        That is known only of a process of this machine since its last start: if ``own`` holds the lock that the holder
        had (the same file), or if the holder's process does not exist any more.
        """
        fields = self.fields
        if not fields or not fields.get("boot"):
            return False
        if fields["boot"] != boot():
            return False
        lock = lock_identity(own.lock)
        if lock is not None and fields.get("lock") == lock:
            return True
        process = fields.get("process")
        if not isinstance(process, int) or fields.get("processes") != process_names() or process <= 0:
            return False
        started, written = process_started(process), fields.get("process_started")
        return started is None or bool(started and written and started != written)


def key_of(folder: str, generation: int, nonce: str | None) -> str:
    return f"{folder}{generation:08d}{'' if nonce is None else f'-{nonce}'}.json"


def generation_of(folder: str, key: str) -> int | None:
    """Return the generation in a note's key; None if the key is not that of a note."""
    match = _NAME.fullmatch(key.removeprefix(folder))
    return int(match[1]) if match else None


def body_of(holder: Holder, generation: int, renewals: int, *, released: bool, conditional: bool) -> bytes:
    """Return the note as bytes, which differ from those of every other note and renewal."""
    document = {
        **holder.document(),
        "generation": generation,
        "renewals": renewals,
        "renewed": datetime.now(UTC).isoformat(),
        "expiry_seconds": EXPIRY_SECONDS,
        "conditional_writes": conditional,
        "released": released,
    }
    return json.dumps(document, indent=1, sort_keys=True).encode()


def read_note(key: str, generation: int, body: bytes) -> Note:
    """Parse a note. A torn note counts as one of an unknown holder, which is alive as long as the note changes."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return Note(key, generation, body, document if isinstance(document, dict) else {})


class Watch:
    """How long each note has not changed, by this process's own clock, which stops while the machine is suspended."""

    def __init__(self) -> None:
        self._first: dict[str, bytes] = {}
        self._now: dict[str, bytes] = {}
        self._unchanged: dict[str, float] = {}
        self._last: float | None = None

    def observe(self, notes: list[Note]) -> None:
        now = time.monotonic()
        gap = 0.0 if self._last is None else min(now - self._last, LONGEST_GAP)
        self._last = now
        for note in notes:
            self._first.setdefault(note.key, note.body)
            same = self._now.get(note.key) == note.body
            self._unchanged[note.key] = self._unchanged.get(note.key, 0.0) + gap if same else 0.0
            self._now[note.key] = note.body

    def expired(self, note: Note) -> bool:
        return self._unchanged.get(note.key, 0.0) >= note.expiry

    def is_alive(self, note: Note) -> bool:
        """Return whether the holder has renewed the note since this watch first saw it."""
        return self._first.get(note.key, note.body) != note.body


def boot() -> str:
    """Return an id of this kernel's last start, the same in all containers on it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_names() -> str:
    """Return an id of the namespace of this process's ids; each container may have its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def lock_identity(path: Path | None) -> str | None:
    """Return an id of the file, whatever its path is; None if there is no file."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else f"{found.st_dev}:{found.st_ino}"


def process_started(process: int) -> str | None:
    """Return when the process was started, as text to compare, which is empty if that is unknown.

    None: there is no such process, or only its exit status is left.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):  # it is another user's process, or the number is too large
        pass
    try:
        if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{process}/stat")
        if stat.exists():
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return str(psutil.Process(process).create_time())
    except (psutil.Error, OSError, OverflowError):
        return ""
