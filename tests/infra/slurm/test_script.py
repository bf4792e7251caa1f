"""The batch script: its options, and that it names the file of credentials and holds none."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.slurm.script import WorkerJobs, batch_script, job_name

JOBS = WorkerJobs("a100", "gpu", workers=4, gpus=2, cpus=16, seconds=28800, lead=300, idle=600)
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --comment=gpu
#SBATCH --partition=a100
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:2
#SBATCH --cpus-per-task=16
#SBATCH --time=8:00:00
#SBATCH --array=1-4
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/ann/.fedbench/slurm/logs/%A_%a.log
#SBATCH --export=HOME,PATH,USER,LANG,LD_LIBRARY_PATH
#SBATCH --account=vision
set -eu
umask 077
if [ ! -r /home/ann/.fedbench/slurm/worker.env ]; then
  echo "error: $(hostname): expected a readable file "/home/ann/.fedbench/slurm/worker.env": its folder must be shared by all nodes" >&2
  exit 2
fi
# Addresses and credentials of the servers; only you can read the file.
. /home/ann/.fedbench/slurm/worker.env
exec /opt/fedbench/bin/python -P -m infra.slurm.job --pool gpu --gpus 2 --lead 300 --idle 600
"""  # noqa: E501
HOME = Path("/home/ann/.fedbench")


def script_of(home: Path = HOME, **changes: object) -> str:
    return batch_script(dataclasses.replace(JOBS, **changes), home, "/opt/fedbench/bin/python")  # type: ignore[arg-type]


def lines_of(text: str) -> list[str]:
    return text.splitlines()


def test_the_whole_script() -> None:
    assert script_of(options=("--account=vision",)) == SCRIPT.replace("NAME", job_name(HOME))


def test_without_gpus_and_cpus_the_partitions_defaults_hold() -> None:
    lines = lines_of(script_of(gpus=0, cpus=None))
    assert not [line for line in lines if "--gres" in line or "--cpus-per-task" in line]
    assert lines[-1].endswith("--gpus 0 --lead 300 --idle 600")


def test_a_home_with_blanks_is_quoted_for_slurm_and_for_the_shell(tmp_path: Path) -> None:
    home = tmp_path / "a home's #1"
    script = script_of(home)
    assert f'#SBATCH --output="{home}/slurm/logs/%A_%a.log"' in lines_of(script)
    file = tmp_path / "script.sh"
    file.write_text(script)
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"expected a readable file {home}/slurm/worker.env: its folder must be shared by all nodes" in done.stderr


def test_homes_have_jobs_of_different_names(tmp_path: Path) -> None:
    assert job_name(tmp_path / "a") == job_name(tmp_path / "a") != job_name(tmp_path / "b")
    assert job_name(tmp_path / "a").startswith("fedbench-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seconds": 359},
            r"--time: expected at least 0:06:00: turns are handed back 0:05:00 \(--lead\) .* found 0:05:59",
        ),
        ({"lead": 9}, "--lead: expected at least 0:00:10, found 0:00:09"),
        (
            {"options": ("account=vision",)},
            r"--sbatch: expected an option of sbatch, as in --account=vision, found 'acc",
        ),
        ({"options": ("--mem=1\n#SBATCH --export=ALL",)}, "--sbatch: expected an option of sbatch"),
    ],
)
def test_what_slurm_could_not_do_is_refused(changes: dict[str, object], message: str) -> None:
    dataclasses.replace(JOBS, seconds=360).check()
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(JOBS, **changes).check()  # type: ignore[arg-type]
