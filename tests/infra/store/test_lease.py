"""A federation has one holder. The leases are in a real embedded store, and in one that honours conditional writes.

Two homes stand for two machines. Waiting times are shortened; no test asserts how long anything takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RunLocked
from infra.settings_groups import S3Settings
from infra.store import lease as leases
from infra.store import lease_note
from infra.store.conditional import honours_conditions
from infra.store.lease import StoreLease
from infra.store.lease_note import Holder, Note, Watch, read_note
from infra.store.leased import LeasedStore, have
from infra.store.objects import ObjectStore
from tests.infra.store.conditional_proxy import BOTH, ConditionalProxy

KINDS = ("rclone", "conditional")


@pytest.fixture(scope="module")
def proxy(s3_settings: S3Settings) -> Iterator[ConditionalProxy]:
    assert s3_settings.endpoint is not None
    with ConditionalProxy(s3_settings.endpoint) as proxy:
        yield proxy


class Federation:
    """A federation whose lease several homes ask for. ``said`` has the messages about waiting."""

    def __init__(self, objects: ObjectStore, name: str, folder: Path) -> None:
        self.objects, self.name, self.folder = objects, name, folder
        self.notes = f"leases/{name}/lease/"
        self.said: list[str] = []

    def at(self, home: str, lock: Path | None = None) -> StoreLease:
        return StoreLease(
            self.objects, self.notes, self.name, what="fedbench run", home=self.folder / home, lock=lock,
            prefix="leases", say=self.said.append,
        )  # fmt: skip

    def all_notes(self) -> list[str]:
        return list(self.objects.list(self.notes))

    def elsewhere(self, generation: int = 1, **fields: object) -> str:
        """Write a note like another machine's. Return its key."""
        key = f"{self.notes}{generation:08d}-ab.json"
        note = {"what": "fedbench run", "host": "host-b", "process": 17, "home": "/b", "boot": "another", **fields}
        self.objects.put_json(key, {"generation": generation, "expiry_seconds": 0.4, "released": False, **note})
        return key


@pytest.fixture(params=KINDS)
def federation(
    request: pytest.FixtureRequest, s3_settings: S3Settings, proxy: ConditionalProxy, tmp_path: Path
) -> Federation:
    kind = request.param
    store = s3_settings if kind == "rclone" else s3_settings.model_copy(update={"endpoint": proxy.address})
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return Federation(ObjectStore(store, outage_seconds=10.0), name, tmp_path)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Any:
    def seconds(*, renew: float, expiry: float = 60.0) -> None:
        monkeypatch.setattr(leases, "RENEW_SECONDS", renew)
        monkeypatch.setattr(leases, "UNSURE_SECONDS", 2 * renew)
        monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)
        monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(lease_note, "EXPIRY_SECONDS", expiry)

    return seconds


def test_a_stores_support_of_conditions_is_judged_by_what_it_writes(
    s3_settings: S3Settings, object_store: ObjectStore
) -> None:
    def asked(**options: Any) -> bool:
        assert s3_settings.endpoint is not None
        with ConditionalProxy(s3_settings.endpoint, **options) as proxy:
            return honours_conditions(ObjectStore(s3_settings.model_copy(update={"endpoint": proxy.address})), "probed")

    assert honours_conditions(object_store, "probed") is False  # it answers 200 to every request, and writes
    assert asked() is True
    assert [asked(only=(condition,)) for condition in BOTH] == [False, False]
    assert asked(writes_refused=True) is False
    assert object_store.list("probed/") == {}


def test_a_lease_is_given_back_at_the_end(federation: Federation, seconds: Any) -> None:
    seconds(renew=60)
    for number, home in enumerate("aba", 1):
        with federation.at(home) as lease:
            lease.acquire()
            assert (lease.held, lease.generation) == (True, number)
    assert federation.said == []
    assert len(federation.all_notes()) == 1


def test_the_error_names_a_living_holder(federation: Federation, seconds: Any) -> None:
    seconds(renew=0.2)
    with federation.at("a") as lease:
        lease.acquire()
        with pytest.raises(RunLocked, match=rf"held by fedbench run on .* \(process {os.getpid()}, home .*/a\)"):
            federation.at("b").acquire()
        assert re.fullmatch(rf"fedbench run on .* \(process {os.getpid()}, .*/a\)", federation.at("b").holder() or "")
        lease.confirm()
    assert "if that is gone, this goes on in 60 s" in federation.said[0]
    assert federation.at("b").holder() is None


