"""Tests of the harness: its faults really happen, and its judge notices wrong bits and bad ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from tests.faults.damage import all_lasting, drop_unsynced, flip_bit, synced_since, tear
from tests.faults.draws import KINDS, PLACES, Fault, draw, hits_requests, kind_and_place
from tests.faults.judge import damaged_globals, difference, faults_of_output
from tests.faults.places import HOOK
from tests.faults.proxy import Plan, Proxy
from tests.faults.requests import name_request

KEY = "federations/one/rounds/0001/plan.json"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def proxy(s3_settings: S3Settings) -> Iterator[Proxy]:
    """Start a proxy in front of the session's store, whose bucket has ``CONTENT`` at ``KEY``."""
    client_of(s3_settings, str(s3_settings.endpoint)).put_object(Bucket=s3_settings.bucket, Key=KEY, Body=CONTENT)
    host, _, port = str(s3_settings.endpoint).removeprefix("http://").partition(":")
    proxy = Proxy((host, int(port)))
    yield proxy
    proxy.close()


def client_of(settings: S3Settings, endpoint: str) -> Any:
    """Return a client that does not retry."""
    assert settings.access_key is not None
    assert settings.secret_key is not None
    config = Config(
        read_timeout=5,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={},
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=config,
        region_name=settings.region,
        aws_access_key_id=settings.access_key.get_secret_value(),
        aws_secret_access_key=settings.secret_key.get_secret_value(),
    )


