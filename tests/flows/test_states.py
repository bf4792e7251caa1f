"""States of clients in whole federations: what becomes current, what is carried on, what is kept. The store is real."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.client_update
from infra.errors import DeadlineExceeded
from infra.settings_groups import S3Settings
from tasks.errors import ClientError
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.records import RoundRecord
from tests.flows.empty_federation import EmptyFederation, without_prefect_and_learning
from tests.flows.state_federation import FEDADAM, SCAFFOLD, bits

ALL: FederationSpec = SCAFFOLD.model_copy(
    update={"participation": Participation(clients=("3", "4", "5"), turn_deadline=60.0, turn_retries=0)}
)


@pytest.fixture(scope="module", autouse=True)
def empty_turns() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        without_prefect_and_learning(patch)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def federation(s3_settings: S3Settings, home: Path) -> EmptyFederation:
    return EmptyFederation(s3_settings, home, "states/drawn", "it", SCAFFOLD)


@pytest.fixture(scope="module")
def records(federation: EmptyFederation) -> list[RoundRecord]:
    return federation.run(cold=True)


def test_a_client_that_is_not_drawn_keeps_its_state(records: list[RoundRecord]) -> None:
    carried = 0
    for before, record in itertools.pairwise(records):
        assert record.plan is not None
        assert record.plan.states == {name: before.states[name] for name in record.plan.cohort if name in before.states}
        assert (record.plan.server, record.plan.shared) == (before.server, before.shared)
        assert record.shared is not None
        assert f"/{record.round:04d}/" in record.shared.key
        new = {update.client: update.state for update in record.updates}
        assert set(new) == set(record.plan.cohort)
        for client in before.states.keys() - new.keys():
            assert record.states[client] == before.states[client]
            carried += 1
        assert record.states == before.states | new
    assert records[0].states == {}
    assert carried > 0
    assert len({ref.sha256 for record in records for ref in record.states.values()}) > len(records[-1].states)


def test_the_store_has_the_states_that_rounds_with_kept_weights_name(
    federation: EmptyFederation, records: list[RoundRecord]
) -> None:
    there = federation.objects.list(federation.layout.rounds)
    kept = [record for record in records if federation.layout.global_weights(record.round) in there]
    assert {record.round for record in kept} == {records[-1].decision.best_round, 3, 4}
    named = {ref.key: ref.bytes for record in kept for ref in record.state_refs}
    assert {key: size for key, size in there.items() if federation.layout.is_state(key)} == named
    rounds = {federation.layout.round_of(key) for key in named}
    assert rounds - {record.round for record in kept}, "no state of a round without kept weights"


def test_states_are_counted_in_the_bytes_that_move(records: list[RoundRecord]) -> None:
    for before, record in itertools.pairwise(records):
        assert record.plan is not None
        up = sum(update.weights.bytes + update.state.bytes for update in record.updates if update.state is not None)
        assert record.bytes_up - records[0].bytes_up == up  # round 0 is an evaluation alone
        for update in record.updates:
            refs = [record.plan.model, before.shared, before.states.get(update.client)]
            assert update.bytes_down == sum(ref.bytes for ref in refs if ref is not None)
        # The site has the old model from the evaluation, and its clients' states from their last turns.
        shared = before.shared.bytes if before.shared is not None else 0
        assert record.bytes_down == record.model.bytes + shared


@pytest.mark.parametrize("how", ["dropped", "late", "refused"])
def test_a_client_that_does_not_count_in_round_2_has_its_state_of_round_1_in_round_3(
    s3_settings: S3Settings, home: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It fails when it has stored its new state: the state of an update that does not count is not current."""
    federation = EmptyFederation(s3_settings, home, f"states/{how}", "it", ALL)
    train_client, key = tasks.client_update.train_client, federation.layout.client_state(2, "4")
    stored = []

    def train(site: Any, request: Any, client: str, strategy: Any) -> Any:
        trained, state = train_client(site, request, client, strategy)
        if (request.round, client) == (2, "4"):
            stored.append(federation.objects.exists(key))
            if how == "dropped":
                raise ClientError("client 4: an image cannot be decoded")
            if how == "late":
                raise DeadlineExceeded("too late")
            trained = dataclasses.replace(trained, figures={"sum_of_rates": 9.0})
        return trained, state

    monkeypatch.setattr(tasks.client_update, "train_client", train)
    records = federation.run()
    assert stored == [True]
    (failure,) = records[2].dropped
    kind = {"dropped": "client-error", "late": "deadline", "refused": "client-error"}[how]
    assert (failure.client, failure.kind) == ("4", kind)
    assert [update.client for update in records[2].updates] == ["3", "5"]
    first = records[1].states["4"]
    assert records[2].states["4"] == first
    assert records[3].plan is not None
    assert records[3].plan.states is not None
    assert records[3].plan.states["4"] == first
    (update,) = [update for update in records[3].updates if update.client == "4"]
    assert records[2].shared is not None
    assert update.started_from == (records[2].shared.sha256, first.sha256)
    assert records[3].states["4"] == update.state != first
    assert not federation.objects.exists(key)


@pytest.mark.parametrize("spec", [SCAFFOLD, FEDADAM], ids=["scaffold", "fedadam"])
def test_old_states_leave_this_machines_cache(s3_settings: S3Settings, home: Path, spec: FederationSpec) -> None:
    federation = EmptyFederation(s3_settings, home / spec.strategy.kind, "states/cache", spec.strategy.kind, spec)
    records = federation.run()
    cache = federation.settings.home / "cache" / "weights"
    named = {ref.sha256 for record in records[-2:] for ref in record.state_refs if "/state/" not in ref.key}
    old = {ref.sha256 for ref in records[1].state_refs if "/state/" not in ref.key} - named
    there = {path.stem for path in cache.glob("??/*.safetensors")}
    assert named <= there
    assert records[1].decision.best_round == 1 or not old & there


def test_partial_sums_of_one_turn_give_other_clients_states(s3_settings: S3Settings, home: Path) -> None:
    """Each client's state is an object of its own, with the bits that it has without partial sums."""
    runs = []
    for sums in (False, True):
        rule = ALL.participation.model_copy(update={"partial_sums": sums, "shards": 1})
        spec = ALL.model_copy(update={"participation": rule, "max_rounds": 1})
        runs.append(EmptyFederation(s3_settings, home, f"states/sums-{sums}", "it", spec).run())
    alone, together = runs
    assert bits(together)[1][3] == bits(alone)[1][3]  # type: ignore[index]
    (weights,) = {update.weights.bytes for update in together[1].updates}
    states = sum(ref.bytes for ref in together[1].states.values())
    assert together[1].bytes_up - together[0].bytes_up == weights + states
