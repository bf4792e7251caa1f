"""Fixtures for the tests of phases: a federation for each test in the session's store, and a foreign silo."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from infra.store.objects import ObjectStore
    from tasks.handles import Handles
    from tests.tasks.foreign_silos import Silos


@pytest.fixture
def federation(request: pytest.FixtureRequest) -> str:
    """Return a federation's name that no other test uses: all tests of a session share one bucket."""
    file = request.node.path.stem.replace("_", "-")
    return f"{file}-{zlib.crc32(request.node.name.encode()):08x}"


@pytest.fixture
def handles(object_store: ObjectStore, tmp_path: Path, federation: str) -> Handles:
    """Return handles of the test's federation. No turn is taken with them."""
    from tests.tasks.phase_handles import make_handles

    return make_handles(object_store, tmp_path, federation)[0]


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silos]:
    """Yield three silos, one of them a foreign silo, and a coordinator whose event loop is ready."""
    from tests.tasks.foreign_silos import make_silos

    found = make_silos(tmp_path_factory.mktemp("coordinator"))
    with found.runner:
        yield found
