"""The environment file of the jobs: what is in it, what is not, and which servers are refused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.errors import SettingsError
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.slurm.commands import Node, Partition
from infra.slurm.environment import Servers, find_servers, job_environment, write_job_environment
from infra.slurm.jobs import check_partition, check_reach
from infra.slurm.script import WorkerJobs

STORE = S3Settings(
    endpoint="http://10.1.2.3:9000", access_key=SecretStr("key"), secret_key=SecretStr('it\'s $secret "2"')
)
SERVERS = Servers("http://10.1.2.3:4200/api", "fedbench:password", STORE, {})
ON_LOOPBACK = Servers("http://127.0.0.1:4200/api", "fedbench:password", STORE, {})
HERE = Node("elsewhere", "127.0.0.1", False)
THERE = Node("gpu07.cluster", "10.1.0.7", True)
JOBS = WorkerJobs("a100", "gpu", workers=1, gpus=1, cpus=None, seconds=3600, lead=300, idle=600)


def test_a_shell_reads_the_variables_as_they_were(tmp_path: Path) -> None:
    home = tmp_path / "home"
    variables = job_environment(Settings(home=home), SERVERS, {})
    path = write_job_environment(home, variables)
    assert path == home / "slurm" / "worker.env"
    assert path.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o077 == 0
    script = f'. {shlex.quote(str(path))}; exec "$0" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    found = json.loads(subprocess.check_output(["bash", "-c", script, sys.executable], env={}))
    assert {name: found[name] for name in variables} == variables
    assert found["FEDBENCH_S3__SECRET_KEY"] == 'it\'s $secret "2"'
    assert found["PREFECT_API_AUTH_STRING"] == "fedbench:password"


def test_data_folders_are_carried_and_what_belongs_to_this_machine_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("{}")
    settings = Settings(home=tmp_path, street_dir=Path("street"), data_roots={"yards": Path("/data/yards")})
    given = {
        "FEDBENCH_STREET_DIR": "street",
        "FEDBENCH_IMAGE_CACHE_MEGABYTES": "100",
        "FEDBENCH_WORKER__SLOTS_PER_GPU": "2",
        "FEDBENCH_HOME": str(tmp_path),
        "FEDBENCH_SLOTS": "2",
        "FEDBENCH_MLFLOW_DATABASE_URL": "postgresql://user:password@host/database",
        "FEDBENCH_S3__ENDPOINT": "http://127.0.0.1:1",
        "AWS_SECRET_ACCESS_KEY": "another store's",
        "https_proxy": "http://proxy:3128",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "HISTFILE": "/home/ann/.history",
    }
    variables = job_environment(settings, SERVERS, given)
    assert variables["FEDBENCH_STREET_DIR"] == str(tmp_path / "street")
    assert json.loads(variables["FEDBENCH_DATA_ROOTS"]) == {"yards": "/data/yards"}
    assert variables["FEDBENCH_SETTINGS"] == str(tmp_path / "settings.yaml")
    assert variables["FEDBENCH_S3__ENDPOINT"] == "http://10.1.2.3:9000"
    carried = ("FEDBENCH_IMAGE_CACHE_MEGABYTES", "FEDBENCH_WORKER__SLOTS_PER_GPU", "https_proxy", "SSL_CERT_FILE")
    assert all(variables[name] == given[name] for name in carried)
    for name in (
        "FEDBENCH_HOME",
        "FEDBENCH_SLOTS",
        "FEDBENCH_MLFLOW_DATABASE_URL",
        "AWS_SECRET_ACCESS_KEY",
        "HISTFILE",
    ):
        assert name not in variables


def test_servers_that_the_settings_name_need_no_stack(tmp_path: Path) -> None:
    elsewhere = S3Settings(endpoint="https://s3.example.org")
    settings = Settings(home=tmp_path, prefect_api_url="https://prefect.example.org/api", s3=elsewhere)
    given = {"PREFECT_API_KEY": "cloud", "AWS_PROFILE": "own", "PREFECT_HOME": "/home/ann/.prefect"}
    servers = find_servers(settings, given)
    assert servers.addresses == {"Prefect": "https://prefect.example.org/api", "S3": "https://s3.example.org"}
    assert servers.credentials == {"PREFECT_API_KEY": "cloud", "AWS_PROFILE": "own"}
    assert servers.on_loopback == []


def test_a_stack_that_is_not_up_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"the stack of .* is not up: expected servers for the workers; start them: "
    ):
        find_servers(Settings(home=tmp_path))


def test_servers_on_loopback_are_refused_if_the_partition_has_other_hosts() -> None:
    check_reach(ON_LOOPBACK, Partition("local", None, (HERE,)))
    check_reach(SERVERS, Partition("a100", None, (HERE, THERE)))
    with pytest.raises(
        SettingsError,
        match=r"ports\.host: expected an address .* nodes of partition a100 reach \(gpu07\.cluster\), found servers on "
        r"loopback alone: Prefect http://127\.0\.0\.1:4200/api; set ports\.host in settings\.yaml, then: fedbench down",
    ):
        check_reach(ON_LOOPBACK, Partition("a100", None, (HERE, THERE)))


def test_what_the_partition_does_not_have_is_refused() -> None:
    check_partition(Partition("a100", 3600, (HERE, THERE)), JOBS)
    with pytest.raises(SettingsError, match=r"--gpus: expected 0, partition cpu has no nodes with GPUs .* found 1"):
        check_partition(Partition("cpu", None, (HERE,)), JOBS)
    with pytest.raises(
        SettingsError, match="--time: expected at most 0:30:00, the limit of partition a100, found 1:00:00"
    ):
        check_partition(Partition("a100", 1800, (THERE,)), JOBS)
