"""What is synced to the disk, and in which order: every os.fsync is recorded, with a real store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StoreCorrupt, StoreUnavailable
from infra.files.durable import write_durably
from infra.servers.s3 import with_folder
from infra.settings_groups import LocalS3Settings, S3Settings
from infra.store.flush import flush, flush_removal
from infra.store.objects import ObjectStore


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, s3_home: Path) -> list[str]:
    """Return a list that gets the synced paths in order, below the server's folder where they are in it."""
    found: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        found.append(str(path.relative_to(s3_home)) if path.is_relative_to(s3_home) else path.name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return found


def test_settings_of_the_own_server_have_its_folder(s3_settings: S3Settings, s3_home: Path) -> None:
    assert isinstance(s3_settings, LocalS3Settings)
    assert s3_settings.folder == s3_home / "s3"
    assert with_folder(S3Settings(prefix="p"), s3_home).folder == s3_home / "s3"


def test_a_file_is_synced_before_its_folder_and_new_folders_up_to_the_bucket(
    object_store: ObjectStore, synced: list[str]
) -> None:
    bucket = f"s3/{object_store.bucket}"
    for key in ("flush/a/one", "flush/a/two"):
        object_store.put_bytes(key, b"x")
    flush(object_store, ["flush/a/one", "flush/a/two"])
    expected = [f"{bucket}/flush/a/one", f"{bucket}/flush/a/two", f"{bucket}/flush/a", f"{bucket}/flush", bucket]
    assert synced[:5] == expected
    assert synced[5:] in ([], ["s3"])  # once for the session's bucket
    del synced[:]
    object_store.put_bytes("flush/b/three", b"x")
    flush(object_store, ["flush/a/one", "flush/b/three"])
    assert synced == [
        f"{bucket}/flush/a/one", f"{bucket}/flush/b/three", f"{bucket}/flush/a", f"{bucket}/flush/b", f"{bucket}/flush",
    ]  # fmt: skip


def test_a_removal_is_synced_in_the_objects_folder(object_store: ObjectStore, synced: list[str]) -> None:
    for key in ("flush/c/d/one", "flush/c/two"):
        object_store.put_bytes(key, b"x")
    object_store.delete(["flush/c/d/one"])
    flush_removal(object_store, ["flush/c/d/one"])
    folder = f"s3/{object_store.bucket}/flush/c"
    assert synced in ([folder], [f"{folder}/d"])  # the server may have removed the folder with its last object


def test_a_missing_object_cannot_be_synced(object_store: ObjectStore) -> None:
    with pytest.raises(StoreCorrupt, match=r"^flush/none: missing in .*fedbench"):
        flush(object_store, ["flush/none"])


def test_a_disk_that_refuses_is_named(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.put_bytes("flush/bad", b"x")

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreUnavailable, match="flush/bad: cannot be written to the disk: Input/output error"):
        flush(object_store, ["flush/bad"])


def test_nothing_is_synced_for_another_store(s3_settings: S3Settings, synced: list[str]) -> None:
    fields = {name: getattr(s3_settings, name) for name in S3Settings.model_fields}
    foreign = ObjectStore(S3Settings(**fields))
    foreign.put_bytes("flush/foreign", b"x")
    flush(foreign, ["flush/foreign"])
    flush_removal(foreign, ["flush/foreign"])
    assert synced == []


def test_a_file_of_this_machine_is_synced_before_its_name_and_its_folder_after(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "state.json", Path.replace

    def renamed(temporary: Path, target: Any) -> Path:
        synced.append("renamed")
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", renamed)
    write_durably(path, "one")
    assert synced == [f".state.json.{os.getpid()}.tmp", "renamed", tmp_path.name]
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o600)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, "two")
    assert (path.read_text(), os.listdir(tmp_path)) == ("one", ["state.json"])
