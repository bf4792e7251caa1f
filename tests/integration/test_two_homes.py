"""Homes that share a store but no Prefect server: none runs or removes a federation that another is running."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.processes.publication import read_publication
from infra.servers.s3 import S3Service
from tests.integration.homes import Home, assert_no_process_left, tiny
from tests.waiting import eventually

pytestmark = pytest.mark.integration

NAME = "of-two-homes"
ROUNDS = 500  # the run is interrupted long before


class Guest(Home):
    """A home that uses the store of the home ``host`` while a run there serves it. All else is its own."""

    host: Path

    def environment(self) -> dict[str, str]:
        found, keys = read_publication(self.host / "services" / "s3.json"), S3Service(self.host).keys()
        assert found is not None
        assert found.address is not None
        return super().environment() | {
            "FEDBENCH_S3__ENDPOINT": found.address,
            "FEDBENCH_S3__ACCESS_KEY": keys.access_key,
            "FEDBENCH_S3__SECRET_KEY": keys.secret_key,
        }


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, list[Guest]]]:
    """Return the home with the store, and two guests. Two commands of one home would find each other's lock."""
    host, guests = Home(tmp_path / "host"), [Guest(tmp_path / name) for name in ("guest", "visitor")]
    for guest in guests:
        guest.host = host.path
    yield host, guests
    for home in (host, *guests):
        home.remove_weights()


def test_a_home_neither_runs_nor_removes_a_federation_that_another_runs(
    homes: tuple[Home, list[Guest]], tmp_path: Path
) -> None:
    host, guests = homes
    spec, output = host.spec_file(tiny(max_rounds=ROUNDS)), tmp_path / "output.txt"
    running = host.start("run", spec, "--name", NAME, "--slots", 1, output=output)
    try:
        assert eventually(lambda: len(host.layout(NAME).committed_rounds(host.keys(NAME))) > 0, 200), output.read_text()
        asked = (("remove", NAME, "--yes"), ("run", str(spec), "--name", NAME, "--slots", "1"))
        with ThreadPoolExecutor() as threads:  # each command waits until the host renews its lease
            both = list(threads.map(lambda guest, command: guest.run(*command), guests, asked))
        for refused in both:
            assert refused.returncode == 2, refused.stdout
            assert f"{NAME}: held by fedbench run on " in refused.stdout
            assert f"(process {running.pid}, home {host.path})" in refused.stdout
        before = len(host.records(NAME))
        assert eventually(lambda: len(host.records(NAME)) > before, 60)
        assert running.poll() is None, output.read_text()
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
    assert "the store honours conditional writes: no" in (host.path / "runs" / NAME / "run.log").read_text()
    removed = host.run("remove", NAME, "--yes")  # the run has released its lease
    assert removed.returncode == 0, removed.stdout
    assert host.keys(NAME) == []
    assert_no_process_left(host)