def test_a_holder_that_stops_renewing_is_taken_over_and_cannot_write(federation: Federation, seconds: Any) -> None:
    seconds(renew=60, expiry=0.3)
    old, new = federation.at("a"), federation.at("b")
    old.acquire()
    store = LeasedStore(federation.objects, old)
    marker = f"leases/{federation.name}/round.json"
    with new:
        new.acquire()
        with pytest.raises(RunLocked, match=r"taken over by fedbench run on .*/b\)"):
            old.commit(marker, {"by": "old"})
        for write in (
            lambda: store.put_json(marker, {}), lambda: store.delete([marker]), lambda: store.copy(marker, "x"),
        ):  # fmt: skip
            with pytest.raises(RunLocked, match="nothing more is written here"):
                write()
        assert not federation.objects.exists(marker)
        new.commit(marker, {"by": "new"})
        old.release()
        new.confirm()


def test_a_write_long_after_the_last_look_checks_the_lease_first(federation: Federation, seconds: Any) -> None:
    seconds(renew=60, expiry=0.3)
    old = federation.at("a")
    old.acquire()
    store = LeasedStore(federation.objects, old)
    with federation.at("b") as new:
        new.acquire()
        old._looked -= leases.UNSURE_SECONDS + 1  # as if the process had been stopped
        with pytest.raises(RunLocked, match="taken over"):
            store.put_json("leases/x", {})


def test_another_machines_holder_counts_as_dead_when_its_note_stays_the_same(
    federation: Federation, seconds: Any
) -> None:
    seconds(renew=60)
    key = federation.elsewhere(renewed="2999-01-01T00:00:00+00:00")  # another machine's clock does not matter
    with federation.at("a") as lease:
        lease.acquire()
        assert lease.generation == 2
    assert len(federation.said) == 1
    assert key not in federation.all_notes()


def test_a_torn_note_holds_nobody_for_ever(federation: Federation, seconds: Any) -> None:
    seconds(renew=60, expiry=0.3)
    federation.objects.put_bytes(f"{federation.notes}00000007-ab.json", b'{"ho')
    federation.objects.put_bytes(f"{federation.notes}of-somebody-else.txt", b"x")
    with federation.at("a") as lease:
        lease.acquire()
        assert lease.generation == 8


HOLDER = """
import json, sys
from pathlib import Path
from infra.settings import S3Settings
from infra.store import lease as leases, lease_note
from infra.store.objects import ObjectStore
from infra.errors import RunLocked

asked = json.loads(sys.argv[1])
leases.RENEW_SECONDS, leases.UNSURE_SECONDS, leases.LOOK_SECONDS, leases.SETTLE_SECONDS = asked["renew"], 0.5, 0.02, 0.0
lease_note.EXPIRY_SECONDS = asked["expiry"]
objects = ObjectStore(S3Settings.model_validate(asked["store"]))

def lease():
    return leases.StoreLease(objects, asked["notes"], "raced", what="fedbench run", home=Path(asked["home"]),
                             prefix="leases", say=lambda line: None)
"""
STOPPED = """
with lease() as held:
    held.acquire()
    print("held", flush=True)
    for line in sys.stdin:
        try:
            held.commit(line.strip(), {"by": "stopped"})
            print("committed", flush=True)
        except RunLocked as error:
            print(error, flush=True)
"""
RACING = """
print("ready", flush=True)
sys.stdin.readline()
inside, taken, refused = Path(asked["inside"]), 0, 0
while taken < 25:
    try:
        with lease() as held:
            held.acquire()
            inside.mkdir()  # FileExistsError: the other is inside too
            held.confirm()
            inside.rmdir()
            taken += 1
    except RunLocked:
        refused += 1
print(taken, flush=True)
"""


def holder(federation: Federation, home: str, script: str, **asked: object) -> subprocess.Popen[str]:
    store = federation.objects.settings
    keys = {name: getattr(store, name).get_secret_value() for name in ("access_key", "secret_key")}
    document = {
        "store": store.model_dump(mode="json", exclude={"folder"}) | keys,
        "notes": federation.notes,
        "home": home,
    } | asked
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER + script, json.dumps(document)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_two_racing_processes_never_hold_the_lease_together(federation: Federation, tmp_path: Path) -> None:
    asked = {"renew": 0.2, "expiry": 60.0, "inside": str(tmp_path / "inside")}
    with contextlib.ExitStack() as stack:
        racing = [stack.enter_context(holder(federation, home, RACING, **asked)) for home in "ab"]
        for process in racing:
            assert ask(process, "") == "ready"
        for process in racing:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [ask(process, "") for process in racing] == ["25", "25"]


