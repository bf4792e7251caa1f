"""Damaged and missing states of federated methods are made again to the same bits, or named. The store is real."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import flows.round
from flows.coordinator.resuming import discard_updates, go_back
from flows.stored.leftovers import best_rounds, clean
from infra.settings_groups import S3Settings
from tasks.errors import FedbenchError, SpecError
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tests.flows.coordinator.test_mending import DAMAGES, Killed, aside, damage
from tests.flows.empty_federation import EmptyFederation, Said, without_prefect_and_learning
from tests.flows.state_federation import FEDADAM, SCAFFOLD, bits, drawn_last

LAST = 3  # the last committed round; round 4 is open


@pytest.fixture(scope="module", autouse=True)
def empty_turns() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        without_prefect_and_learning(patch)
        yield
    torch.set_num_threads(threads)


class Interrupted:
    """A federation that can be put back to just before its commit of round 4, and its undisturbed records."""

    def __init__(self, store: S3Settings, home: Path, spec: FederationSpec) -> None:
        self.prefix = f"mending-states/{spec.strategy.kind}"
        self.records = EmptyFederation(store, home, f"{self.prefix}/whole", "it", spec).run(cold=True)
        self.federation = EmptyFederation(store, home, f"{self.prefix}/cut", "it", spec)
        commit = flows.round.commit

        def cut_short(handles: object, record: RoundRecord) -> None:
            if record.round == LAST + 1:
                raise Killed
            commit(handles, record)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flows.round, "commit", cut_short)
            with pytest.raises(Killed):
                self.federation.run()
        objects = self.federation.objects
        self.kept = {key: objects.get_bytes(key) for key in objects.list(self.federation.layout.root)}

    def back(self) -> EmptyFederation:
        federation = self.federation
        federation.said, federation.went_back = Said(), []
        federation.objects.delete(set(federation.objects.list(federation.layout.root)) - set(self.kept))
        for key, content in self.kept.items():
            federation.objects.put_bytes(key, content)
        return federation


@pytest.fixture(scope="module")
def scaffold(s3_settings: S3Settings, home: Path) -> Interrupted:
    return Interrupted(s3_settings, home, SCAFFOLD)


@pytest.fixture(scope="module")
def fedadam(s3_settings: S3Settings, home: Path) -> Interrupted:
    return Interrupted(s3_settings, home, FEDADAM)


@pytest.fixture
def federation(scaffold: Interrupted) -> EmptyFederation:
    return scaffold.back()


@pytest.fixture
def undisturbed(scaffold: Interrupted) -> list[RoundRecord]:
    return scaffold.records


def client_of(records: list[RoundRecord], *, earlier: bool) -> str:
    """Return a client whose state after round 3 is from an earlier round, or from round 3."""
    done = records[: LAST + 1]
    return next(name for name in done[-1].states if (drawn_last(done, name) < LAST) == earlier)


def listed(federation: EmptyFederation) -> dict[str, int]:
    return dict(federation.objects.list(federation.layout.root))


def test_an_interruption_alone_changes_no_state(federation: EmptyFederation, undisturbed: list[RoundRecord]) -> None:
    open_states = [key for key in listed(federation) if federation.layout.is_state(key) and "/0004/" in key]
    assert len(open_states) == 3  # the shared one, and those of the two clients that were drawn
    assert bits(federation.run(cold=True)) == bits(undisturbed)
    assert (federation.said.messages, aside(federation)) == ([], {})


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_states_of_the_open_round_are_made_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    """A bit in a client's state is found by the turn that reads it; a kill leaves no such damage."""
    layout = federation.layout
    clients = [update.client for update in undisturbed[4].updates]
    damage(federation, layout.shared_state(4), DAMAGES[how])
    if how != "bit":
        damage(federation, layout.client_state(4, clients[0]), DAMAGES[how])
    assert bits(federation.run(cold=True)) == bits(undisturbed)
    state = undisturbed[4].states[clients[0]]
    assert federation.objects.list(layout.client_states(4))[layout.client_state(4, clients[0])] == state.bytes


