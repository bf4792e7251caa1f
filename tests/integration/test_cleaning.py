"""Clean-up of a store with a killed run in it: the run can still be resumed from the remaining objects."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from flows.stored.leftovers import clean
from flows.stored.runs import opened_store
from infra.files.lock import run_lock
from infra.leftovers.store import NEVER_COMMITTED, OLD_GLOBAL, OLD_UPDATE, SERVER_TEMPORARY
from infra.settings import Settings
from tests.integration.conftest import FinishedRun
from tests.integration.homes import TINY, Home, assert_consistent, digests
from tests.waiting import eventually

pytestmark = pytest.mark.integration

NAME = "cleaned"
WEEK = 8 * 86400


class KeepingHome(Home):
    """A home whose runs keep every update and global model. It has a mark of its own for its processes."""

    @property
    def mark(self) -> str:
        return f"{self.path} {NAME}"

    def environment(self) -> dict[str, str]:
        return super().environment() | {"FEDBENCH_KEEP_UPDATES": "true", "FEDBENCH_KEEP_GLOBALS": "9"}


class CleaningHome(Home):
    """A home whose clean-up sees only the test's own scratch folders."""

    temporary: Path

    def environment(self) -> dict[str, str]:
        return super().environment() | {"TMPDIR": str(self.temporary)}

    def run(self, *arguments: object, timeout: float = 600.0, **options: Any) -> subprocess.CompletedProcess[str]:
        return super().run(*arguments, timeout=timeout, **options)

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Return the size and time of writing of every object of every federation."""
        bucket = self.path / "s3" / "fedbench" / "federations"
        files = [path for path in bucket.rglob("*") if path.is_file()]
        return {str(path.relative_to(bucket)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def still(path: Path) -> bool:
    """Return whether nothing in the folder changes for a second. A server still writes what a killed client sent."""

    def state() -> list[tuple[str, int, int]]:
        files = [(str(file), file.stat()) for file in path.rglob("*")]
        return sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)

    try:
        before = state()
        time.sleep(1.0)
        return state() == before
    except FileNotFoundError:
        return False


def age(path: Path, seconds: float) -> None:
    for file in [*path.rglob("*"), path]:
        os.utime(file, (time.time() - seconds, time.time() - seconds))


@pytest.fixture(scope="module")
def home(shared_home: Home, tmp_path_factory: pytest.TempPathFactory) -> CleaningHome:
    """Return the shared home with a run that was killed in its second or third round, eight days ago."""
    keeping = KeepingHome(shared_home.path)
    spec, output = keeping.spec_file(TINY, NAME), tmp_path_factory.mktemp("killed") / "output.txt"
    process = keeping.start("run", spec, "--name", NAME, "--slots", 2, output=output)
    layout = keeping.layout(NAME)

    def in_a_later_round() -> bool:
        done = layout.committed_rounds(keeping.keys(NAME))
        updates = layout.updates(len(done))
        return len(done) > 1 and any(key.startswith(updates) and key.endswith(".json") for key in keeping.keys(NAME))

    try:
        settings = Settings(home=shared_home.path)
        assert eventually(lambda: len(layout.committed_rounds(keeping.keys(NAME))) > 1, 300), output.read_text()
        while_running = clean(settings, apply=True, older_than_days=0, names=[NAME])
        assert eventually(lambda: process.poll() is not None or in_a_later_round(), 300), output.read_text()
        assert process.poll() is None, output.read_text()
    finally:
        process.kill()
        process.wait()
    # A running federation is left untouched, even if some of its objects could be removed.
    assert while_running.notes == [f"{NAME}: running, left alone"]
    assert while_running.leftovers == []
    assert eventually(lambda: not keeping.processes(), 60), keeping.processes()
    # The kill may have left an incomplete upload in parts, which the server keeps as a file. Make one in any case.
    with opened_store(settings) as objects:
        unfinished = len(layout.committed_rounds(keeping.keys(NAME)))
        bucket, key, s3 = objects.bucket, layout.update_weights(unfinished, "5"), objects._s3()
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(6_000_000))
    assert eventually(lambda: still(keeping.object_path(layout.root)), 60)
    age(keeping.object_path(layout.root), WEEK)
    cleaning = CleaningHome(shared_home.path)
    cleaning.temporary = tmp_path_factory.mktemp("temporary")
    return cleaning


def test_the_killed_run_has_left_objects_to_remove(home: CleaningHome) -> None:
    keys, layout = home.keys(NAME), home.layout(NAME)
    assert layout.global_weights(0) in keys
    assert layout.update_weights(1, "3") in keys


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def test_a_dry_run_prints_what_it_would_remove_and_changes_nothing(home: CleaningHome) -> None:
    before = home.snapshot()
    printed = succeeded(home.run("clean", NAME, "--keys"))
    assert home.snapshot() == before
    assert OLD_UPDATE in printed
    assert NEVER_COMMITTED in printed
    assert home.layout(NAME).update_weights(1, "3") in printed
    assert "would be removed with --apply" in printed
    with run_lock(home.path, NAME):
        printed = succeeded(home.run("clean", NAME, "--keys"))
    assert f"{NAME}: running, left alone" in printed
    assert "nothing to remove" in printed


def test_a_run_resumes_without_the_removed_objects(home: CleaningHome, undisturbed: FinishedRun) -> None:
    layout = home.layout(NAME)
    unfinished = len(home.layout(NAME).committed_rounds(home.keys(NAME)))
    left = home.object_path(layout.updates(unfinished)) / ".rclone_temp_put_of-a-killed-server"
    left.write_bytes(b"half")
    age(left, 2 * 3600)
    scratch = home.temporary / "fedbench-0123abcd"
    scratch.mkdir(mode=0o700)
    age(scratch, WEEK)
    temporaries = sorted(home.object_path(layout.root).rglob(".rclone_temp_*"))
    assert {path.name.split("_")[2] for path in temporaries} == {"multipart", "put"}
    others = {key: value for key, value in home.snapshot().items() if not key.startswith(f"{NAME}/")}
    plan = home.object_path(layout.plan(unfinished)).read_bytes()
    orphans = [key for key in home.keys(NAME) if key.startswith(layout.updates(unfinished)) and ".rclone" not in key]

    printed = succeeded(home.run("clean", "--apply"))
    assert "removed: " in printed
    assert "Beginning flow run" not in printed  # only the log has it
    assert f"{left}: removed ({SERVER_TEMPORARY})" in (home.path / "logs" / "clean-up.log").read_text()
    keys, after = home.keys(NAME), home.snapshot()
    assert not [key for key in keys if "/updates/" in key or "/evaluations/" in key]
    assert not any(path.exists() for path in temporaries)
    assert not scratch.exists()
    assert home.object_path(layout.plan(unfinished)).read_bytes() == plan
    assert {key: value for key, value in after.items() if not key.startswith(f"{NAME}/")} == others
    kind, rows = home.artifact("clean-up")
    assert kind == "table"
    found = {(row["federation"], row["reason"]): row["objects"] for row in rows}
    assert found[NAME, OLD_UPDATE] == 2 * 3 * (unfinished - 1)
    assert found[NAME, NEVER_COMMITTED] >= len(orphans) > 0
    assert found["(this machine)", SERVER_TEMPORARY] == len(temporaries)
    assert {row["not removed"] for row in rows} == {0}
    assert ("clean-up", "COMPLETED") in home.flow_runs("clean-up")

    assert f"{unfinished - 1}" in succeeded(home.run("show", NAME))
    succeeded(home.run("resume", NAME, "--slots", 2))
    assert digests(home.records(NAME)) == digests(undisturbed.records)
    assert "nothing to remove" in succeeded(home.run("clean", NAME))
    assert_consistent(home, NAME, rounds=3)


def test_a_cleaned_run_is_shown_evaluated_and_extended(home: CleaningHome) -> None:
    layout, records = home.layout(NAME), home.records(NAME)
    best = records[-1].decision.best_round
    old = next(number for number in range(4) if number not in (best, 2, 3))
    home.object_path(layout.global_weights(old)).write_bytes(b"kept before, when more were kept")
    printed = succeeded(home.run("clean", NAME, "--apply"))
    assert OLD_GLOBAL in printed
    assert "removed: 1 object" in printed
    assert "3/3" in succeeded(home.run("show", NAME))
    assert "map50_voc10" in succeeded(home.run("evaluate", NAME))
    succeeded(home.run("resume", NAME, "--max-rounds", 4, "--slots", 2))
    assert_consistent(home, NAME, rounds=4)
    assert home.records(NAME)[:4] == records


def test_a_federation_is_removed_when_nobody_runs_it(home: CleaningHome) -> None:
    before = home.snapshot()
    asked = home.run("remove", NAME)  # nobody answers the question
    assert asked.returncode != 0
    assert f"remove {NAME}: " in asked.stdout
    with run_lock(home.path, NAME):
        refused = home.run("remove", NAME, "--yes")
    assert refused.returncode == 2
    assert f"{NAME}: already running in process {os.getpid()}" in refused.stdout
    assert home.snapshot() == before
    assert f"removed {NAME}: " in succeeded(home.run("remove", NAME, "--yes"))
    assert home.snapshot() == {key: value for key, value in before.items() if not key.startswith(f"{NAME}/")}
    assert not (home.path / "runs" / NAME).exists()
    with opened_store(Settings(home=home.path)) as objects:
        assert objects.incomplete_uploads(home.layout(NAME).root) == []
    again = home.run("remove", NAME, "--yes")
    assert again.returncode == 2
    assert f"{NAME}: no such federation in the store; expected one of: " in again.stdout
    assert "Traceback" not in asked.stdout + refused.stdout + again.stdout


def test_wrong_names_and_numbers_are_refused(home: CleaningHome) -> None:
    unknown = home.run("clean", "nobody", "--apply")
    assert unknown.returncode == 2
    assert "nobody: no such federation in the store" in unknown.stdout
    assert home.run("clean", "--older-than", "-1").returncode == 2
    assert "Traceback" not in unknown.stdout
