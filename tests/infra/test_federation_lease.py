"""One coordinator for a federation, across machines: leases of a real Prefect server, notes in a real store.

Two homes stand for two machines. Seconds are shortened; nothing is asserted about how long anything takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra import federation_lease
from infra.errors import RunLocked
from infra.federation_lease import FederationLease
from infra.services.prefect_server import PrefectService
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectService]:
    service = PrefectService(tmp_path_factory.mktemp("prefect"))
    service.ensure()
    try:
        yield service
    finally:
        service.stop()


class Coordinators:
    """Of one federation; ``said`` is what they were told of waiting."""

    def __init__(self, objects: ObjectStore, name: str, folder: Path, server: PrefectService) -> None:
        self.objects, self.layout = objects, FederationLayout("leases", name)
        self.folder, self.server = folder, server
        self.said: list[str] = []

    def at(self, home: str) -> FederationLease:
        return FederationLease(self.objects, self.layout, self.folder / home, self.said.append)

    def generation(self) -> int:
        note = self.objects.get_json(self.layout.lease)
        return int(note["generation"])

    def play(self, scene: Coroutine[Any, Any, None]) -> None:
        named = {PREFECT_API_URL: self.server.address, PREFECT_API_AUTH_STRING: self.server.auth}
        with temporary_settings(named):
            asyncio.run(scene)


@pytest.fixture
def coordinators(
    object_store: ObjectStore, tmp_path: Path, server: PrefectService, request: pytest.FixtureRequest
) -> Coordinators:
    return Coordinators(object_store, request.node.name, tmp_path, server)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Any:
    def seconds(*, renew: float, dead: float) -> None:
        monkeypatch.setattr(federation_lease, "RENEW_SECONDS", renew)
        monkeypatch.setattr(federation_lease, "DEAD_SECONDS", dead)
        monkeypatch.setattr(federation_lease, "ASK_AGAIN_SECONDS", 0.1)

    return seconds


def test_it_is_given_back_at_the_end(coordinators: Coordinators) -> None:
    async def scene() -> None:
        for home in ("a", "b"):
            async with coordinators.at(home):
                pass

    coordinators.play(scene())
    assert coordinators.said == []
    assert coordinators.generation() == 0


def test_a_holder_that_lives_is_named(coordinators: Coordinators, seconds: Any) -> None:
    async def scene() -> None:
        seconds(renew=0.2, dead=60)
        async with coordinators.at("a"):
            with pytest.raises(RunLocked, match=rf"already running on .*home {coordinators.folder / 'a'}\)"):
                async with coordinators.at("b"):
                    pytest.fail("two coordinators")

    coordinators.play(scene())
    assert len(coordinators.said) == 1
    assert "its lease is still held by" in coordinators.said[0]


def test_a_dead_holder_of_the_same_home_is_not_waited_for(coordinators: Coordinators, seconds: Any) -> None:
    async def scene() -> None:
        seconds(renew=60, dead=60)
        await coordinators.at("a").__aenter__()  # and is gone: the caller holds the home's run lock
        async with coordinators.at("a"):
            assert coordinators.generation() == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0), coordinators.at("b"):
                    pytest.fail("two coordinators")

    coordinators.play(scene())


def test_one_that_was_cut_off_ends_when_another_has_taken_over(coordinators: Coordinators, seconds: Any) -> None:
    begun, ended = asyncio.Event(), []

    async def cut_off() -> None:
        async with coordinators.at("a"):
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)

    async def scene() -> None:
        seconds(renew=3, dead=0.5)
        first = asyncio.create_task(cut_off())
        await begun.wait()
        async with coordinators.at("b"):
            assert coordinators.generation() == 1
            with pytest.raises(RunLocked, match="taken over by"):
                await first
            assert ended == [True]
            async with get_client() as client:  # the limit that the dead one's slot would block is gone
                limits = await client.read_global_concurrency_limits()
            names = {limit.name for limit in limits if coordinators.layout.federation in limit.name}
            assert names == {f"federation:{coordinators.layout.federation}:1"}

    coordinators.play(scene())
