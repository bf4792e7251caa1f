"""Two machines without a common path: one has the servers, the coordinator and a silo, the other has another silo.

Each silo has its own home, its own part of the devices, and a worker for its own pool. The weights and states must be
those of the same federation on one machine with all devices. The method is SCAFFOLD: it has a shared state, and one of
each client, and each is first used in round 2.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.data.street_scenes import CLASSES
from tasks.spec.records import RoundRecord
from tests.integration.homes import (
    FEDBENCH,
    PLAIN_SGD,
    TINY,
    Home,
    assert_consistent,
    digests,
    own_figures,
    state_digests,
)
from tests.integration.machines import Machine, stack_variables, start_worker, two_machines, why_not
from tests.waiting import eventually

_WHY_NOT = why_not()

pytestmark = [pytest.mark.integration, pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))]

ROUNDS = 3
PATIENCE = 600.0  # seconds that a worker may take to start
DEVICES = (("1", "2"), ("3", "4", "5"))
CLIENTS = [device for half in DEVICES for device in half]
POOLS = ("silo-a", "silo-b")
SPEC: dict[str, Any] = {
    "max_rounds": ROUNDS,
    "data": {"kind": "voc-folders", "name": "cameras", "classes": list(CLASSES), "clients": {"kind": "folders"}},
    "detector": TINY["detector"],
    "training": {"batch_size": 4, **PLAIN_SGD},
    "strategy": {"kind": "scaffold"},
    "evaluation": {"batch_size": 2},  # this makes several parts, so that both silos evaluate
    # The load of other tests on this machine must not exclude a client.
    "participation": {
        "clients": CLIENTS, "turn_retries": 5, "check_load": True, "max_load": 1000.0,
    },
}  # fmt: skip
DRAWN = ("train_images=40", "test_images=10", "width=96", "height=80")


def spec_file(folder: Path, stem: str, document: dict[str, Any]) -> Path:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the whole data set, with a folder for each device. Return its folder."""
    folder = tmp_path_factory.mktemp("cameras")
    fields = [part for field in DRAWN for part in ("-s", field)]
    made = Home(folder / "home").run("data", "make", folder / "all", "--form", "voc", *fields)
    assert made.returncode == 0, made.stdout
    return folder / "all"


@dataclass
class Silos:
    """Both machines and their processes. ``server`` is the home of servers and coordinator, on the first machine."""

    machines: tuple[Machine, Machine]
    server: Home
    environment: dict[str, str]
    logs: list[Path]

    def fedbench(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        variables["FEDBENCH_HOME"] = str(self.server.path)
        return self.machines[0].run(FEDBENCH, *arguments, variables=variables)

    def federate(self, name: str, document: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return self.fedbench("run", spec_file(self.machines[0].folder, name, document), "--name", name)

    def log_ends(self) -> str:
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-3000:]}" for log in self.logs)


@pytest.fixture(scope="module")
def silos(cameras: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silos]:
    folder = tmp_path_factory.mktemp("machines")
    with two_machines(folder, hidden=[cameras.parent]) as machines:
        for machine, devices in zip(machines, DEVICES, strict=True):
            for device in devices:
                shutil.copytree(cameras / device, machine.folder / "images" / device)
        server = Home(machines[0].folder / "server")
        settings = {
            "ports": {"host": machines[0].address},
            "pools": {
                "silos": {device: pool for pool, half in zip(POOLS, DEVICES, strict=True) for device in half},
                "residents": 1,
            },
        }
        (server.path / "settings.yaml").write_text(yaml.safe_dump(settings))
        silos = Silos(machines, server, {}, [])
        up = silos.fedbench("up", "--servers-only")
        assert up.returncode == 0, up.stdout
        assert f"listening at {machines[0].address}, not on loopback alone" in up.stdout
        found = stack_variables(server.path / "stack.env")
        silos.environment = {name: found[name] for name in found if name.startswith(("FEDBENCH_S3__", "PREFECT_API_"))}
        made = silos.fedbench("deploy")
        assert made.returncode == 0, made.stdout
        for machine, pool in zip(machines, POOLS, strict=True):
            silos.logs.append(_start_worker(machine, pool, silos.environment))
        for log in silos.logs:
            assert eventually(lambda log=log: "started!" in log.read_text(), PATIENCE), silos.log_ends()  # type: ignore[misc]
        try:
            yield silos
        finally:
            silos.fedbench("down")
            shutil.rmtree(server.path / "s3", ignore_errors=True)
            for machine in machines:
                machine.end()
                for cache in machine.folder.glob("*/cache"):
                    shutil.rmtree(cache, ignore_errors=True)


