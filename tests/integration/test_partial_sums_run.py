"""Partial sums with the real command: the same figures as single updates for fewer bytes. Kills change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from tasks.spec.records import RoundRecord
from tests.integration.homes import Home, assert_consistent, assert_tracked_once, digests, tiny
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CLIENTS = ["1", "2", "3", "4", "5"]
ROUNDS = 2


def document(**participation: Any) -> dict[str, Any]:
    """Return a specification of five clients in two turns."""
    fields = {"clients": CLIENTS, "shards": 2, **participation}
    return tiny(max_rounds=ROUNDS, data={"train_images": 40}, participation=fields)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("sums") / "home")
    with EmbeddedServices(Settings(home=home.path)):
        yield home
    home.remove_weights()


@pytest.fixture(scope="module")
def summed(home: Home) -> list[RoundRecord]:
    """Run the federation undisturbed with partial sums. Return its records."""
    result = home.run("run", home.spec_file(document(partial_sums=True), "summed"), "--name", "summed", "--slots", 2)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("5/5") == ROUNDS
    return home.records("summed")


def test_fewer_bytes_and_the_same_figures(home: Home, summed: list[RoundRecord]) -> None:
    result = home.run("run", home.spec_file(document(), "own"), "--name", "own", "--slots", 2)
    assert result.returncode == 0, result.stdout
    own = assert_consistent(home, "own", rounds=ROUNDS)
    assert assert_consistent(home, "summed", rounds=ROUNDS) == summed
    assert summed[0].model.sha256 == own[0].model.sha256
    for record, other in zip(summed[1:], own[1:], strict=True):
        assert record.plan is not None
        size = record.model.bytes
        assert [update.client for update in record.updates] == CLIENTS
        assert {update.shard for update in record.updates} == set(record.plan.shards)
        assert len({update.weights.key for update in record.updates}) == 2
        assert [update.train_size for update in record.updates] == [update.train_size for update in other.updates]
        # The evaluation's objects add only a few kilobytes.
        assert (record.bytes_up / size, other.bytes_up / size) == (
            pytest.approx(2, abs=0.05),
            pytest.approx(5, abs=0.05),
        )
        assert record.metrics.train_loss == pytest.approx(other.metrics.train_loss, rel=1e-2)
        assert record.metrics.loss == pytest.approx(other.metrics.loss, rel=1e-2)
    # Round 1 starts from the same weights, so the clients' losses are equal to the bit, and the result up to rounding.
    assert [update.train_loss for update in summed[1].updates] == [update.train_loss for update in own[1].updates]
    first, second = (load_file(home.object_path(records[1].model.key)) for records in (summed, own))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6, msg=name)
    _, rows = home.artifact("round-summed")
    assert [row["images"] for row in rows] == [update.train_size for update in summed[-1].updates]
    assert sum(row["MB up"] for row in rows) == pytest.approx(2 * summed[-1].model.bytes / 1e6, abs=0.02)


def test_kills_during_rounds_change_nothing(home: Home, summed: list[RoundRecord], tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    layout, (_, first, second) = home.layout("killed"), summed
    assert first.plan is not None
    assert second.plan is not None
    last_of_turn = second.plan.shards[0][-1]
    key = layout.update_record(2, last_of_turn)

    def training() -> bool:
        return "round 1 request_update starts" in output.read_text()

    def one_turn_stored() -> bool:
        return home.object_path(key).exists()

    def kill_when(moment: Callable[[], bool]) -> None:
        # On one slot, the turns of a round run one after the other.
        process = home.start(
            "run", home.spec_file(document(partial_sums=True), "summed"), "--name", "killed", "--slots", 1,
            output=output,
        )  # fmt: skip
        try:
            assert eventually(lambda: process.poll() is not None or moment(), 120)
            assert process.poll() is None, output.read_text()
        finally:
            process.kill()
            process.wait()

    kill_when(training)
    assert [record.round for record in home.records("killed")] == [0]
    kill_when(one_turn_stored)
    assert [record.round for record in home.records("killed")] == [0, 1]
    in_store = [stored for stored in home.keys("killed") if stored.startswith(layout.updates(2))]
    stored_turn = second.plan.shards[0]
    assert layout.partial_sum(2, stored_turn[0]) in in_store
    resumed = home.run("resume", "killed", "--slots", 2)
    assert resumed.returncode == 0, resumed.stdout
    for client in stored_turn:
        assert any(f"client {client} done" in line and "taken over" in line for line in resumed.stdout.splitlines()), (
            resumed.stdout
        )
    records = assert_consistent(home, "killed", rounds=ROUNDS)
    assert digests(records) == digests(summed)
    for record in records[1:]:
        assert record.bytes_up / record.model.bytes == pytest.approx(2, abs=0.05)
    assert_tracked_once(home, "killed", "FINISHED", records)