def test_a_holder_stopped_for_long_cannot_commit_after_a_takeover(federation: Federation, seconds: Any) -> None:
    seconds(renew=60)
    first, second = (f"leases/{federation.name}/round-{number}.json" for number in (1, 2))
    with holder(federation, "a", STOPPED, renew=0.1, expiry=0.5) as process:
        try:
            assert ask(process, "") == "held"
            assert ask(process, first) == "committed"
            process.send_signal(signal.SIGSTOP)
            with federation.at("b") as lease:
                lease.acquire()
                lease.commit(second, {"by": "b"})
                process.send_signal(signal.SIGCONT)
                assert "raced: taken over by fedbench run on" in ask(process, second)
                lease.confirm()
        finally:
            process.kill()
    assert federation.objects.get_json(second) == {"by": "b"}


def test_a_killed_holder_of_this_machine_is_not_waited_for(federation: Federation, seconds: Any) -> None:
    seconds(renew=60)
    with holder(federation, "a", STOPPED, renew=60, expiry=600.0) as process:
        assert ask(process, "") == "held"
        process.kill()
    with federation.at("b") as lease:
        lease.acquire()
        assert lease.generation == 2
    assert federation.said == []


def test_a_process_with_the_holders_lock_file_does_not_wait(
    federation: Federation, seconds: Any, tmp_path: Path
) -> None:
    seconds(renew=60)
    lock = tmp_path / "a.lock"
    lock.touch()
    federation.at("a", lock).acquire()  # this holder counts as dead
    with federation.at("a", lock) as lease:
        lease.acquire()
    assert federation.said == []


def test_another_holders_commit_is_not_overwritten(federation: Federation, seconds: Any) -> None:
    seconds(renew=60)
    marker = f"leases/{federation.name}/round.json"
    with federation.at("a") as lease:
        lease.acquire()
        lease.commit(marker, {"round": 1})
        lease.commit(marker, {"round": 1})  # repeated, as after a lost answer
        federation.objects.put_bytes(marker, b'{"round"')  # a torn marker commits nothing
        lease.commit(marker, {"round": 2})
        with pytest.raises(RunLocked, match=rf"{marker} was committed by another"):
            lease.commit(marker, {"round": 3})
    assert federation.objects.get_json(marker) == {"round": 2}


def test_the_lease_of_a_removed_federation_is_lost(federation: Federation, seconds: Any) -> None:
    seconds(renew=60)
    with federation.at("a") as lease:
        lease.acquire()
        federation.objects.delete(federation.all_notes())
        with pytest.raises(RunLocked, match="removed from the store"):
            lease.confirm()
    assert federation.all_notes() == []


def test_work_is_cancelled_when_the_lease_is_lost(federation: Federation, seconds: Any) -> None:
    seconds(renew=0.1)

    async def scene() -> None:
        async with have(federation.at("a")):
            await asyncio.to_thread(federation.elsewhere, 9)
            await asyncio.sleep(60)

    with pytest.raises(RunLocked, match=r"taken over by fedbench run on host-b \(process 17, home /b\)"):
        asyncio.run(scene())


def test_a_long_gap_between_two_looks_counts_as_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(lease_note.time, "monotonic", lambda: now)
    note, watch = read_note("k", 1, b'{"expiry_seconds": 20}'), Watch()
    for gap, expired in ((0, False), (3600, False), (10, False), (5, False), (5, True)):
        now += gap
        watch.observe([note])
        assert watch.expired(note) is expired
    assert not watch.is_alive(note)
    renewed = read_note("k", 1, b'{"expiry_seconds": 20, "renewals": 2}')
    watch.observe([renewed])
    assert watch.is_alive(renewed)
    assert not watch.expired(renewed)


@pytest.mark.parametrize("expiry", [True, "5", -1, 0, float("nan"), 1e9, None])
def test_a_note_cannot_ask_for_an_endless_wait(expiry: object) -> None:
    assert read_note("k", 1, json.dumps({"expiry_seconds": expiry}).encode()).expiry == lease_note.EXPIRY_SECONDS


def test_only_processes_of_this_machine_are_known_to_be_dead(tmp_path: Path) -> None:
    own = Holder(str(tmp_path), "fedbench run", "ab")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass

    def dead(**fields: object) -> bool:
        return Note("k", 1, b"", {**own.document(), **fields}).is_of_dead(own)

    assert not dead()  # this very process
    assert dead(process=ended.pid)
    assert dead(process_started="1")  # another process now has its number
    assert not dead(process=ended.pid, boot="of another machine")
    assert not dead(process=ended.pid, processes="pid:[1]")  # in another container
    assert not dead(process_started="")
    assert not any(dead(process=number) for number in (-1, 0, "7", None, 10**30))
