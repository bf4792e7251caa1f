"""Leftovers of dead processes on a disk."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from infra.leftovers.machine import machine_leftovers, registering_leftovers, run_folder_leftovers
from tests.infra.leftovers.ages import DAYS, MINUTES, NOW, aged


def test_leftovers_of_dead_processes_are_found_by_name_and_age(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    gone = [
        aged(home / "cache" / "weights" / "00" / "a.tmp", 61 * MINUTES),
        aged(home / "cache" / "data" / "synthetic-street" / ".abc.x1", 61 * MINUTES, None),
        aged(home / "s3" / "fedbench" / "federations" / ".rclone_temp_put_1", 61 * MINUTES),
        aged(temporary / "fedbench-abcd_123", 8 * DAYS, None),
    ]
    aged(home / "cache" / "weights" / "00" / "b.tmp", 59 * MINUTES)
    aged(home / "cache" / "weights" / "00" / "c.safetensors", 99 * DAYS)
    aged(home / "cache" / "data" / "synthetic-street" / "abc", 99 * DAYS, None)
    aged(home / "s3" / "fedbench" / "federations" / ".rclone_temp_put_2", 59 * MINUTES)
    aged(temporary / "fedbench-abcd_124", 6 * DAYS, None)
    aged(temporary / "fedbench-of-mine", 99 * DAYS, None)
    aged(temporary / "fedbench-settings", 99 * DAYS)
    aged(temporary / "fedbench-abcd_125", 99 * DAYS, None).chmod(0o755)
    (temporary / "fedbench-abcd_126").symlink_to(home)
    found = machine_leftovers(home, temporary, embedded_store=True, older_than=7 * DAYS, now=NOW)
    assert sorted(leftover.key for leftover in found) == sorted(map(str, gone))
    assert {leftover.bytes for leftover in found} == {3, 5}
    other = machine_leftovers(home, temporary, embedded_store=False, older_than=timedelta(0), now=NOW)
    # A store elsewhere keeps nothing in this home. A scratch folder is left for a day, even if the limit is shorter.
    assert sorted(Path(leftover.key).name for leftover in other) == [
        ".abc.x1",
        "a.tmp",
        "fedbench-abcd_123",
        "fedbench-abcd_124",
    ]


def test_folders_of_runs_are_leftovers_when_all_in_them_is_old(tmp_path: Path) -> None:
    folder = aged(tmp_path / "runs" / "mine", 8 * DAYS, None)
    (found,) = run_folder_leftovers(folder, "mine", 7 * DAYS, NOW)
    assert (found.key, found.bytes, found.federation) == (str(folder), 3, "mine")
    assert run_folder_leftovers(folder, "mine", 9 * DAYS, NOW) == []
    assert registering_leftovers(folder, "mine", NOW) == []
    half = aged(folder / "registering", 61 * MINUTES, None)
    (found,) = registering_leftovers(folder, "mine", NOW)
    assert found.key == str(half)
    assert run_folder_leftovers(folder, "mine", 7 * DAYS, NOW) == []  # it contains something young