@pytest.mark.parametrize("how", ["missing", "half", "bit"])
@pytest.mark.parametrize("what", ["shared", "server"])
def test_the_round_of_a_damaged_state_of_the_server_is_done_again(
    scaffold: Interrupted, fedadam: Interrupted, what: str, how: str
) -> None:
    interrupted = scaffold if what == "shared" else fedadam
    federation = interrupted.back()
    layout = federation.layout
    key = layout.shared_state(LAST) if what == "shared" else layout.server_state(LAST)
    content = damage(federation, key, DAMAGES[how])
    assert bits(federation.run(cold=True)) == bits(interrupted.records)
    (line,) = federation.said.messages
    assert line.startswith(f"{key}: damaged: ")
    assert f"round {LAST} is done again from round {LAST - 1}; the old objects are kept in" in line
    assert aside(federation).get(f"000{LAST}/{what}.safetensors") == content
    assert f"000{LAST}/round.json" in aside(federation)
    assert federation.went_back == [LAST]


@pytest.mark.parametrize("how", ["missing", "half"])
@pytest.mark.parametrize("earlier", [False, True])
def test_states_are_restored_from_this_machines_cache(
    scaffold: Interrupted, federation: EmptyFederation, undisturbed: list[RoundRecord], how: str, *, earlier: bool
) -> None:
    layout, client = federation.layout, client_of(undisturbed, earlier=earlier)
    shared, own = layout.shared_state(LAST), layout.client_state(drawn_last(undisturbed[:4], client), client)
    before = [damage(federation, key, DAMAGES[how]) for key in (shared, own)]
    # The slots of one machine share its cache.
    cache = federation.settings.home / "cache" / "weights"
    for key in (shared, own):
        stored = federation_weights(federation, cache, scaffold.kept[key])
        assert stored.exists()
    assert bits(federation.run()) == bits(undisturbed)
    assert len(federation.said.messages) == 2
    for line, key in zip(federation.said.messages, (shared, own), strict=True):
        assert line.startswith(f"{key}: damaged: ")
        assert "restored from this machine's cache" in line
    assert f"state of client {client}: expected " in federation.said.messages[1]
    if how == "half":
        kept = aside(federation)
        assert [kept[key.removeprefix(layout.rounds)] for key in (shared, own)] == before
    assert federation.went_back == []


def federation_weights(federation: EmptyFederation, cache: Path, content: bytes) -> Path:
    """Put ``content`` into the coordinator's cache. Return its file."""
    from infra.store.weights import WeightStore

    stored = WeightStore(federation.objects, cache, 100).put("mending-states/any", content)
    return WeightStore(federation.objects, cache, 100).path(stored.sha256)


@pytest.mark.parametrize("how", ["missing", "half"])
def test_the_round_of_a_lost_client_state_is_done_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    client = client_of(undisturbed, earlier=False)
    key = federation.layout.client_state(LAST, client)
    damage(federation, key, DAMAGES[how])
    assert bits(federation.run(cold=True)) == bits(undisturbed)
    (line,) = federation.said.messages
    assert line.startswith(f"{key}: damaged: state of client {client}: expected ")
    assert f"round {LAST} is done again from round {LAST - 1}" in line
    names = set(aside(federation))
    assert {f"000{LAST}/round.json", f"000{LAST}/global.safetensors", f"000{LAST}/shared.safetensors"} <= names
    assert any(name.startswith(f"000{LAST}/state/") for name in names)


