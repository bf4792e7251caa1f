"""What Slurm's commands print (recorded from Slurm 22.05), and a machine without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SettingsError, SlurmFailed
from infra.slurm.commands import Job, Node, list_jobs, parse_jobs, parse_nodes, require_programs

SQUEUE = """\
7_1|work|gpu|RUNNING|0:31|50:00|n1|None
7_2|work|gpu|PENDING|0:00|50:00||Resources
5_1|work|gpu|CANCELLED|1:02:10|8:00:00|n2|None
3_1|work|gpu|PENDING|0:00|8:00:00||(ReqNodeNotAvail, UnavailableNodes:n1|n2)
"""
SINFO = """\
vm|127.0.0.1|1:00:00|(null)
gpu07.cluster|10.1.0.7|infinite|fs:1(S:0),gpu:a100:4(S:0-1)
gpu08.cluster|10.1.0.8|1-00:00:00|gpu:2
"""


def test_jobs_are_read_with_empty_nodes_and_bars_in_reasons() -> None:
    jobs = parse_jobs(SQUEUE)
    assert jobs[0] == Job("7_1", "work", "gpu", "RUNNING", "0:31", "50:00", "n1", "None")
    assert [job.node for job in jobs] == ["n1", "", "n2", ""]
    assert [job.is_open for job in jobs] == [True, True, False, True]
    assert jobs[3].reason == "(ReqNodeNotAvail, UnavailableNodes:n1|n2)"
    assert parse_jobs("") == []


@pytest.mark.parametrize("state", ["COMPLETED", "TIMEOUT", "FAILED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"])
def test_a_job_that_has_ended_is_not_open(state: str) -> None:
    assert not parse_jobs(f"7_1|work|gpu|{state}|0:31|50:00|n1|None")[0].is_open


def test_other_lines_are_an_error() -> None:
    with pytest.raises(
        SlurmFailed, match=r"squeue: expected lines of 8 fields with \| between them, found 'slurm_load"
    ):
        parse_jobs("slurm_load_jobs error: Unable to contact slurm controller")


def test_nodes_are_read_with_their_limit_and_gpus() -> None:
    assert parse_nodes(SINFO) == [
        (Node("vm", "127.0.0.1", False), 3600),
        (Node("gpu07.cluster", "10.1.0.7", True), None),
        (Node("gpu08.cluster", "10.1.0.8", True), 86400),
    ]


def test_a_machine_without_slurm_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^sbatch: not found on PATH; expected a machine that submits jobs"):
        require_programs()


# Printed by squeue on a machine with Slurm's commands and no slurm.conf.
NO_CLUSTER = """\
squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
squeue: error: _establish_config_source: failed to fetch config
squeue: fatal: Could not establish a configuration source
"""


def squeue_that_fails(folder: Path, message: str) -> None:
    (folder / "message").write_text(message)
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\n/bin/cat {folder}/message >&2\nexit 1\n")
    program.chmod(0o755)


def test_a_commands_own_message_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue_that_fails(tmp_path, "squeue: error: Unable to contact slurm controller\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmFailed, match=r"^squeue: Unable to contact slurm controller$"):
        list_jobs("fedbench-1")


def test_a_machine_that_belongs_to_no_cluster_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue_that_fails(tmp_path, NO_CLUSTER)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^squeue: this machine has no Slurm configuration \(slurm.conf"):
        list_jobs("fedbench-1")
