"""Full disks: errors that file systems and libraries really raise when no space is left."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from flows.cli.console import LogFile
from flows.cli.shared import plain_errors
from flows.coordinator.restarts import Restarts
from infra.errors import DiskFull, SlotLost, StoreUnavailable, TrackingUnavailable
from infra.files.disk import full_disk, full_disk_named, says_full, without_room
from infra.servers.s3 import S3Service
from infra.settings import Settings, load_settings
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from infra.tracking.client import answering
from tasks.data.synthetic import make_synthetic_street
from tasks.errors import DataError
from tasks.spec.data import SyntheticStreet

MEGABYTES = 6
FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, a device of Linux")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system of six megabytes."""
    folder = tmp_path_factory.mktemp("small")
    options = ["-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs the program mount")
    if mounted.returncode != 0:
        pytest.skip(f"only root with CAP_SYS_ADMIN may mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def filled(small: Path) -> Iterator[Path]:
    """Return the folder of the small file system, without a free byte."""
    yield fill(small)
    (small / "fill").unlink()


def fill(folder: Path) -> Path:
    """Write a file until no byte is free, and return ``folder``."""
    with (folder / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        write_for_ever(file)
    return folder


def write_for_ever(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(4096))


def error_of_full_device() -> OSError:
    with pytest.raises(OSError, match="No space left") as raised, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    return raised.value


@FULL
def test_a_full_disk_is_recognised_behind_the_error_raised_from_it() -> None:
    error = error_of_full_device()
    assert error.errno == errno.ENOSPC
    assert says_full(error)
    worded = DataError("images: cannot be written")
    worded.__context__, worded.__suppress_context__ = error, True  # as "from None" sets it
    assert says_full(worded)
    assert says_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not says_full(OSError(errno.EACCES, "Permission denied"))


def test_a_full_disk_is_recognised_in_sqlites_error_without_errno(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "small.db")
    database.execute("PRAGMA max_page_count = 3")
    database.execute("CREATE TABLE rows (text)")
    with pytest.raises(sqlite3.OperationalError) as raised:
        database.executemany("INSERT INTO rows VALUES (?)", [("x" * 1000,)] * 100)
    assert says_full(raised.value)


def test_a_full_disk_is_recognised_in_errors_of_libraries(filled: Path) -> None:
    with pytest.raises(Exception, match="No space left") as by_safetensors:
        save_file({"weights": torch.zeros(1000)}, filled / "weights.safetensors")
    assert not isinstance(by_safetensors.value, OSError)
    assert says_full(by_safetensors.value)
    with pytest.raises(OSError, match="No space left") as by_pillow:
        Image.effect_noise((500, 500), 90).save(filled / "noise.png")
    assert says_full(by_pillow.value)
    with pytest.raises(DataError) as by_drawing:
        make_synthetic_street(SyntheticStreet(train_images=40, test_images=10, width=96, height=80), filled / "street")
    assert says_full(by_drawing.value)


@pytest.mark.parametrize("error", [SlotLost("slot 1: its process ended"), StoreUnavailable("no answer")])
def test_an_error_that_may_come_from_a_full_disk_names_the_full_folder(filled: Path, error: Exception) -> None:
    with pytest.raises(DiskFull) as raised, full_disk_named(filled / "home"):
        raise error
    assert str(raised.value) == (
        f"no space left under {filled / 'home'} (0 MB free in {filled}): make room, then run the same command again"
    )
    assert not Restarts().allow(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_with_free_space_the_error_is_unchanged(tmp_path: Path) -> None:
    with pytest.raises(SlotLost), full_disk_named(tmp_path):
        raise SlotLost("slot 1: its process ended")
    assert without_room([(tmp_path, tmp_path)]) is None


def test_the_temporary_folder_is_checked_too(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(filled))
    found = full_disk(SlotLost("gone"), tmp_path, suspected=True)
    assert found is not None
    assert found.found == f"no space left under {filled} (0 MB free in {filled})"


def test_a_file_system_without_free_inodes_is_full(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m,nr_inodes=2", "tmpfs", str(tmp_path)])
    if mounted.returncode != 0:
        pytest.skip("only root with CAP_SYS_ADMIN may mount")
    try:
        (tmp_path / "last").touch()
        found = without_room([(tmp_path, tmp_path)])
        assert found is not None
        assert "which can hold no further files" in str(found)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@FULL
def test_a_full_file_system_outside_of_fedbench_is_reported_as_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.files.disk.LITTLE_BYTES", 0)  # passes even if this machine has little free space
    found = full_disk(error_of_full_device(), tmp_path, suspected=False)
    assert found is not None
    assert "so another file system is full" in str(found)


def test_our_own_store_reports_a_full_disk_at_once_and_stops_on_one(small: Path) -> None:
    home = small / "home"
    server = S3Service(home)
    server.ensure()
    try:
        objects = ObjectStore(server.resolved(Settings(home=home).s3, server.address))
        objects.ensure_bucket()
        objects.put_bytes("first", bytes(3_000_000))
        with pytest.raises(DiskFull, match=rf"no space left under {home} \(3 MB free in {home / 's3'}\)"):
            objects.put_bytes("second", bytes(4_000_000))
        large = small.parent / "large"
        large.write_bytes(bytes(4_000_000))
        with pytest.raises(DiskFull):
            objects.put_file("third", large)
        objects.put_bytes("fourth", b"there is room for this")
        assert sorted(objects.list()) == ["first", "fourth"]
        fill(small)
    finally:
        server.stop()
        (small / "fill").unlink(missing_ok=True)
    assert server.running() is None


def test_settings_know_the_folder_of_their_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "services").mkdir()
    published = {"port": 1234, "pid": 1, "created": 0.0, "address": "http://127.0.0.1:1234"}
    (tmp_path / "services" / "s3.json").write_text(json.dumps(published))
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("FEDBENCH_S3__ENDPOINT", "http://127.0.0.1:1234")
    own = load_settings().s3
    assert own.own_folder() == tmp_path / "s3"
    assert own == S3Settings(endpoint="http://127.0.0.1:1234")
    assert pickle.loads(pickle.dumps(ObjectStore(own))).settings.own_folder() == tmp_path / "s3"
    for other in ("http://127.0.0.1:1235", "http://store.example:1234"):
        monkeypatch.setenv("FEDBENCH_S3__ENDPOINT", other)
        assert load_settings().s3.own_folder() is None


def test_mlflow_on_a_full_disk_is_only_unavailable(filled: Path) -> None:
    with (
        pytest.raises(TrackingUnavailable, match=rf"no space left under {filled} \(0 MB free in {filled}\)"),
        answering(f"sqlite:///{filled / 'mlflow.db'}"),
    ):
        (filled / "mlflow.db").write_bytes(bytes(100_000))


@FULL
def test_a_log_on_a_full_disk_costs_lines_and_no_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile(Path("/dev/full"))
    for number in range(3):
        log.handle(logging.LogRecord("test", logging.INFO, __file__, 1, f"line {number}", None, None))
    assert capsys.readouterr().err == ""
    log.close()
    assert capsys.readouterr().err.startswith("/dev/full: 3 lines are missing: no space was left")


@FULL
def test_a_command_whose_output_goes_to_a_full_disk_says_so(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", "version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "No space left on device" in ended.stderr


def test_a_command_names_the_full_folder(
    filled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(filled / "home"))
    with pytest.raises(typer.Exit) as raised, plain_errors():
        (filled / "report.html").write_bytes(bytes(100_000))
    assert raised.value.exit_code == 1
    assert f"failed: no space left under {filled / 'home'} (0 MB free" in capsys.readouterr().err