def _start_worker(machine: Machine, pool: str, environment: dict[str, str]) -> Path:
    home = machine.folder / "home"
    home.mkdir()
    settings = {"data_roots": {"cameras": str(machine.folder / "images")}, "worker": {"slots": "cpu"}, "slots": 1}
    (home / "settings.yaml").write_text(yaml.safe_dump(settings))
    start_worker(machine, home, pool, environment)
    return home / "worker.log"


@pytest.fixture(scope="module")
def whole(cameras: Path) -> Home:
    """Return the home of one machine that has all devices."""
    home = Home(cameras.parent / "whole")
    (home.path / "settings.yaml").write_text(yaml.safe_dump({"data_roots": {"cameras": str(cameras)}}))
    return home


def run_on_one(whole: Home, name: str, document: dict[str, Any]) -> list[RoundRecord]:
    """Run the federation on one machine, on its own slots. Return its records."""
    result = whole.run("run", whole.spec_file(document, name), "--name", name, "--slots", 2, "-q", timeout=900)
    assert result.returncode == 0, result.stdout
    return assert_consistent(whole, name, rounds=document["max_rounds"])


@pytest.fixture(scope="module")
def on_one(whole: Home) -> list[RoundRecord]:
    return run_on_one(whole, "one", SPEC)


@pytest.fixture(scope="module")
def on_two(silos: Silos) -> list[RoundRecord]:
    result = silos.federate("two", SPEC)
    assert result.returncode == 0, result.stdout + silos.log_ends()
    return assert_consistent(silos.server, "two", rounds=ROUNDS)


def test_neither_machine_has_the_others_files_or_devices(silos: Silos, cameras: Path) -> None:
    for machine, other, devices in zip(silos.machines, reversed(silos.machines), DEVICES, strict=True):
        assert machine.run("ls", machine.folder / "images").stdout.split() == list(devices)
        for folder in (other.folder, cameras.parent):
            assert list(folder.iterdir()) != []
            assert machine.run("ls", "-A", folder).stdout == ""
        assert machine.run("hostname").stdout.strip() == machine.name


def test_each_silo_trains_its_own_devices(silos: Silos, on_two: list[RoundRecord]) -> None:
    home_of = {device: machine.name for machine, half in zip(silos.machines, DEVICES, strict=True) for device in half}
    for record in on_two[1:]:
        assert {update.client: update.host for update in record.updates} == home_of
    assert silos.server.stored_spec("two").data.digest is None  # type: ignore[union-attr]


def test_each_silo_reports_its_load(on_two: list[RoundRecord]) -> None:
    for record in on_two[1:]:
        assert record.plan is not None
        (draw,) = record.plan.draws
        answers = {answer.client: answer.load for answer in draw.answers}
        assert list(answers) == list(draw.contacted) == CLIENTS
        assert all(load >= 0 for load in answers.values())


def test_the_other_machine_only_connects_outwards(silos: Silos, on_two: list[RoundRecord]) -> None:
    assert silos.machines[0].listening()
    assert silos.machines[1].listening() == []


