"""A resident takes turns only after it has found the coordinator's session in its store, with its own code."""

from __future__ import annotations

import pytest

from infra.errors import SettingsError, TurnReturned
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.turns.mailbox import (
    MAILBOX_VERSION,
    Mailbox,
    close_session,
    open_session,
    reply_in,
    require_session,
    session_folder,
)

LAYOUT = FederationLayout("", "mailbox")


@pytest.fixture
def session(object_store: ObjectStore) -> str:
    open_session(object_store, LAYOUT, "slots", "s", "0.1.0-00000001")
    return "s"


def test_a_resident_with_the_same_code_may_take_turns(object_store: ObjectStore, session: str) -> None:
    require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000001")


def test_other_code_of_the_same_version_is_refused(object_store: ObjectStore, session: str) -> None:
    with pytest.raises(SettingsError, match=r"code, 0\.1\.0-00000001, this worker has 0\.1\.0-00000002; install"):
        require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000002")


def test_a_missing_session_hints_at_another_store(object_store: ObjectStore, session: str) -> None:
    close_session(object_store, LAYOUT, "slots", session)
    with pytest.raises(SettingsError, match="expected the coordinator's store"):
        require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000001")


def test_a_resident_of_an_older_fedbench_finds_the_code_where_it_looks(object_store: ObjectStore, session: str) -> None:
    """It compares ``code_version`` with its own version, so it refuses, and its error names both."""
    document = object_store.get_json(f"{session_folder(LAYOUT, 'slots', session)}session.json")
    assert document == {"version": MAILBOX_VERSION, "code_version": "0.1.0-00000001"}


def test_a_turn_that_is_given_back_is_told_from_a_lost_one(object_store: ObjectStore, session: str) -> None:
    mailbox = Mailbox(object_store, LAYOUT, "slots", session, 1)
    mailbox.give_back(3, "its time ends")
    with pytest.raises(TurnReturned, match=r"^its time ends$"):
        reply_in(mailbox.get_answer(3, 1000))


def test_nothing_is_given_back_to_a_coordinator_that_has_ended(object_store: ObjectStore, session: str) -> None:
    close_session(object_store, LAYOUT, "slots", session)
    Mailbox(object_store, LAYOUT, "slots", session, 1).give_back(3, "its time ends")
    assert list(object_store.list(session_folder(LAYOUT, "slots", session))) == []
