"""The object store with a real S3 server, and its errors."""

import copy
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.errors import SettingsError, StoreCorrupt, StoreUnavailable
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from infra.store.transfers import PART_BYTES, WHOLE_BYTES


def test_objects_are_written_read_listed_and_removed(object_store: ObjectStore) -> None:
    object_store.put_bytes("objects/a/1.bin", b"one")
    object_store.put_bytes("objects/a/1.bin", b"four")
    object_store.put_json("objects/a/2.json", {"ü": [1, None], "a": 0.5})
    object_store.put_bytes("objects/ab/3.bin", b"")
    assert object_store.get_bytes("objects/a/1.bin") == b"four"
    assert object_store.get_json("objects/a/2.json") == {"ü": [1, None], "a": 0.5}
    assert object_store.list("objects/a/") == {
        "objects/a/1.bin": 4,
        "objects/a/2.json": object_store.size("objects/a/2.json"),
    }
    assert list(object_store.list("objects/a")) == ["objects/a/1.bin", "objects/a/2.json", "objects/ab/3.bin"]
    object_store.delete(["objects/a/1.bin", "objects/a/never-was"])
    assert not object_store.exists("objects/a/1.bin")
    assert object_store.exists("objects/a/2.json")
    object_store.delete([])


def test_more_objects_than_one_page_of_the_listing(object_store: ObjectStore, s3_home: Path) -> None:
    keys = [f"pages/{number:04d}" for number in range(1005)]
    folder = s3_home / "s3" / object_store.bucket
    (folder / "pages").mkdir(parents=True)
    for key in keys:  # written as files: the server lists what is on the disk, after a second at most
        (folder / key).write_bytes(b"x")
    deadline = time.monotonic() + 20.0
    while not object_store.list("pages/") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert list(object_store.list("pages/")) == keys
    object_store.delete(keys)
    assert object_store.list("pages/") == {}


@pytest.mark.parametrize("size", [PART_BYTES + 1_000_003, WHOLE_BYTES + 1_000_003], ids=["down", "up and down"])
def test_a_large_file_travels_in_parts(size: int, object_store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "up").write_bytes(content)
    object_store.put_file("objects/large.bin", tmp_path / "up")
    object_store.get_file("objects/large.bin", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content
    assert object_store.size("objects/large.bin") == len(content)
    object_store.copy("objects/large.bin", "objects/elsewhere/copy.bin")
    object_store.delete(["objects/large.bin"])
    object_store.get_file("objects/elsewhere/copy.bin", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content
    object_store.delete(["objects/elsewhere/copy.bin"])
    with pytest.raises(StoreCorrupt, match=r"objects/large\.bin"):
        object_store.copy("objects/large.bin", "objects/elsewhere/copy.bin")


def test_a_missing_object(object_store: ObjectStore, tmp_path: Path) -> None:
    assert object_store.get_json("objects/none.json") is None
    assert object_store.size("objects/none.json") is None
    with pytest.raises(StoreCorrupt, match=r"objects/none.bin: missing in bucket fedbench at http://127"):
        object_store.get_bytes("objects/none.bin")
    with pytest.raises(StoreCorrupt, match=r"objects/none.bin: missing in bucket fedbench at http://127"):
        object_store.get_file("objects/none.bin", tmp_path / "none")


def test_a_document_that_is_not_json(object_store: ObjectStore) -> None:
    object_store.put_bytes("objects/torn.json", b'{"version": 1, ')
    with pytest.raises(StoreCorrupt, match=r"objects/torn.json: expected JSON"):
        object_store.get_json("objects/torn.json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "maximum recursion depth|inside each other"),
        (b"null", "found null"),
        (b'{"a": "\xff"}', "codec can't decode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits|in 64 bits"),
        (b"", "Expecting value"),
        (b'{"a": 1,\n"a": 2}', "a: expected each key once, found it twice on lines 1 and 2"),
    ],
    ids=["deep", "null", "no UTF-8", "huge number", "empty", "key twice"],
)
@pytest.mark.parametrize("limit", [None, 1_000_000])
def test_a_document_that_cannot_be_read(
    content: bytes, problem: str, limit: int | None, object_store: ObjectStore
) -> None:
    object_store.put_bytes("objects/strange.json", content)
    with pytest.raises(StoreCorrupt, match=rf"objects/strange.json: expected .*({problem})"):
        object_store.get_json("objects/strange.json", limit)


def test_a_document_over_its_limit_is_not_read(object_store: ObjectStore) -> None:
    object_store.put_bytes("objects/long.json", b'"' + b"x" * 998 + b'"')
    assert object_store.get_json("objects/long.json", limit=1000) == "x" * 998
    with pytest.raises(StoreCorrupt, match=r"objects/long.json: expected at most 999 bytes in bucket .*, found 1000"):
        object_store.get_json("objects/long.json", limit=999)
    with pytest.raises(StoreCorrupt, match=r"objects/long.json: expected at most 999 bytes"):
        object_store.get_bytes("objects/long.json", limit=999)


OPERATIONS: list[Callable[[ObjectStore, Path], object]] = [
    lambda store, path: store.get_bytes("k"),
    lambda store, path: store.put_bytes("k", b""),
    lambda store, path: store.put_file("k", path),
    lambda store, path: store.get_file("k", path),
    lambda store, path: store.list("k/"),
    lambda store, path: store.delete(["k"]),
    lambda store, path: store.get_json("k"),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=["get", "put", "up", "down", "list", "delete", "json"])
def test_wrong_settings_name_the_setting(
    operation: Callable[[ObjectStore, Path], object], s3_settings: S3Settings, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    bucket = s3_settings.model_copy(update={"bucket": "not-there"})
    with pytest.raises(SettingsError, match=r"^s3.bucket: no bucket not-there at http://127"):
        operation(ObjectStore(bucket), path)
    for field in ("access_key", "secret_key"):
        wrong = s3_settings.model_copy(update={field: SecretStr("x" * 40)})
        with pytest.raises(SettingsError, match=r"^s3.access_key, s3.secret_key: refused .* bucket fedbench"):
            operation(ObjectStore(wrong), path)


@pytest.mark.parametrize("operation", OPERATIONS[:4], ids=["get", "put", "up", "down"])
def test_an_unreachable_endpoint_is_named(
    operation: Callable[[ObjectStore, Path], object], s3_settings: S3Settings, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = ObjectStore(s3_settings.model_copy(update={"endpoint": endpoint}), outage_seconds=0.0)
        with pytest.raises(StoreUnavailable, match=f"bucket fedbench at {endpoint} does not answer"):
            operation(store, path)


def test_no_endpoint_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"s3.endpoint: expected the URL of an S3 API, found none"):
        ObjectStore(S3Settings())


def test_the_store_can_be_pickled_and_used_after_a_fork(object_store: ObjectStore) -> None:
    object_store.put_bytes("objects/fork.bin", b"parent")
    # A deep copy uses the same state as pickling, by which a slot gets its store.
    assert copy.deepcopy(object_store).get_bytes("objects/fork.bin") == b"parent"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            object_store.put_bytes("objects/fork.bin", b"child")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert object_store.get_bytes("objects/fork.bin") == b"child"


def test_ensure_bucket_creates_the_bucket_once(s3_settings: S3Settings) -> None:
    store = ObjectStore(s3_settings.model_copy(update={"bucket": "made-here"}))
    store.ensure_bucket()
    store.put_bytes("a", b"kept")
    store.ensure_bucket()
    assert store.get_bytes("a") == b"kept"
