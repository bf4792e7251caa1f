"""A silo's policy at a store that enforces it: Ceph's S3 server. What a silo may and may not do, and a federation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.errors import StoreRefused
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.turns.silo_policy import silo_policy
from tests.integration.ceph import BUCKET, Ceph, User, ceph
from tests.integration.homes import PLAIN_SGD, Home, tiny
from tests.integration.machines import stack_variables
from tests.integration.workers import Worker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PREFIX = "federations"
SILOS = {"silo-a": ["3"], "silo-b": ["4", "5"]}
LAYOUT = FederationLayout(PREFIX, "by-hand")
# A method with a shared state and a state of each client, which are first read in round 2.
SPEC = tiny(
    max_rounds=2,
    strategy={"kind": "scaffold"},
    training=PLAIN_SGD,
    participation={"clients": ["3", "4", "5"], "turn_retries": 5, "check_load": True, "max_load": 1000.0},
)
COORDINATOR: dict[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]}
    ],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ceph]:
    with ceph() as found:
        yield found


@pytest.fixture(scope="module")
def users(cluster: Ceph) -> dict[str, User]:
    """Create the coordinator, whose bucket it is, and the silos, which have the policies that fedbench prints."""
    coordinator = cluster.user("coordinator", COORDINATOR)
    ObjectStore(cluster.settings(coordinator)).ensure_bucket()
    policies = {pool: silo_policy(BUCKET, PREFIX, pool, clients) for pool, clients in SILOS.items()}
    return {"coordinator": coordinator, **{pool: cluster.user(pool, policies[pool]) for pool in SILOS}}


@pytest.fixture(scope="module")
def stores(cluster: Ceph, users: dict[str, User]) -> dict[str, ObjectStore]:
    return {name: ObjectStore(cluster.settings(user)) for name, user in users.items()}


def refused(request: Callable[[], object]) -> bool:
    try:
        request()
    except StoreRefused:
        return True
    return False


def test_a_silo_reads_and_writes_what_its_policy_allows(stores: dict[str, ObjectStore], tmp_path: Path) -> None:
    coordinator, silo = stores["coordinator"], stores["silo-b"]
    read = [
        LAYOUT.global_weights(1), LAYOUT.shared_state(1), LAYOUT.client_state(1, "4"),
        LAYOUT.fine_tuned_weights(1, "5"),
        f"{LAYOUT.turns}silo-b/s/1/0001-ask.json", f"{LAYOUT.turns}silo-b/s/session.json",
    ]  # fmt: skip
    for key in read:
        coordinator.put_bytes(key, b"from the coordinator")
        assert silo.get_bytes(key) == b"from the coordinator", key
    written = [
        LAYOUT.update_weights(2, "4"), LAYOUT.update_record(2, "5"), LAYOUT.partial_sum(2, "4"),
        LAYOUT.client_state(2, "5"), LAYOUT.evaluation_part(2, "4", "p"), LAYOUT.fine_tuned_weights(2, "4"),
        LAYOUT.fine_tuned_update(2, "5"), f"{LAYOUT.turns}silo-b/s/1/0001-answer.json",
    ]  # fmt: skip
    for key in written:
        silo.put_bytes(key, b"from the silo")
        assert coordinator.get_bytes(key) == b"from the silo", key
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * (24 << 20))  # large enough for an upload in parts
    silo.put_file(LAYOUT.update_weights(2, "5"), weights)
    assert coordinator.size(LAYOUT.update_weights(2, "5")) == 24 << 20


def test_the_store_refuses_everything_else(stores: dict[str, ObjectStore]) -> None:
    coordinator, silo, other = stores["coordinator"], stores["silo-b"], stores["silo-a"]
    others = [
        LAYOUT.update_weights(3, "3"), LAYOUT.update_record(3, "3"), LAYOUT.client_state(3, "3"),
        LAYOUT.fine_tuned_weights(3, "3"), f"{LAYOUT.turns}silo-a/s/1/0001-answer.json",
    ]  # fmt: skip
    for key in others:
        other.put_bytes(key, b"of silo a")
        assert refused(lambda key=key: silo.get_bytes(key)), key  # type: ignore[misc]
        assert refused(lambda key=key: silo.put_bytes(key, b"of silo b")), key  # type: ignore[misc]
        assert coordinator.get_bytes(key) == b"of silo a"
    coordinators = [
        LAYOUT.global_weights(3), LAYOUT.plan(3), LAYOUT.marker(3), LAYOUT.spec, LAYOUT.lease, LAYOUT.server_state(3),
        LAYOUT.shared_state(3), f"{LAYOUT.turns}silo-b/s/1/0003-ask.json", "elsewhere",
    ]  # fmt: skip
    for key in coordinators:
        coordinator.put_bytes(key, b"of the coordinator")
        assert refused(lambda key=key: silo.put_bytes(key, b"of silo b")), key  # type: ignore[misc]
    for key in (LAYOUT.plan(3), LAYOUT.spec, LAYOUT.marker(3), LAYOUT.server_state(3), "elsewhere"):
        assert refused(lambda key=key: silo.get_bytes(key)), key  # type: ignore[misc]
    silo.put_bytes(LAYOUT.update_weights(3, "4"), b"of silo b")
    client = silo._s3()
    for key in (LAYOUT.update_weights(3, "4"), LAYOUT.update_weights(3, "3"), LAYOUT.global_weights(3)):
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket=BUCKET, Key=key)
        assert coordinator.exists(key)
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket=BUCKET, Prefix=LAYOUT.root)


def test_a_silo_gets_403_for_an_object_that_is_not_there_yet(stores: dict[str, ObjectStore]) -> None:
    """Residents expect that of a store whose credentials may not list."""
    silo = stores["silo-b"]
    found = silo._s3().exceptions.ClientError
    with pytest.raises(found) as error:
        silo._s3().get_object(Bucket=BUCKET, Key=f"{LAYOUT.turns}silo-b/s/1/0099-ask.json")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404)


def variables(store: S3Settings) -> dict[str, str]:
    assert store.access_key is not None
    assert store.secret_key is not None
    return {
        "FEDBENCH_S3__ENDPOINT": str(store.endpoint),
        "FEDBENCH_S3__ACCESS_KEY": store.access_key.get_secret_value(),
        "FEDBENCH_S3__SECRET_KEY": store.secret_key.get_secret_value(),
    }


def test_a_federation_of_two_silos_runs_under_their_policies(
    cluster: Ceph, users: dict[str, User], stores: dict[str, ObjectStore], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("policies")
    home = Home(folder / "home")
    silos = {client: pool for pool, clients in SILOS.items() for client in clients}
    (home.path / "settings.yaml").write_text(yaml.safe_dump({"pools": {"silos": silos, "residents": 1}}))
    workers: list[Worker] = []
    try:
        up = home.run("up", "--servers-only", timeout=600)
        assert up.returncode == 0, up.stdout
        found = stack_variables(home.path / "stack.env")
        prefect = {name: found[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
        own = home.environment() | variables(cluster.settings(users["coordinator"]))
        made = home.run("deploy", timeout=600, environment=own)
        assert made.returncode == 0, made.stdout
        for pool in SILOS:
            (folder / pool).mkdir()
            (folder / pool / "settings.yaml").write_text(yaml.safe_dump({"worker": {"slots": "cpu"}, "slots": 1}))
            workers.append(Worker(folder / pool, pool, **prefect, **variables(cluster.settings(users[pool]))))
        for worker in workers:
            worker.await_ready()
        result = home.run("run", home.spec_file(SPEC), "--name", "policies", timeout=900, environment=own)
        logs = "".join(worker.text()[-3000:] for worker in workers)
        assert result.returncode == 0, result.stdout + logs
        layout, store = FederationLayout(PREFIX, "policies"), stores["coordinator"]
        for number in (1, 2):
            assert store.exists(layout.marker(number))
        assert "3/3" in result.stdout
        assert "dropped" not in result.stdout, result.stdout
        # What one silo has written, the other cannot read, and neither can change the model.
        silo = stores["silo-a"]
        assert refused(lambda: silo.get_bytes(layout.client_state(2, "4")))
        assert refused(lambda: silo.put_bytes(layout.global_weights(2), b"another model"))
        assert len(silo.get_bytes(layout.client_state(2, "3"))) > 0
    finally:
        for worker in workers:
            worker.kill()
        home.run("down", timeout=300)
        shutil.rmtree(folder, ignore_errors=True)
