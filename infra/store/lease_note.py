"""The note by which a process says that it has a federation, and what another process can tell from it.

A note was written by another machine: no clock of it is trusted, nor that its fields are what they should be.
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
LONGEST_EXPIRY = 3600.0  # of a note that says more, or nothing that is a number
# A watcher that was stopped, or whose store was away, saw nothing meanwhile: so much of a gap counts at most.
LONGEST_GAP = 5.0
HOME_LIMIT = 400  # characters of a home's path, as it is shown
_NAME = re.compile(r"([0-9]{1,12})(?:-([0-9a-f]+))?\.json")


@dataclass(frozen=True)
class Holder:
    """A process that wants a federation.

    lock: file of :func:`infra.files.lock.run_lock` that it holds while it has the federation, if it holds one.
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
    """A holder's note in the store. ``fields`` is empty when what is there is no note."""

    key: str
    generation: int
    body: bytes
    fields: dict[str, Any]

    @property
    def released(self) -> bool:
        return self.fields.get("released") is True

    @property
    def expiry(self) -> float:
        """Seconds without a change after which its holder has lost it."""
        found = self.fields.get("expiry_seconds")
        known = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found <= LONGEST_EXPIRY
        return float(found) if known else EXPIRY_SECONDS  # type: ignore[arg-type]

    def told(self) -> str:
        """``fedbench run on host-b (process 17, home /home/b/.fedbench)``."""
        if not self.fields:
            return f"somebody whose note {self.key} cannot be read"
        what, host, process = (printable(self.fields.get(name, "?")) for name in ("what", "host", "process"))
        home = printable(self.fields.get("home", "?"), HOME_LIMIT)
        return f"{what} on {host} (process {process}, home {home})"

    def is_of_dead(self, own: Holder) -> bool:
        """Whether its holder is known to be gone, without waiting: it ran on this machine, since this start of it.

        Either its home's lock is ours now, the same file on the same kernel; or there is no such process any more.
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
    """Generation in a note's key; None: the key is not that of a note."""
    match = _NAME.fullmatch(key.removeprefix(folder))
    return int(match[1]) if match else None


def body_of(holder: Holder, generation: int, renewals: int, *, released: bool, conditional: bool) -> bytes:
    """The note as bytes; no two are the same."""
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
    """A note that is torn is one too: whose it is cannot be told, and it is judged by whether it changes."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return Note(key, generation, body, document if isinstance(document, dict) else {})


class Watch:
    """How long notes have been seen unchanged, by this process's own clock, which stands while it is suspended."""

    def __init__(self) -> None:
        self._first: dict[str, bytes] = {}
        self._now: dict[str, bytes] = {}
        self._unchanged: dict[str, float] = {}
        self._last: float | None = None

    def saw(self, notes: list[Note]) -> None:
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

    def lives(self, note: Note) -> bool:
        """Whether its holder has renewed it while this watched."""
        return self._first.get(note.key, note.body) != note.body


def boot() -> str:
    """Which start of which kernel this is; the same in all containers on it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_names() -> str:
    """Within what process ids have a meaning: containers have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def lock_identity(path: Path | None) -> str | None:
    """The file itself, whatever its path is called here; None without one."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else f"{found.st_dev}:{found.st_ino}"


def process_started(process: int) -> str | None:
    """When it was started, as text to compare; empty: it cannot be told. None: there is no such process, or it has
    ended and is only waited for.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):  # another user's; it is there, or no number of a process
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
