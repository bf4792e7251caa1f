"""Weights are checked when they arrive, cached by content, and downloaded once per machine."""

import hashlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from infra.errors import StoreCorrupt
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from infra.store.transfers import PART_BYTES
from infra.store.weights import IN_USE_SECONDS, WeightStore


def _weights(seed: int, count: int = 1000) -> bytes:
    return save({"w": np.random.default_rng(seed).standard_normal(count, dtype=np.float32)})


def _cache(objects: ObjectStore, folder: Path, megabytes: int = 100) -> WeightStore:
    return WeightStore(objects, folder, megabytes)


def test_stored_weights_are_in_the_cache(object_store: ObjectStore, tmp_path: Path) -> None:
    content = _weights(1)
    store = _cache(object_store, tmp_path)
    ref = store.put("weights/1.safetensors", content)
    assert (ref.sha256, ref.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert object_store.get_bytes(ref.key) == content
    object_store.delete([ref.key])
    fetched = store.get(ref.key, ref.sha256, ref.bytes)
    assert fetched.downloaded == 0
    assert fetched.path.read_bytes() == content
    assert fetched.path.stat().st_mode & 0o222 == 0


def test_another_machine_downloads_once(object_store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(_weights(2))
    ref = _cache(object_store, tmp_path / "a").put("weights/2.safetensors", source)
    other = _cache(object_store, tmp_path / "b")
    first = other.get(ref.key, ref.sha256, ref.bytes)
    again = other.get(ref.key, ref.sha256, ref.bytes)
    assert (first.downloaded, again.downloaded) == (ref.bytes, 0)
    assert first.path == again.path
    np.testing.assert_array_equal(load_file(first.path)["w"], load_file(source)["w"])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer"])
def test_a_damaged_object_is_refused_and_not_cached(damage: str, object_store: ObjectStore, tmp_path: Path) -> None:
    content = _weights(3)
    ref = _cache(object_store, tmp_path / "a").put(f"weights/{damage}.safetensors", content)
    bad = {
        "flipped": bytes([content[0] ^ 1]) + content[1:],
        "truncated": content[:-5],
        "longer": content + b"x",
    }
    object_store.put_bytes(ref.key, bad[damage])
    store = _cache(object_store, tmp_path / "b")
    found = hashlib.sha256(bad[damage]).hexdigest()
    expected = rf"{ref.key}: expected sha256 {ref.sha256}, {ref.bytes} bytes.*found sha256 {found}"
    if damage == "longer":
        expected = rf"{ref.key}: expected at most {ref.bytes} bytes in bucket .*, found {ref.bytes + 1} or more"
    with pytest.raises(StoreCorrupt, match=expected):
        store.get(ref.key, ref.sha256, ref.bytes)
    assert [path for path in (tmp_path / "b").rglob("*") if path.suffix != ".lock" and path.is_file()] == []


def test_no_more_bytes_are_written_than_the_record_says(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects below and above PART_BYTES, from which on they travel in parts. The second one grows after HEAD."""
    for size in (1000, PART_BYTES + 1000):
        object_store.put_bytes("weights/grown", bytes(size + 2_000_000))
        with pytest.raises(StoreCorrupt, match=rf"weights/grown: expected at most {size} bytes"):
            object_store.get_file("weights/grown", tmp_path / "file", size)
        assert not (tmp_path / "file").exists()
    client = object_store._s3()
    with monkeypatch.context() as patch:
        patch.setattr(client, "head_object", lambda **names: {"ContentLength": size})
        with pytest.raises(StoreCorrupt, match=rf"weights/grown: expected at most {size} bytes"):
            object_store.get_file("weights/grown", tmp_path / "file", size)
    object_store.get_file("weights/grown", tmp_path / "file", size + 2_000_000)
    assert (tmp_path / "file").stat().st_size == size + 2_000_000
    object_store.delete(["weights/grown"])


def test_a_missing_object_is_named(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match=r"weights/none.safetensors: missing in bucket"):
        _cache(object_store, tmp_path).get("weights/none.safetensors", "0" * 64, 10)


def test_a_cached_file_of_the_wrong_size_is_replaced(object_store: ObjectStore, tmp_path: Path) -> None:
    content = _weights(4)
    store = _cache(object_store, tmp_path)
    ref = store.put("weights/4.safetensors", content)
    path = store.path(ref.sha256)
    path.chmod(0o600)
    path.write_bytes(content[:-1])
    fetched = store.get(ref.key, ref.sha256, ref.bytes)
    assert fetched.downloaded == ref.bytes
    assert fetched.path.read_bytes() == content


@pytest.mark.parametrize("damage", ["a flipped bit", "zeros", "cut short"])
def test_the_next_process_does_not_use_a_damaged_file_of_the_cache(
    damage: str, object_store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _weights(5)
    ref = _cache(object_store, tmp_path).put(f"weights/{damage}.safetensors", content)
    path = _cache(object_store, tmp_path).path(ref.sha256)
    path.chmod(0o600)
    middle = len(content) // 2
    bad = {
        "a flipped bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "zeros": bytes(len(content)),  # as after a power failure: the right size, but no content
        "cut short": content[:middle],
    }
    path.write_bytes(bad[damage])
    following = _cache(object_store, tmp_path)  # like another process's: no file is hashed yet
    fetched = following.get(ref.key, ref.sha256, ref.bytes)
    assert fetched.downloaded == ref.bytes
    assert fetched.path.read_bytes() == content
    assert any(f"{path}: this file of the weight cache is damaged" in message for message in caplog.messages)
    assert following.get(ref.key, ref.sha256, ref.bytes).downloaded == 0
    # If the object is missing from the store too, it cannot be restored.
    path.chmod(0o600)
    path.write_bytes(bad[damage])
    object_store.delete([ref.key])
    with pytest.raises(StoreCorrupt, match=f"{ref.key}: missing"):
        _cache(object_store, tmp_path).get(ref.key, ref.sha256, ref.bytes)


def test_a_file_is_hashed_once_in_a_process(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = _cache(object_store, tmp_path).put("weights/once.safetensors", _weights(6))
    hashed: list[str] = []
    digest = hashlib.file_digest

    def noted_digest(file: io.BufferedReader, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted_digest)
    store = _cache(object_store, tmp_path)
    for _ in range(3):
        store.get(ref.key, ref.sha256, ref.bytes)
    assert hashed == [str(store.path(ref.sha256))]


GETTER = """
import sys
from pathlib import Path
from infra.settings import S3Settings
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
endpoint, access, secret, cache, key, digest, size = sys.argv[1:]
settings = S3Settings(endpoint=endpoint, access_key=access, secret_key=secret)
store = WeightStore(ObjectStore(settings), Path(cache), 100)
print("ready", flush=True)
sys.stdin.readline()
print(store.get(key, digest, int(size)).downloaded, flush=True)
"""


def test_processes_of_one_machine_download_once(
    s3_settings: S3Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    ref = _cache(object_store, tmp_path / "a").put("weights/6.safetensors", _weights(6, 1_000_000))
    assert s3_settings.access_key is not None
    assert s3_settings.secret_key is not None
    arguments = [
        s3_settings.endpoint or "",
        s3_settings.access_key.get_secret_value(),
        s3_settings.secret_key.get_secret_value(),
        str(tmp_path / "b"),
        ref.key,
        ref.sha256,
        str(ref.bytes),
    ]
    slots = [
        subprocess.Popen(
            [sys.executable, "-c", GETTER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for slot in slots:
        assert slot.stdout is not None
        assert slot.stdout.readline() == "ready\n"
    for slot in slots:
        assert slot.stdin is not None
        slot.stdin.write("\n")
        slot.stdin.flush()
    downloaded = sorted(int(slot.communicate(timeout=60)[0]) for slot in slots)
    assert downloaded == [0, 0, ref.bytes]


def test_the_longest_unused_files_go_first_and_those_in_use_stay(object_store: ObjectStore, tmp_path: Path) -> None:
    store = _cache(object_store, tmp_path, megabytes=1)
    refs = [store.put(f"weights/e{seed}.safetensors", _weights(seed, 100_000)) for seed in range(10, 14)]
    paths = [store.path(ref.sha256) for ref in refs]
    assert all(path.exists() for path in paths)  # 1.6 MB are over the limit, but all files were just used
    old = time.time() - 10 * IN_USE_SECONDS
    for age, path in zip((30, 20, 10), paths, strict=False):
        os.utime(path, (old - age, old - age))
    store.get(refs[0].key, refs[0].sha256, refs[0].bytes)  # used again, so among the youngest
    leftover = tmp_path / "00" / "dead.tmp"
    leftover.write_bytes(b"x")
    os.utime(leftover, (1.0, 1.0))
    store.evict()
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert not leftover.exists()


def test_forgotten_weights_are_removed_from_the_cache_only(object_store: ObjectStore, tmp_path: Path) -> None:
    store = _cache(object_store, tmp_path)
    ref = store.put("weights/forgotten.safetensors", _weights(9))
    store.forget([ref.sha256, "0" * 64])
    assert not store.path(ref.sha256).exists()
    assert store.get(ref.key, ref.sha256, ref.bytes).downloaded == ref.bytes


def test_the_cache_is_cleaned_once_enough_was_added(object_store: ObjectStore, tmp_path: Path) -> None:
    store = _cache(object_store, tmp_path, megabytes=1)
    old = store.put("weights/old.safetensors", _weights(10, 240_000))
    long_ago = time.time() - 2 * IN_USE_SECONDS
    os.utime(store.path(old.sha256), (long_ago, long_ago))
    store.put("weights/small.safetensors", _weights(11))
    assert store.path(old.sha256).exists()
    store.put("weights/large.safetensors", _weights(12, 240_000))
    assert not store.path(old.sha256).exists()