def test_the_weights_are_the_same_as_on_one_machine(on_one: list[RoundRecord], on_two: list[RoundRecord]) -> None:
    assert digests(on_two) == digests(on_one)
    for one, two in zip(on_one, on_two, strict=True):
        assert [info.client for info in two.clients] == CLIENTS
        assert [update.train_loss for update in two.updates] == [update.train_loss for update in one.updates]
        ((first,), (second,)) = (one.evaluations, two.evaluations)  # both silos have the same test set
        different = {"seconds"}
        assert second.model_dump(exclude=different) == first.model_dump(exclude=different)


def assert_same_states(silos: Silos, one: list[RoundRecord], two: list[RoundRecord]) -> None:
    """Check the states of a run on two machines, and that they are those of the same run on one machine."""
    assert digests(two) == digests(one)
    assert state_digests(two) == state_digests(one)
    home_of = {device: machine.name for machine, half in zip(silos.machines, DEVICES, strict=True) for device in half}
    for before, record in itertools.pairwise(two):
        assert {update.client: update.host for update in record.updates} == home_of
        assert set(record.states) == set(home_of)
        # Every client started from the shared state, if there is one, and from its own, which only its silo wrote.
        shared = [before.shared.sha256] if before.shared is not None else []
        for update in record.updates:
            own = [before.states[update.client].sha256] if update.client in before.states else []
            assert list(update.started_from) == shared + own
            assert record.states[update.client] == update.state


def test_states_of_a_method_are_the_same_as_on_one_machine(
    silos: Silos, on_one: list[RoundRecord], on_two: list[RoundRecord]
) -> None:
    assert_same_states(silos, on_one, on_two)
    for before, record in itertools.pairwise(on_two[1:]):
        assert before.shared is not None
        assert record.shared is not None
        assert before.shared.sha256 != record.shared.sha256
        assert all(before.states[client].sha256 != record.states[client].sha256 for client in CLIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ditto", "fedper"])
def test_own_models_are_the_same_as_on_one_machine(silos: Silos, whole: Home, kind: str) -> None:
    """A client's own model is stored by its silo, trained further there in the next round, and scored there."""
    document = {**SPEC, "strategy": {"kind": kind}}
    one = run_on_one(whole, kind, document)
    result = silos.federate(kind, document)
    assert result.returncode == 0, result.stdout + silos.log_ends()
    two = assert_consistent(silos.server, kind, rounds=ROUNDS)
    assert_same_states(silos, one, two)
    figures = own_figures(two)
    assert figures == own_figures(one)
    assert all({client for item in items for client in item.clients} == set(CLIENTS) for items in figures)
    for before, record in itertools.pairwise(two):
        for client in CLIENTS:
            last = before.states.get(client)  # FedPer has no state before round 1
            assert last is None or record.states[client].sha256 != last.sha256


def test_a_federation_without_a_load_check_is_refused(silos: Silos) -> None:
    participation = {**SPEC["participation"], "check_load": False}
    result = silos.federate("unchecked", {**SPEC, "participation": participation})
    assert result.returncode == 2
    assert "error: participation.check_load: expected true" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.slow
def test_a_client_without_its_images_is_left_out_and_named(silos: Silos, on_two: list[RoundRecord]) -> None:
    images = silos.machines[1].folder / "images"
    (images / "4").rename(images.with_name("away"))
    try:
        result = silos.federate("less", {**SPEC, "max_rounds": 1})
    finally:
        images.with_name("away").rename(images / "4")
    assert result.returncode == 0, result.stdout + silos.log_ends()
    record = silos.server.records("less")[-1]
    assert [info.client for info in record.clients] == ["1", "2", "3", "5"]
    (failure,) = record.dropped
    assert (failure.client, failure.phase, failure.kind) == ("4", "wake_up", "client-error")
    where = f"{images} on {silos.machines[1].name}"
    assert failure.reason == f"{where}: data set cameras has no device 4; it has 3, 5"
