"""Two sites with TLS between them: one has the servers behind Caddy, the other the coordinator and a silo's worker.

All that the second site sends to the first goes through Caddy, with the configuration that the documentation names, and
a certificate of a private authority. ``ca_file`` is all that the second site sets to trust it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.authority import Authority
from tests.integration.debian import program
from tests.integration.homes import FEDBENCH, Home, assert_consistent, tiny
from tests.integration.machines import ROOT, Machine, stack_variables, start_worker, two_machines, why_not
from tests.waiting import eventually

_WHY_NOT = why_not()

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT)),
]

PREFECT, MLFLOW, STORE = 4443, 5443, 9443  # the ports of infra/tls/Caddyfile
POOL, ROUNDS, PATIENCE = "silo-b", 2, 600.0
SPEC = tiny(
    max_rounds=ROUNDS,
    participation={"clients": ["3", "4", "5"], "turn_retries": 5, "check_load": True, "max_load": 1000.0},
)


@dataclass
class Sites:
    """Both machines. ``servers``: the first one's home. ``variables``: the second one's, with credentials."""

    machines: tuple[Machine, Machine]
    servers: Home
    authority: Path
    settings: dict[str, Any]
    variables: dict[str, str]

    def home(self, name: str, *, ca_file: Path | None) -> Path:
        """Make a home at the second site. Its settings name the servers' addresses behind Caddy."""
        home = self.machines[1].folder / name
        home.mkdir()
        settings = self.settings | ({} if ca_file is None else {"ca_file": str(ca_file)})
        (home / "settings.yaml").write_text(yaml.safe_dump(settings))
        return home

    def fedbench(self, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.machines[1].run(FEDBENCH, *arguments, variables={**self.variables, "FEDBENCH_HOME": str(home)})

    def worker(self, home: Path) -> subprocess.Popen[bytes]:
        return start_worker(self.machines[1], home, POOL, self.variables)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    caddy = program("caddy", "caddy")
    folder = tmp_path_factory.mktemp("sites")
    with two_machines(folder) as machines:
        first, second = machines
        servers = Home(first.folder / "home")
        up = first.run(FEDBENCH, "up", "--servers-only", variables={"FEDBENCH_HOME": str(servers.path)})
        assert up.returncode == 0, up.stdout
        found = stack_variables(servers.path / "stack.env")
        assert found["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
        authority = Authority(first.folder / "authority")
        certificate, key = authority.sign(first.address)
        first.start(
            *(caddy, "run", "--config", ROOT / "infra" / "tls" / "Caddyfile", "--adapter", "caddyfile"),
            log=first.folder / "caddy.log",
            XDG_CONFIG_HOME=str(first.folder),
            XDG_DATA_HOME=str(first.folder),
            TLS_CERTIFICATE=str(certificate),
            TLS_KEY=str(key),
        )
        assert eventually(lambda: ports(first) == {PREFECT, MLFLOW, STORE}, 30), (
            first.folder / "caddy.log"
        ).read_text()
        trusted = second.folder / "ca.pem"
        shutil.copyfile(authority.file, trusted)
        base = f"https://{first.address}"
        settings: dict[str, Any] = {
            "prefect_api_url": f"{base}:{PREFECT}/api",
            "mlflow_tracking_uri": f"{base}:{MLFLOW}",
            "s3": {
                "endpoint": f"{base}:{STORE}",
                "access_key": found["FEDBENCH_S3__ACCESS_KEY"],
                "secret_key": found["FEDBENCH_S3__SECRET_KEY"],
            },
            "pools": {"silos": dict.fromkeys(SPEC["participation"]["clients"], POOL), "residents": 1},
            "worker": {"slots": "cpu"},
            "slots": 1,
        }
        named = ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        variables = {name: found[name] for name in named} | {"PREFECT_API_URL": settings["prefect_api_url"]}
        try:
            yield Sites(machines, servers, trusted, settings, variables)
        finally:
            first.run(FEDBENCH, "down", variables={"FEDBENCH_HOME": str(servers.path)})
            for machine in machines:
                machine.end()
                shutil.rmtree(machine.folder, ignore_errors=True)


def ports(machine: Machine) -> set[int]:
    """Return the ports at which the machine accepts connections from outside."""
    return {int(address.rpartition(":")[2], 16) for address in machine.listening()}


def test_a_federation_runs_with_all_that_leaves_the_site_over_tls(sites: Sites) -> None:
    home = sites.home("home", ca_file=sites.authority)
    made = sites.fedbench(home, "deploy")
    assert made.returncode == 0, made.stdout
    worker = home.parent / "worker"
    sites.home("worker", ca_file=sites.authority)
    process, log = sites.worker(worker), worker / "worker.log"
    assert eventually(lambda: "started!" in log.read_text() or process.poll() is not None, PATIENCE)
    assert process.poll() is None, log.read_text()
    specification = home / "tls.yaml"
    specification.write_text(yaml.safe_dump(SPEC))
    result = sites.fedbench(home, "run", specification, "--name", "tls")
    assert result.returncode == 0, result.stdout + log.read_text()[-3000:]
    records = assert_consistent(sites.servers, "tls", rounds=ROUNDS)
    hosts = {update.host for record in records[1:] for update in record.updates}
    assert hosts == {sites.machines[1].name}
    # MLflow has the run and its model, whose files are in the store: both took requests over TLS.
    assert "model: models:/tls@best" in result.stdout, result.stdout
    assert not any(line.startswith("warning:") for line in result.stdout.splitlines()), result.stdout
    assert ports(sites.machines[0]) == {PREFECT, MLFLOW, STORE}
    assert ports(sites.machines[1]) == set()


def test_a_worker_without_the_authority_ends_and_names_the_certificate_and_the_setting(sites: Sites) -> None:
    home = sites.home("untrusting", ca_file=None)
    process = sites.worker(home)
    assert eventually(lambda: process.poll() is not None, PATIENCE), (home / "worker.log").read_text()
    text = (home / "worker.log").read_text()
    assert process.returncode != 0, text
    where = f"https://{sites.machines[0].address}"
    assert f"the certificate of {where}:{PREFECT} is refused: unable to get local issuer certificate" in text
    assert "ca_file (FEDBENCH_CA_FILE, or PREFECT_API_SSL_CERT_FILE for this server alone)" in " ".join(text.split())


def test_a_command_without_the_authority_is_refused_at_once(sites: Sites) -> None:
    home = sites.home("refused", ca_file=None)
    result = sites.fedbench(home, "list")
    assert result.returncode == 2, result.stdout
    where = f"https://{sites.machines[0].address}"
    assert f"error: s3: the certificate of {where}:{STORE} is refused: unable to get local issuer" in result.stdout
    assert "ca_file (FEDBENCH_CA_FILE, or AWS_CA_BUNDLE for this server alone)" in result.stdout
    deploy = sites.fedbench(home, "deploy")
    assert deploy.returncode == 2, deploy.stdout
    assert f"error: Prefect: the certificate of {where}:{PREFECT} is refused" in deploy.stdout
    assert "Traceback" not in result.stdout + deploy.stdout
