"""Damaged, foreign, locked and newer databases, with SQLite's own files."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from flows.coordinator.planted import hold_back_planted
from infra.errors import ServiceFailed, TrackingUnavailable
from infra.files.sqlite_files import damage
from infra.servers.exposed import is_guarded
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.tracking.client import answering

KNOWN = "8f5eda7c1dd7"  # a revision that the pinned Prefect has


def make(path: Path, *, revision: str = KNOWN, rows: int = 2000) -> Path:
    """Create a database with a revision and an index over many pages. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        database.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT)")
        database.execute("CREATE INDEX names ON runs (name)")
        database.executemany("INSERT INTO runs (name) VALUES (?)", [(f"run {number:09}",) for number in range(rows)])
    return path


def flip(path: Path, start: int, count: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(255 - byte for byte in content[start : start + count])
    path.write_bytes(content)


def spoil(path: Path, how: str) -> None:
    match how:
        case "header":
            flip(path, 0, 100)
        case "pages":
            flip(path, path.stat().st_size // 2, 20_000)
        case "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "foreign":
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
        case "folder":
            path.unlink()
            path.mkdir()
        case "log of another":
            path.write_bytes(b"")
            path.with_name(f"{path.name}-wal").write_bytes(bytes(range(256)) * 40)


KINDS = ("header", "pages", "truncated", "foreign", "folder", "log of another")


@pytest.mark.parametrize("how", KINDS)
def test_prefects_damaged_database_is_set_aside_whole(tmp_path: Path, how: str) -> None:
    path = make(tmp_path / "prefect" / "prefect.db")
    spoil(path, how)
    content = None if how == "folder" else path.read_bytes()
    service = PrefectService(tmp_path, auth="fedbench:secret")
    service.prepare()
    (kept,) = [file for file in path.parent.glob("prefect.db.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
    assert not path.exists()
    assert content is None or kept.read_bytes() == content
    assert not path.with_name("prefect.db-wal").exists()
    said: list[str] = []
    assert is_guarded(tmp_path, None)  # no server has opened the new database
    hold_back_planted(Settings(home=tmp_path), service, said.append)
    assert len(said) == 1
    assert "Prefect's database was damaged" in said[0]
    assert str(kept) in said[0]


def test_a_sound_database_and_an_empty_file_are_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "prefect" / "prefect.db")
    service = PrefectService(tmp_path, auth="fedbench:secret")
    service.prepare()
    assert service.set_aside is None
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (2000,)
    path.write_bytes(b"")  # SQLite itself creates an empty file
    PrefectService(tmp_path, auth="fedbench:secret").prepare()
    assert sorted(file.name for file in path.parent.glob("prefect.db*")) == ["prefect.db"]


def test_a_damaged_write_ahead_log_is_no_damaged_database(tmp_path: Path) -> None:
    path = make(tmp_path / "prefect" / "prefect.db")
    path.with_name("prefect.db-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(10_000))
    path.with_name("prefect.db-shm").write_bytes(bytes(range(256)) * 128)
    assert damage(path, whole=True) is None


def test_a_large_database_is_read_whole_only_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "prefect" / "prefect.db")
    flip(path, path.stat().st_size // 2, 20_000)
    monkeypatch.setattr("infra.files.sqlite_files.CHECKED_BYTES", 10_000)
    assert damage(path, whole=False) is None
    assert damage(path, whole=True) is not None


def test_a_database_that_is_kept_locked_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "prefect" / "prefect.db")
    monkeypatch.setattr("infra.files.sqlite_files.LOCKED_SECONDS", 0.0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServiceFailed, match=f"{path}: another process has kept this database locked"):
            PrefectService(tmp_path, auth="fedbench:secret").prepare()
    assert damage(path, whole=True) is None


def test_a_database_of_a_newer_prefect_is_named_and_stays(tmp_path: Path) -> None:
    path = make(tmp_path / "prefect" / "prefect.db", revision="ffffffffffff")
    with pytest.raises(ServiceFailed, match="revision 'ffffffffffff', which a newer prefect has written"):
        PrefectService(tmp_path, auth="fedbench:secret").prepare()
    assert path.exists()
    assert list(path.parent.glob("*.damaged-*")) == []


def test_mlflows_damaged_database_is_left_for_a_person(tmp_path: Path) -> None:
    path = make(tmp_path / "mlflow.db")
    flip(path, 0, 100)
    content = path.read_bytes()
    service = MlflowService(tmp_path, S3Settings())
    service.folder.mkdir()
    with pytest.raises(ServiceFailed, match=r"is damaged\. Runs go on without it") as server:
        service.prepare()
    assert "\n" not in str(server.value)
    uri = f"sqlite:///{path}"
    with (
        pytest.raises(TrackingUnavailable, match=r"is damaged\. Runs go on without it"),
        answering(uri),
        sqlalchemy.create_engine(uri).connect() as connection,  # like MLflow's client, which retries for seconds
    ):
        connection.execute(sqlalchemy.text("SELECT count(*) FROM runs"))
    assert path.read_bytes() == content