def test_a_stored_update_is_not_taken_over_with_a_state_of_the_right_size_only(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    """The updates of round 3 are still there, and one client's state has another bit. Then round 3 is done again."""
    layout = federation.layout
    for update in undisturbed[LAST].updates:
        weights = {"key": layout.update_weights(LAST, update.client)}
        state = {"key": layout.client_state(LAST, update.client)}
        document = update.model_dump(mode="json")
        document = {**document, "weights": document["weights"] | weights, "state": document["state"] | state}
        federation.objects.put_json(layout.update_record(LAST, update.client), document)
    damage(federation, layout.client_state(LAST, client_of(undisturbed, earlier=False)), DAMAGES["bit"])
    damage(federation, layout.shared_state(LAST), DAMAGES["missing"])
    assert bits(federation.run(cold=True)) == bits(undisturbed)


def test_a_lost_state_of_an_earlier_round_is_named_with_the_way_out(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    layout, client = federation.layout, client_of(undisturbed, earlier=True)
    number = drawn_last(undisturbed[:4], client)
    key = layout.client_state(number, client)
    damage(federation, key, DAMAGES["missing"])
    # Another state, of the last round, is lost too: doing that round again would not help.
    damage(federation, layout.client_state(LAST, client_of(undisturbed, earlier=False)), DAMAGES["missing"])
    before = listed(federation)
    with pytest.raises(FedbenchError) as caught:
        federation.run(cold=True)
    text = str(caught.value)
    assert text.startswith(f"{key}: damaged: state of client {client}: expected ")
    assert f"rounds up to {LAST} follow it, so it cannot be made again; restore it from a copy, or " in text
    assert "\n" not in text
    assert listed(federation) == before
    earlier = [done for done in range(number) if layout.global_weights(done) in before]
    if not earlier:
        assert text.endswith(
            "begin anew, because no earlier round's weights are kept: fedbench run with another --name"
        )
        federation.objects.put_bytes(layout.global_weights(0), b"")
        with pytest.raises(FedbenchError, match=r"go on from an earlier round: fedbench resume it --from 0$"):
            federation.run(cold=True)
        return
    assert text.endswith(f"go on from an earlier round: fedbench resume it --from {earlier[-1]}")
    # The printed way out works.
    go_back(federation.objects, layout, earlier[-1])
    assert bits(federation.run(cold=True)) == bits(undisturbed)


def test_when_states_of_the_round_before_are_lost_too_nothing_changes(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    layout = federation.layout
    damage(federation, layout.shared_state(LAST), DAMAGES["missing"])
    damage(federation, layout.shared_state(LAST - 1), DAMAGES["half"])
    before = listed(federation)
    with pytest.raises(FedbenchError) as caught:
        federation.run(cold=True)
    assert layout.shared_state(LAST) in str(caught.value)
    assert f"and {layout.shared_state(LAST - 1)}, from which round {LAST} is trained: damaged: " in str(caught.value)
    assert listed(federation) == before


def test_states_are_not_needed_when_no_round_follows(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    federation.run(cold=True)
    federation.objects.delete([key for key in listed(federation) if federation.layout.is_state(key)])
    assert bits(federation.run(cold=True)) == bits(undisturbed)
    assert federation.said.messages == []


def test_a_federation_goes_back_to_a_round_with_all_its_states(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    layout = federation.layout
    go_back(federation.objects, layout, LAST - 1)
    put_aside = {key for key in listed(federation) if key.startswith(layout.superseded)}
    assert layout.put_aside(layout.shared_state(LAST), 1) in put_aside
    assert not federation.objects.list(layout.round(LAST))
    assert bits(federation.run(cold=True)) == bits(undisturbed)


@pytest.mark.parametrize("how", ["missing", "half"])
def test_a_round_without_all_its_states_is_refused_before_anything_moves(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    layout, done = federation.layout, undisturbed[: LAST + 1]
    client = client_of(undisturbed, earlier=True)
    state = layout.client_state(drawn_last(done, client), client)
    damage(federation, layout.shared_state(LAST), DAMAGES[how])
    damage(federation, state, DAMAGES[how])
    before = listed(federation)
    with pytest.raises(SpecError) as caught:
        go_back(federation.objects, layout, LAST)
    text = str(caught.value)
    assert text.startswith(f"--from: round {LAST} cannot be gone on from, because the store has not all states")
    assert f"{layout.shared_state(LAST)}: state of all clients: expected " in text
    assert f"{state}: state of client {client}: expected " in text
    assert listed(federation) == before


def test_a_discarded_update_takes_its_state_with_it(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    layout = federation.layout
    first, second = (update.client for update in undisturbed[4].updates)
    before = listed(federation)
    (line,) = discard_updates(federation.objects, layout, [first])
    assert line == f"client {first}: its update of round 4 is discarded"
    gone = {layout.update_record(4, first), layout.update_weights(4, first), layout.client_state(4, first)}
    assert before.keys() - listed(federation).keys() == gone
    assert layout.client_state(4, second) in listed(federation)
    assert bits(federation.run(cold=True)) == bits(undisturbed)


def test_a_clean_up_leaves_all_states_that_the_federation_goes_on_from(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    layout = federation.layout
    federation.objects.put_bytes(layout.client_state(1, "9"), b"of nobody")
    clean(federation.settings, apply=True, names=["it"])
    assert layout.client_state(1, "9") not in listed(federation)
    assert best_rounds(federation.objects, layout, list(listed(federation))) <= {0, 1, 2, LAST}
    assert bits(federation.run(cold=True)) == bits(undisturbed)
    assert re.search("damaged", " ".join(federation.said.messages)) is None
