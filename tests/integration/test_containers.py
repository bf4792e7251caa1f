"""The shipped compose.yaml under Podman: image, stack, a federation through its deployment, ``down``, and ``up`` again.

Nothing is replaced: the base is Debian from its mirror, the image is that of the Dockerfile, and ``podman-compose``
reads compose.yaml with an ``.env`` in which only the empty values, the base and the ports are filled in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from pydantic import SecretStr

from infra.processes.ports import free_port
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.records import RoundRecord
from tests.integration.containers import Compose, Podman, copy_sources, why_not
from tests.integration.homes import Home, digests
from tests.waiting import eventually

_WHY_NOT = why_not()

pytestmark = [
    pytest.mark.integration, pytest.mark.slow, pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT)),
]  # fmt: skip

SERVICES = {"postgres", "s3", "prefect", "mlflow", "coordinator", "worker"}
BASE = "localhost/fedbench-base:test"
NAME, ROUNDS = "boxed", 2
PATIENCE = 900.0  # seconds until all services are healthy


@dataclass(frozen=True)
class Stack:
    """The running stack. values: of its ``.env``."""

    compose: Compose
    values: dict[str, str]

    @property
    def store(self) -> ObjectStore:
        endpoint = f"http://127.0.0.1:{self.values['S3_PORT']}"
        access_key, secret_key = SecretStr(self.values["S3_ACCESS_KEY"]), SecretStr(self.values["S3_SECRET_KEY"])
        return ObjectStore(S3Settings(endpoint=endpoint, access_key=access_key, secret_key=secret_key))

    def start(self) -> None:
        self.compose.run("up", "--detach")
        assert set(self.compose.containers()) == SERVICES
        healthy = eventually(self.compose.healthy, PATIENCE)
        podman = self.compose.podman
        assert healthy, [podman.run("logs", "--tail", "20", name) for name in self.compose.containers().values()]

    def train(self, rounds: int) -> None:
        """Run the deployment of the preset ``smoke`` until its flow run has ended."""
        command = ["prefect", "deployment", "run", "federation/smoke", "--watch", "--watch-timeout", 1200]
        output = self.compose.inside(
            "coordinator", *command, "-p", f"name={NAME}", "-p", f"max_rounds={rounds}", timeout=1500
        )
        assert "Flow run finished successfully" in output, output

    def records(self) -> list[RoundRecord]:
        """Return the records of all committed rounds, after a check of the weights that they name."""
        store, layout = self.store, FederationLayout("federations", NAME)
        keys = list(store.list(layout.root))
        found = [RoundRecord.model_validate(store.get_json(layout.marker(n))) for n in layout.committed_rounds(keys)]
        for record in found[-2:]:
            assert hashlib.sha256(store.get_bytes(record.model.key)).hexdigest() == record.model.sha256
        return found

    def flow_runs(self) -> list[tuple[str, str]]:
        """Return id and name of all completed flow runs, from Prefect's API."""
        token = base64.b64encode(f"fedbench:{self.values['PREFECT_PASSWORD']}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.values['PREFECT_PORT']}/api/flow_runs/filter",
            data=json.dumps({"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}).encode(),
            headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [(run["id"], run["name"]) for run in json.load(answer)]

    def tracked(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Return what MLflow's server has of the federation: its status, the rounds' figures, and its artifacts."""
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "fedbench")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", self.values["MLFLOW_PASSWORD"])
        client = MlflowClient(f"http://127.0.0.1:{self.values['MLFLOW_PORT']}")
        experiment = client.get_experiment_by_name("fedbench")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`fedbench.federation` = '{NAME}'")
        history = client.get_metric_history(run.info.run_id, "round")
        return {
            "id": run.info.run_id,
            "status": run.info.status,
            "rounds": sorted(point.step for point in history),
            "artifacts": sorted((item.path, item.file_size) for item in client.list_artifacts(run.info.run_id)),
        }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Build the image and start the stack. At the end, remove everything."""
    folder = tmp_path_factory.mktemp("containers")
    podman = Podman(folder / "podman")
    try:
        here = copy_sources(folder / "checkout")
        values = fill_in(here)
        python = podman.make_base(BASE)
        podman.build(folder / "checkout", f"fedbench:{values['FEDBENCH_VERSION']}", BASE, python)
        running = Stack(Compose(podman, here, f"fedbench{secrets.token_hex(3)}"), values)
        running.start()
        yield running
    finally:
        podman.remove()
        shutil.rmtree(folder)


def fill_in(folder: Path) -> dict[str, str]:
    """Write ``.env`` from the example, with drawn passwords, the base and free ports. Return its values."""
    values = {}
    for line in (folder / ".env.example").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values[name] = value or secrets.token_hex(24)
    values["BASE_IMAGE"] = BASE
    for name in ("PREFECT_PORT", "MLFLOW_PORT", "S3_PORT"):
        values[name] = str(free_port(None))
    values["PREFECT_PUBLIC_URL"] = f"http://127.0.0.1:{values['PREFECT_PORT']}"
    values["MLFLOW_PUBLIC_HOST"] = f"localhost:{values['MLFLOW_PORT']}"
    path = folder / ".env"
    path.touch(0o600)
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    return values


@pytest.fixture(scope="module")
def trained(stack: Stack) -> list[RoundRecord]:
    stack.train(ROUNDS)
    return stack.records()


def test_no_service_is_root_or_can_write_to_its_image(stack: Stack) -> None:
    for service, container in stack.compose.containers().items():
        assert stack.compose.inside(service, "id", "-u").strip() == "10001", service
        status = stack.compose.inside(service, "cat", "/proc/1/status")
        assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd):\s*(\w+)$", status, re.MULTILINE)) == {"0" * 16}, service
        assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE), service
        assert stack.compose.podman.inspect(container)["HostConfig"]["ReadonlyRootfs"] is True, service
        for path in ("/opt/fedbench/x", "/src/x", "/etc/x", "/x"):
            assert not stack.compose.podman.succeeds("exec", "--user", "0", container, "touch", path), (service, path)


def test_the_image_has_no_secret_and_no_file_of_the_checkout_beside_the_sources(stack: Stack) -> None:
    image = f"fedbench:{stack.values['FEDBENCH_VERSION']}"
    history = stack.compose.podman.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    kept = stack.compose.podman.run("image", "inspect", "--format", "{{json .Config}}", image)
    assert not [value for value in stack.values.values() if len(value) == 48 and value in history + kept]
    assert sorted(stack.compose.inside("s3", "ls", "-A", "/src").split()) == sorted(
        [
            "requirements.txt", "requirements-setup.txt", "pyproject.toml", "README.md", "LICENSE", "fedbench.py",
            "flows", "infra", "tasks",
        ]
    )  # fmt: skip
    assert ".env" not in stack.compose.inside("s3", "ls", "-A", "/src/infra/compose").split()


def test_the_servers_ask_for_credentials(stack: Stack) -> None:
    # rclone answers an unsigned request with 400.
    for port, path, code in (
        ("PREFECT_PORT", "/api/admin/version", 401),
        ("MLFLOW_PORT", "/version", 401),
        ("S3_PORT", "/fedbench", 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{stack.values[port]}{path}", timeout=30)
        assert refused.value.code == code, port


def test_the_page_of_prefect_is_there(stack: Stack) -> None:
    with urllib.request.urlopen(f"{stack.values['PREFECT_PUBLIC_URL']}/", timeout=30) as page:
        assert b"<title>Prefect" in page.read()


def test_a_federation_through_its_deployment_has_the_bits_of_a_run_without_containers(
    trained: list[RoundRecord], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    result = home.run("run", "smoke", "--name", "here", "-q", timeout=900)
    assert result.returncode == 0, result.stdout
    assert [record.round for record in trained] == list(range(ROUNDS + 1))
    assert digests(trained) == digests(home.records("here"))
    home.remove_weights()


def test_turns_ran_in_the_workers_container(stack: Stack, trained: list[RoundRecord]) -> None:
    hosts = {update.host for record in trained[1:] for update in record.updates}
    assert hosts == {stack.compose.inside("worker", "hostname").strip()}


def test_everything_is_still_there_after_down_and_up_and_the_federation_goes_on(
    stack: Stack, trained: list[RoundRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> tuple[list[RoundRecord], dict[str, int], dict[str, Any]]:
        objects = stack.store.list(FederationLayout("federations", NAME).root)
        return stack.records(), dict(objects), stack.tracked(monkeypatch)

    before, completed = stored(), stack.flow_runs()
    _, _, tracked = before
    assert tracked["status"] == "FINISHED"
    assert tracked["rounds"] == list(range(ROUNDS + 1))
    assert tracked["artifacts"] != []
    assert len(completed) > ROUNDS  # the federation and its rounds
    containers = {stack.compose.podman.inspect(name)["Id"] for name in stack.compose.containers().values()}

    stack.compose.run("down")
    assert stack.compose.containers() == {}
    stack.start()

    assert containers.isdisjoint(
        stack.compose.podman.inspect(name)["Id"] for name in stack.compose.containers().values()
    )
    assert stored() == before
    assert set(completed) <= set(stack.flow_runs())  # a resident of before may have ended since
    listed = json.loads(stack.compose.inside("coordinator", "fedbench", "list", "--json"))
    assert [(run["name"], run["state"], run["rounds"]) for run in listed["federations"]] == [(NAME, "finished", ROUNDS)]

    stack.train(ROUNDS + 1)
    records = stack.records()
    assert records[: ROUNDS + 1] == trained
    assert [record.round for record in records] == list(range(ROUNDS + 2))
    assert stack.tracked(monkeypatch)["rounds"] == list(range(ROUNDS + 2))
