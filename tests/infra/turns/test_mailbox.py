"""A resident takes no turn before its store and its code have proved to be the coordinator's."""

from __future__ import annotations

import pytest

from infra.errors import SettingsError
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.turns.mailbox import close_session, open_session, require_session

LAYOUT = FederationLayout("", "mailbox")


@pytest.fixture
def session(object_store: ObjectStore) -> str:
    open_session(object_store, LAYOUT, "slots", "s", "0.1.0-00000001")
    return "s"


def test_the_same_code_may_take_turns(object_store: ObjectStore, session: str) -> None:
    require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000001")


def test_another_checkout_of_the_same_version_may_not(object_store: ObjectStore, session: str) -> None:
    with pytest.raises(SettingsError, match=r"code, 0\.1\.0-00000001, this worker has 0\.1\.0-00000002; install"):
        require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000002")


def test_a_session_that_is_not_in_the_store_may_be_in_another(object_store: ObjectStore, session: str) -> None:
    close_session(object_store, LAYOUT, "slots", session)
    with pytest.raises(SettingsError, match="expected the coordinator's store"):
        require_session(object_store, LAYOUT, "slots", session, "0.1.0-00000001")