def test_each_fault_of_the_proxy_reaches_a_client(s3_settings: S3Settings, proxy: Proxy) -> None:
    bucket = s3_settings.bucket
    client, direct = client_of(s3_settings, proxy.address), client_of(s3_settings, str(s3_settings.endpoint))

    def read(through: Any = client) -> bytes:
        content: bytes = through.get_object(Bucket=bucket, Key=KEY)["Body"].read()
        return content

    def write(content: bytes) -> None:
        client.put_object(Bucket=bucket, Key=KEY, Body=content)

    assert read() == CONTENT
    for action, error in (
        ("503", ClientError),
        ("reset", ConnectionClosedError),
        ("short-answer", ResponseStreamingError),
    ):
        with proxy.faulty(Plan(action, "GET", "plan 1", nth=1)) as plan:
            assert read() == CONTENT  # the plan does not hit the first request
            with pytest.raises(error):
                read()
            assert read() == CONTENT
        assert plan.hits == [f"GET {KEY}"]
    with proxy.faulty(Plan("flipped-answer", "GET", "plan 1", nth=0)):
        found = read()
        assert [one ^ other for one, other in zip(found, CONTENT, strict=True) if one != other] in [
            [2**n] for n in range(8)
        ]
    with proxy.faulty(Plan("no-space", "PUT", "plan 1", nth=0)), pytest.raises(ClientError, match="no space left"):
        write(b"never stored")
    assert read(direct) == CONTENT
    with proxy.faulty(Plan("cut-upload", "PUT", "plan 1", nth=0)), pytest.raises(ConnectionClosedError):
        write(CONTENT * 2)
    assert read(direct) == CONTENT, "the store accepted an incomplete upload"
    with proxy.faulty(Plan("lost-answer", "PUT", "plan 1", nth=0)), pytest.raises(ConnectionClosedError):
        write(CONTENT[1:])
    assert read(direct) == CONTENT[1:], "the store did not carry out the request"
    with proxy.faulty(Plan("short-upload", "PUT", "plan 1", nth=0, place=0.5)):
        write(CONTENT)
    assert read(direct) == CONTENT[: len(CONTENT) // 2]


@pytest.mark.parametrize("way", ["bytes", "condition", "file", "file in parts"])
def test_an_upload_of_which_the_store_got_half_is_sent_again(
    s3_settings: S3Settings, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = tmp_path / "sent.bin"
    path.write_bytes(CONTENT[::-1])
    objects = ObjectStore(s3_settings.model_copy(update={"endpoint": proxy.address}), outage_seconds=10)
    put: dict[str, Callable[[], object]] = {
        "bytes": lambda: objects.put_bytes(KEY, CONTENT[::-1]),
        "condition": lambda: objects.put_if(KEY, CONTENT[::-1], '"x"'),  # this store accepts any ETag
        "file": lambda: objects.put_file(KEY, path),
        "file in parts": lambda: objects.put_file(KEY, path),
    }
    if way == "file in parts":
        monkeypatch.setattr("infra.store.transfers.WHOLE_BYTES", 0)  # boto3's transfer sends no digest
    with proxy.faulty(Plan("short-upload", "PUT", "plan 1", nth=0, count=2, place=0.5)) as plan:
        put[way]()
    assert len(plan.hits) == 2
    assert ObjectStore(s3_settings).get_bytes(KEY) == CONTENT[::-1]


@pytest.mark.parametrize("way", ["bytes", "limited bytes", "tagged", "json", "file", "limited file"])
def test_a_request_whose_answer_breaks_off_is_sent_again(
    s3_settings: S3Settings, proxy: Proxy, tmp_path: Path, way: str
) -> None:
    objects = ObjectStore(s3_settings.model_copy(update={"endpoint": proxy.address}), outage_seconds=10)
    path, document = tmp_path / "got.bin", {"version": 1}
    ObjectStore(s3_settings).put_json(KEY, document)
    content = ObjectStore(s3_settings).get_bytes(KEY)

    def get_file(limit: int | None = None) -> bytes:
        objects.get_file(KEY, path, limit)
        return path.read_bytes()

    get: dict[str, tuple[Callable[[], object], object]] = {
        "bytes": (lambda: objects.get_bytes(KEY), content),
        "limited bytes": (lambda: objects.get_bytes(KEY, 1000), content),
        "tagged": (lambda: (objects.get_tagged(KEY) or [None])[0], content),
        "json": (lambda: objects.get_json(KEY), document),
        "file": (get_file, content),
        "limited file": (lambda: get_file(1000), content),
    }
    read, expected = get[way]
    with proxy.faulty(Plan("short-answer", "GET", "plan 1", nth=0, count=2, place=0.7)) as plan:
        assert read() == expected
    assert len(plan.hits) == 2


def test_requests_have_the_same_names_in_every_run() -> None:
    names = {
        ("GET", "/b/federations/x/rounds/0012/plan.json"): ("GET", "plan 12"),
        ("PUT", "/b/federations/x/rounds/0000/global.safetensors"): ("PUT", "global 0"),
        ("PUT", "/b/federations/x/rounds/0003/updates/4.json"): ("PUT", "update's record 3"),
        ("PUT", "/b/federations/x/rounds/0003/server.safetensors"): ("PUT", "server's state 3"),
        ("GET", "/b/federations/x/rounds/0010/shared.safetensors"): ("GET", "server's state 10"),
        ("GET", "/b/federations/x/rounds/0003/state/4.safetensors"): ("GET", "state 3"),
        ("HEAD", "/b"): ("HEAD", "bucket"),
        ("GET", "/b?list-type=2&prefix=federations%2Fx%2Frounds%2F"): ("LIST", "rounds"),
        ("POST", "/b?delete"): ("DELETE", "many"),
        ("GET", "/b/federations/x/turns/gpu/0-1/2.json"): ("GET", "letter"),
        ("GET", "/b/federations/x/lease.json"): ("GET", "lease"),
    }
    for request, expected in names.items():
        found = name_request(*request)
        assert (found.method, found.kind) == expected


# A program whose syncs the hook writes down. It writes four files: one is never synced, one is changed after its sync,
# one has its content synced but not its name, and one has both synced.
PROGRAM = """
import os, pathlib
root = pathlib.Path(os.environ["ROOT"])
def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
(root / "new").mkdir()
sync(root)
(root / "new" / "kept").write_text("all of it")
sync(root / "new" / "kept")
sync(root / "new")
(root / "new" / "nameless").write_text("its content alone")
sync(root / "new" / "nameless")
(root / "written").write_text("nothing of it")
(root / "changed").write_text("before")
sync(root / "changed")
sync(root)
(root / "changed").write_text("after")
(root / "old-written-over").write_text("another")
(root / "temporary").write_text("renamed")
sync(root / "temporary")
sync(root)
(root / "temporary").replace(root / "old-renamed-over")
(root / "unsynced-folder").mkdir()
(root / "unsynced-folder" / "file").write_text("synced, and lost with its folder")
sync(root / "unsynced-folder" / "file")
sync(root / "unsynced-folder")
"""


def test_exactly_the_unsynced_files_are_dropped(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "synced.jsonl"
    root.mkdir()
    for name in ("old", "old-written-over", "old-renamed-over"):
        (root / name).write_text("from before")
    before = all_lasting(root)
    variables = {"PYTHONPATH": str(HOOK), "FAULTS_SYNCED": str(log), "ROOT": str(root)}
    subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **variables}, check=True)
    dropped = drop_unsynced(root, synced_since(log, before))
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert left == ["new/kept", "old"]
    assert sorted(dropped) == [
        "changed",
        "new/nameless",
        "old-renamed-over",
        "old-written-over",
        "unsynced-folder/file",
        "written",
    ]
    assert (root / "new" / "kept").read_text() == "all of it"


def test_damage_changes_one_bit_or_cuts_the_file_in_half(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(CONTENT)
    path.chmod(0o400)  # read-only, as cached weights are
    at = flip_bit(path, Random(1))
    found = path.read_bytes()
    assert [place for place in range(len(CONTENT)) if found[place] != CONTENT[place]] == [at]
    assert (found[at] ^ CONTENT[at]).bit_count() == 1
    assert tear(path) == len(CONTENT) // 2 == path.stat().st_size


def test_every_kind_is_drawn_at_every_place_and_a_seed_repeats_its_faults() -> None:
    requests = [(method, kind) for method in ("GET", "PUT", "LIST") for kind in ("plan 1", "global 1")]

    def drawn(seed: int, number: int) -> Fault:
        kind, _ = kind_and_place(seed, number)
        return draw(seed, number, 0, requests if hits_requests(kind, mounts=True) else ())

    deck = 2 * sum(KINDS.values())
    faults = [drawn(3, number) for number in range(deck)]
    assert {(fault.kind, fault.place) for fault in faults} == {(kind, place) for kind in KINDS for place in PLACES}
    assert faults == [drawn(3, number) for number in range(deck)]
    assert faults != [drawn(4, number) for number in range(deck)]


def test_the_judge_notices_wrong_bits_and_bad_ends(tmp_path: Path) -> None:
    rounds = [{"round": number, "digests": [f"d{number}"], "metrics": {"loss": 0.5}} for number in range(3)]
    assert difference(rounds, rounds) is None
    assert "committed rounds" in str(difference(rounds[:2], rounds))
    assert "digests" in str(difference([*rounds[:2], {**rounds[2], "digests": ["other"]}], rounds))
    assert "damaged" in str(difference([*rounds[:2], {"damaged": "x"}], rounds))
    assert faults_of_output("[0:01] round 1\nlog: x · go on with: y\nfailed: no answer\n", 1, killed=False) is None
    assert faults_of_output("all is well\n", 0, killed=False) is None
    assert faults_of_output("", -9, killed=True) is None
    for text, status in (
        ("", 1),
        ("", -9),
        ("", None),
        ("failed: one\nfailed: two\n", 1),
        ("failed: one\n  and more\n", 1),
        ("Traceback (most recent call last):\n", 0),
    ):
        assert faults_of_output(text, status, killed=False) is not None
    marker = tmp_path / "federations" / "one" / "rounds" / "0000" / "round.json"
    marker.parent.mkdir(parents=True)
    marker.write_text('{"model": {"sha256": "no such"}}')
    assert "missing" in str(damaged_globals(tmp_path, "one", None))
    weights = marker.with_name("global.safetensors")
    weights.write_bytes(b"another")
    assert "not the one" in str(damaged_globals(tmp_path, "one", None))
    assert damaged_globals(tmp_path, "one", str(weights)) is None
