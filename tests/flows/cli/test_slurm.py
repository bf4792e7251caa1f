"""``fedbench slurm`` where nothing can be submitted: each mistake is named, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.command import fedbench

pytestmark = pytest.mark.usefixtures("own_environment")

UP = ("slurm", "up", "--partition", "gpu", "--time", "8:00:00")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home without a stack, on a machine without Slurm."""
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path / "home"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path / "home"


@pytest.mark.parametrize("command", [UP, (*UP, "--dry-run"), ("slurm", "status"), ("slurm", "down")])
def test_a_machine_without_slurm_is_reported(home: Path, command: tuple[str, ...]) -> None:
    result = fedbench(*command)
    assert result.exit_code == 2
    assert "error: sbatch: not found on PATH; expected a machine that submits jobs to a Slurm cluster" in result.output
    assert not home.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time", "8:00"), "--time: expected H:MM:SS, as in 8:00:00, or D-HH:MM:SS, found 8:00"),
        (("--time", "0:04:00"), "--time: expected at least 0:06:00"),
        (("--time", "1:00:00", "--lead", "60"), "--lead: expected H:MM:SS"),
        (("--time", "1:00:00", "--idle", "0:00:00"), "--idle: expected more than zero"),
        (("--time", "1:00:00", "--pool", "a/b"), "--pool: "),
        (("--time", "1:00:00", "--sbatch", "account=a"), "--sbatch: expected an option of sbatch"),
    ],
)
def test_mistakes_in_options_come_before_slurm_is_asked(home: Path, options: tuple[str, ...], message: str) -> None:
    result = fedbench("slurm", "up", "--partition", "gpu", *options)
    assert result.exit_code == 2
    assert f"error: {message}" in result.output
    assert not home.exists()


def test_a_stack_that_is_not_up_is_reported_before_anything_is_submitted(home: Path, tmp_path: Path) -> None:
    """The programs print what sinfo prints of a partition; sbatch would write a file."""
    submitted = tmp_path / "submitted"
    for name in ("sbatch", "squeue", "scancel"):
        _program(tmp_path / "programs" / name, f"echo called > {submitted}")
    _program(tmp_path / "programs" / "sinfo", "echo 'gpu07|10.1.0.7|infinite|gpu:a100:4'")
    result = fedbench(*UP)
    assert result.exit_code == 2
    assert f"error: the stack of {home} is not up: expected servers for the workers" in result.output
    assert not submitted.exists()
    assert not home.exists()


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
