"""What a coordinator and its residents write to each other: small JSON objects in the store.

<federation>/turns/<pool>/<session>/session.json             shows that the session is open; written first
<federation>/turns/<pool>/<session>/<resident>/0001-ask.json     a turn's request, or the request to leave
<federation>/turns/<pool>/<session>/<resident>/0001-answer.json  the reply, or why there is none

Each coordinator has a session of its own; after a crash, the next coordinator opens a new one. All that a pool's
residents exchange with it is below ``turns/<pool>/``, so that a silo's credentials can be limited to its own pool
(:mod:`infra.turns.silo_policy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.errors import BadReply, SettingsError, SlotLost, StoreRefused, TurnReturned
from infra.plain_text import cut
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore

MAILBOX_VERSION = 1
ASK, ANSWER = "-ask.json", "-answer.json"  # after the number of the turn
LEAVE = {"version": MAILBOX_VERSION, "phase": "leave"}


@dataclass(frozen=True)
class Mailbox:
    """The letters between the coordinator of ``session`` and the resident number ``resident`` of ``pool``."""

    objects: ObjectStore
    layout: FederationLayout
    pool: str
    session: str
    resident: int

    @property
    def folder(self) -> str:
        return f"{session_folder(self.layout, self.pool, self.session)}{self.resident}/"

    def put_ask(self, number: int, document: dict[str, Any]) -> None:
        self.objects.put_json(f"{self.folder}{number:04d}{ASK}", document)

    def get_ask(self, number: int) -> dict[str, Any] | None:
        """Return request ``number``; None if it is not there yet."""
        try:
            document: dict[str, Any] | None = self.objects.get_json(f"{self.folder}{number:04d}{ASK}")
        except StoreRefused:
            # If the credentials may not list the bucket, the store answers 403 for a missing object too. The
            # credentials are right, because this resident has read its session's object with them.
            return None
        return document

    def put_answer(self, number: int, document: dict[str, Any]) -> None:
        self.objects.put_json(f"{self.folder}{number:04d}{ANSWER}", document)

    def give_back(self, number: int, reason: str) -> None:
        """Answer turn ``number`` with the turn itself. Nothing is written if the coordinator has closed the session."""
        session = self.objects.get_json(f"{session_folder(self.layout, self.pool, self.session)}session.json")
        if session is not None:
            self.put_answer(number, {"version": MAILBOX_VERSION, "returned": reason})

    def get_answer(self, number: int, limit: int) -> Any:
        """Return the answer to turn ``number``, unchecked; None if it is not there yet.

        limit: the most bytes that the answer may have.

        Raises:
            StoreCorrupt: the answer is larger, or is not JSON.
        """
        return self.objects.get_json(f"{self.folder}{number:04d}{ANSWER}", limit)


def reply_in(answer: Any) -> Any:
    """Return the reply's document in an answer, unchecked.

    Raises:
        SlotLost: the answer reports that the turn was lost with its slot.
        TurnReturned: the answer gives the turn back.
        BadReply: the answer reports that the turn failed, or is not an answer.
    """
    version = answer.get("version") if isinstance(answer, dict) else None
    if version != MAILBOX_VERSION or isinstance(version, bool):
        found = f"version {version!r}"[:80] if isinstance(answer, dict) else type(answer).__name__
        raise BadReply(f"expected an answer of version {MAILBOX_VERSION}, found {found}")
    if "reply" in answer:
        return answer["reply"]
    for field, error in (("lost", SlotLost), ("returned", TurnReturned), ("error", BadReply)):
        reason = answer.get(field)
        if isinstance(reason, str) and reason:
            raise error(cut(reason))
    raise BadReply("expected an answer with a reply, or with a reason under lost, returned or error")


def session_folder(layout: FederationLayout, pool: str, session: str) -> str:
    return f"{layout.turns}{pool}/{session}/"


def open_session(objects: ObjectStore, layout: FederationLayout, pool: str, session: str, code: str) -> None:
    """Write the session's object, before any resident is requested: it gives the coordinator's code."""
    document = {"version": MAILBOX_VERSION, "code_version": code}
    objects.put_json(f"{session_folder(layout, pool, session)}session.json", document)


def require_session(objects: ObjectStore, layout: FederationLayout, pool: str, session: str, code: str) -> None:
    """Check, before a resident's first turn, that it has the coordinator's store and code.

    Raises:
        SettingsError: this worker has another store, or other code.
    """
    key = f"{session_folder(layout, pool, session)}session.json"
    document = objects.get_json(key)
    if document is None:
        raise SettingsError(
            f"s3: no {key} in bucket {objects.bucket} at {objects.settings.endpoint}: expected the coordinator's "
            "store; either this worker's settings FEDBENCH_S3__… name another store, or the coordinator has ended"
        )
    if document.get("code_version") != code:
        raise SettingsError(
            f"fedbench: expected the coordinator's code, {document.get('code_version')}, this worker has {code}; "
            "install the same code on both machines, and start this worker again"
        )


def close_session(objects: ObjectStore, layout: FederationLayout, pool: str, session: str) -> None:
    """Remove all objects of the session in ``pool``."""
    keys = list(objects.list(session_folder(layout, pool, session)))
    if keys:
        objects.delete(keys)
