"""A federation's lease: it has one holder at a time, which is decided in the store that holds its rounds.

A holder has a note below the federation's ``lease/`` and renews it. The note's generation is higher than all before. A
process that wants the federation reads the note of the highest generation. That note no longer counts if it was given
back, if its holder is known to be dead (:mod:`infra.store.lease_note`), or if it has not changed for the time that it
names, by the reader's own clock. Then the process writes a note of the next generation and lists the folder again. It
is the holder only if it finds no note that it has not seen before. If two processes write, the second one finds the
first one's note. No process overwrites another's note, so the outcome does not depend on delays. In a store that
honours conditional writes, each generation is a single object, and the store itself refuses the second write.

An old holder that was stopped or cut off finds the newer generation, because it looks before each commit, and before
each other write if its last look was a while ago. It ends without having written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from infra.errors import InfraError, RunLocked, StoreCorrupt
from infra.store.conditional import known_conditions
from infra.store.lease_note import EXPIRY_SECONDS, Holder, Note, Watch, body_of, generation_of, key_of, read_note
from infra.store.objects import ObjectStore
from infra.store.sealed import seal, unseal

log = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
# A holder whose last look is older looks again before it writes. Others wait far longer, until the note expires.
UNSURE_SECONDS = 2 * RENEW_SECONDS
LOOK_SECONDS = 0.5
# Pause before listing again, because listings may lag. Only for stores that do not refuse a second note themselves.
SETTLE_SECONDS = 0.2
OUTAGE_SECONDS = 5.0  # the most that giving back waits for a store that does not answer


class StoreLease:
    """The lease of a federation or suite run. As a context manager it only gives the lease back, at the end.

    folder: prefix of its notes. name: its name, for messages. what: the command that wants it. home: this process's.
    lock: file that this process keeps locked while it holds the lease (:func:`infra.files.lock.run_lock`), or None. A
        process that can lock the same file need not wait for this one.
    say: called with a line when there is a wait.
    """

    def __init__(
        self,
        objects: ObjectStore,
        folder: str,
        name: str,
        *,
        what: str,
        home: Path,
        lock: Path | None = None,
        prefix: str = "",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._folder, self._prefix = folder, prefix
        self.use(objects)
        self._name, self._say = name, say or log.info
        self._holder = Holder(str(home.absolute()), what, secrets.token_hex(8), lock)
        self._watch = Watch()
        self._writing = threading.RLock()
        self._done = threading.Event()
        self._renewing: threading.Thread | None = None
        self._generation = 0
        self._renewals = 0
        self._conditional = False
        self._key: str | None = None
        self._tag: str | None = None
        self._looked = 0.0
        self._lost: str | None = None
        self._when_lost: Callable[[], None] | None = None

    @property
    def held(self) -> bool:
        return self._key is not None and self._lost is None

    @property
    def generation(self) -> int:
        """The generation of this holder, higher than all before; 0 before the lease is held."""
        return self._generation

    @property
    def objects(self) -> ObjectStore:
        """The store itself, which does not check the lease."""
        return self._objects

    def use(self, objects: ObjectStore) -> None:
        """Use ``objects`` from now on: the same store, started again at another address."""
        self._objects = objects
        # For renewing and giving back, which must not wait long for a store that does not answer.
        self._impatient = objects.with_patience(min(OUTAGE_SECONDS, objects.outage_seconds))

    # Taking it.

    def acquire(self) -> StoreLease:
        """Take the lease. Wait for a holder that may be dead, as long as its note says.

        Raises:
            RunLocked: another holder has it and is alive, or :meth:`abandon` was called.
            StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
        """
        if self._key is not None:
            raise RuntimeError(f"{self._name}: this object has already held the lease")
        self._conditional = known_conditions(self._objects, self._prefix)
        log.info("%s: the store honours conditional writes: %s", self._name, "yes" if self._conditional else "no")
        while True:
            notes = self._wait_until_free()
            top = max((note.generation for note in notes), default=0)
            if self._claim(top + 1, {note.key for note in notes}):
                self._begin()
                return self
            self._done.wait(random.uniform(0.2, 1.0) * LOOK_SECONDS)

    def holder(self) -> str | None:
        """Return who holds the lease, as far as that is known without waiting; None if nobody does.

        A holder on another machine that died a moment ago is not known to be dead.
        """
        notes = self.notes()
        top = max((note.generation for note in notes), default=0)
        return next((note.holder for note in notes if note.generation == top and not self._free(note)), None)

    def require_free(self) -> None:
        """Wait until nobody holds the lease, without taking it.

        Raises:
            RunLocked: as :meth:`acquire` does.
        """
        self._wait_until_free()

    def _wait_until_free(self) -> list[Note]:
        """Wait until no note of the highest generation can be that of a living holder. Return all notes."""
        reported = False
        while not self._done.is_set():
            notes = self.notes()
            self._watch.observe(notes)
            top = max((note.generation for note in notes), default=0)
            in_the_way = [note for note in notes if note.generation == top and not self._free(note)]
            if not in_the_way:
                return notes
            note = in_the_way[0]
            if self._watch.is_alive(note):
                raise RunLocked(
                    f"{self._name}: held by {note.holder}; wait for it to end, or end it there: if it dies, its lease "
                    f"ends by itself after {note.expiry:.0f} s"
                )
            if not reported:
                reported = True
                self._say(
                    f"{self._name}: held by {note.holder}; if that is gone, this goes on in {note.expiry:.0f} s at "
                    "the latest"
                )
            self._done.wait(LOOK_SECONDS)
        raise RunLocked(f"{self._name}: this process has stopped waiting for the lease")

    def abandon(self) -> None:
        """Make :meth:`acquire`, in another thread, end without the lease."""
        self._done.set()

    def _free(self, note: Note) -> bool:
        return note.released or note.is_of_dead(self._holder) or self._watch.expired(note)

    def notes(self) -> list[Note]:
        """Return the notes that are in the folder now."""
        found = []
        for key in self._objects.list(self._folder):
            generation = generation_of(self._folder, key)
            if generation is None:
                continue
            with contextlib.suppress(StoreCorrupt):  # gone since it was listed
                found.append(read_note(key, generation, self._objects.get_bytes(key)))
        return found

    def _claim(self, generation: int, seen: set[str]) -> bool:
        """Write a note of ``generation``. Return whether it is the only new one; then remove the ``seen`` ones."""
        self._generation, self._renewals, self._tag = generation, 0, None
        key = key_of(self._folder, generation, None if self._conditional else self._holder.nonce)
        if not self._write(self._objects, key):
            return False
        if not self._conditional:
            time.sleep(SETTLE_SECONDS)
        looked = _clock()
        there = {other for other in self._objects.list(self._folder) if generation_of(self._folder, other) is not None}
        if there - seen - {key} or key not in there:
            self._objects.delete([key])
            return False
        self._key, self._looked = key, looked
        if seen:
            self._objects.delete(seen - {key})
        return True

    def _write(self, objects: ObjectStore, key: str, *, released: bool = False) -> bool:
        """Write the note, or renew it. Return False if another holder's note is at ``key``."""
        body = body_of(
            self._holder, self._generation, self._renewals + 1, released=released, conditional=self._conditional
        )
        if not self._conditional:
            objects.put_bytes(key, body)
        else:
            tag = objects.put_if(key, body, self._tag)
            if tag is None:
                there = objects.get_tagged(key)
                if there is None or not self._is_ours(there[0]):
                    return False
                # Ours: this call wrote it, or the one before, and the answer was lost.
                tag = there[1]
            self._tag = tag
        self._renewals += 1
        return True

    def _is_ours(self, body: bytes) -> bool:
        return read_note("", 0, body).fields.get("nonce") == self._holder.nonce

    # Having it.

    def confirm(self) -> None:
        """Check in the store that the lease is still held.

        Raises:
            RunLocked: another holder has taken it over, or the federation was removed.
            StoreUnavailable: the store does not answer.
        """
        self._confirm(self._objects)

    def _confirm(self, objects: ObjectStore) -> None:
        with self._writing:
            self._require_held()
            assert self._key is not None
            began = _clock()
            keys = objects.list(self._folder)
            newer = [key for key in keys if (generation_of(self._folder, key) or 0) > self._generation]
            mine = self._key in keys and (not self._conditional or self._is_ours(_body(objects, self._key)))
            if newer:
                note = read_note(newer[-1], 0, _body(objects, newer[-1]))
                self._lose(f"taken over by {note.holder}" if note.body else "taken over by another coordinator")
            elif not mine:
                self._lose("its lease was removed from the store, as when the federation is removed")
            self._looked = began
            self._require_held()

    def require(self) -> None:
        """Check as :meth:`confirm` does, but read the store only if the last look is older than ``UNSURE_SECONDS``."""
        self._require_held()
        if _clock() - self._looked > UNSURE_SECONDS:
            self.confirm()

    def commit(self, key: str, document: Any) -> None:
        """Write a commit's marker, if the lease is held and no other coordinator has written it.

        Raises:
            RunLocked: the lease is lost, or another has committed this.
            StoreUnavailable: it cannot be written.
        """
        body = seal(document)
        with self._writing:
            self.confirm()
            if self._conditional and self._objects.put_if(key, body) is not None:
                return
            there = _body(self._objects, key) if self._conditional or self._objects.exists(key) else b""
            if there == body:
                return
            if _is_whole(there):  # a damaged marker commits nothing
                self._lose(f"{key} was committed by another coordinator")
                self._require_held()
            self.require()  # the store may have been unreachable since the last look
            self._objects.put_bytes(key, body)

    def _require_held(self) -> None:
        if self._lost is not None:
            raise RunLocked(f"{self._name}: {self._lost}; nothing more is written here")
        if self._key is None:
            raise RuntimeError(f"{self._name}: the lease is not held")

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
            log.error("%s: %s", self._name, why)
            if self._when_lost is not None:
                self._when_lost()

    def _begin(self) -> None:
        if self._done.is_set():  # abandoned while the lease was being taken
            self.release()
            raise RunLocked(f"{self._name}: this process has stopped waiting for the lease")
        self._renewing = threading.Thread(target=self._renew, name=f"lease-{self._name}", daemon=True)
        self._renewing.start()

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            try:
                self._renew_once()
            except RunLocked:
                return
            except Exception as failure:
                log.warning("the lease could not be renewed, trying again: %s", failure)

    def _renew_once(self) -> None:
        with self._writing:
            if self._done.is_set():
                return
            self._confirm(self._impatient)
            if self._done.is_set() or self._key is None:
                return
            written = self._write(self._impatient, self._key)
            late = _clock() - self._looked > EXPIRY_SECONDS - UNSURE_SECONDS
            if written and late and len(self.notes()) > 1:
                # This process was stopped between look and write for as long as others wait, and has now restored a
                # note that they had removed.
                self._impatient.delete([self._key])
                written = False
            if not written:
                self._lose("taken over by another process before it was renewed")
                self._require_held()

    # Giving it back.

    def release(self, *, removed: bool = False) -> None:
        """Give the lease back if it is held. Do not wait for a store that does not answer.

        removed: remove all notes, as the last step when the federation is removed.
        """
        self._done.set()
        if self._renewing is not None:
            self._renewing.join(timeout=2 * OUTAGE_SECONDS)
        key, self._key = self._key, None
        if key is None or self._lost is not None:
            return
        try:
            if removed:
                self._impatient.delete(list(self._impatient.list(self._folder)))
            else:
                self._write(self._impatient, key, released=True)
        except InfraError as failure:
            log.warning("%s: the lease could not be given back, it expires by itself: %s", self._name, failure)

    def __enter__(self) -> StoreLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextlib.asynccontextmanager
    async def ends_with_it(self) -> AsyncIterator[None]:
        """Cancel this task within the context if the lease is lost, and raise RunLocked."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(task.cancel)

        self._when_lost = cancel
        try:
            self._require_held()
            yield
        except BaseException as error:
            if self._lost is not None and not isinstance(error, RunLocked):
                task.uncancel()
                raise RunLocked(f"{self._name}: {self._lost}; nothing more is written here") from error
            raise
        finally:
            self._when_lost = None


def _body(objects: ObjectStore, key: str) -> bytes:
    """Return the content of the object at ``key``; empty if there is none."""
    try:
        return objects.get_bytes(key)
    except StoreCorrupt:
        return b""


def _is_whole(body: bytes) -> bool:
    """Return whether ``body`` is a record: a JSON mapping whose content matches its digest, if it has one."""
    try:
        return isinstance(unseal(json.loads(body))[0], dict)
    except (ValueError, RecursionError):
        return False


def _clock() -> float:
    """Return seconds that advance while this process is stopped, and where possible while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
