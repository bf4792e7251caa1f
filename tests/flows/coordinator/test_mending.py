"""Damaged objects are either derived again, to the same bits, or named in one line. The store is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import flows.round
from flows.coordinator.preflight import claim_name
from flows.stored.runs import read_history, read_spec, stored_spec
from flows.stored.spec_copy import keep_spec
from infra.settings_groups import S3Settings
from tasks.errors import FedbenchError, SpecError
from tasks.spec.records import RoundRecord
from tests.flows.empty_federation import SPEC, EmptyFederation, Said, without_prefect_and_learning

Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    # Flip a bit in the middle of an object; in a record, a bit of a digit, so that it stays JSON with the same fields.
    "bit": lambda content: _with_a_bit_flipped(content),
}


def _with_a_bit_flipped(content: bytes) -> bytes:
    where = len(content) // 2
    if content.startswith(b"{"):
        where = next(at for at in range(where, len(content)) if content[at : at + 1] in b"2468")
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


def figures(records: list[RoundRecord]) -> list[object]:
    """Return what must be equal in the records: all but times and the federation's name and keys."""
    return [
        (record.round, record.model.sha256, record.metrics, record.decision, [u.weights.sha256 for u in record.updates])
        for record in records
    ]


@pytest.fixture(scope="module", autouse=True)
def empty_turns() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        without_prefect_and_learning(patch)
        yield
    torch.set_num_threads(threads)


class Killed(BaseException):
    """Raised to end the coordinator, as a kill would."""


@pytest.fixture(scope="module")
def undisturbed(s3_settings: S3Settings, home: Path) -> list[RoundRecord]:
    return EmptyFederation(s3_settings, home, "mending/whole", "it").run()


@pytest.fixture(scope="module")
def interrupted(shared: EmptyFederation) -> dict[str, bytes]:
    """Return all objects, by key, of a federation killed just before it committed round 3, its last."""
    federation = shared
    commit = flows.round.commit

    def cut_short(place: object, record: RoundRecord) -> None:
        if record.round == 3:
            raise Killed
        commit(place, record)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.round, "commit", cut_short)
        with pytest.raises(Killed):
            federation.run()
    return {key: federation.objects.get_bytes(key) for key in federation.objects.list("mending/cut/")}


@pytest.fixture(scope="module")
def shared(s3_settings: S3Settings, home: Path) -> EmptyFederation:
    return EmptyFederation(s3_settings, home, "mending/cut", "it")


@pytest.fixture
def federation(shared: EmptyFederation, interrupted: dict[str, bytes]) -> EmptyFederation:
    federation = shared
    federation.said, federation.went_back = Said(), []
    federation.objects.delete(set(federation.objects.list("mending/cut/")) - set(interrupted))
    for key, content in interrupted.items():
        federation.objects.put_bytes(key, content)
    return federation


def damage(federation: EmptyFederation, key: str, how: Damage) -> bytes | None:
    content = how(federation.objects.get_bytes(key))
    if content is None:
        federation.objects.delete([key])
    else:
        federation.objects.put_bytes(key, content)
    return content


def aside(federation: EmptyFederation) -> dict[str, bytes]:
    """Return the damaged objects that were set aside, by their key below ``damaged/0001/``, ``damaged/0002/``, …"""
    folder = federation.layout.damaged
    found = federation.objects.list(folder)
    return {key.removeprefix(folder)[5:]: federation.objects.get_bytes(key) for key in found}


def test_an_interruption_alone_changes_nothing(federation: EmptyFederation, undisturbed: list[RoundRecord]) -> None:
    records = federation.run(cold=True)
    assert figures(records) == figures(undisturbed)
    assert [update.client for update in records[3].updates] == ["3", "4", "5"]
    assert len({record.model.sha256 for record in records}) == 4
    assert (federation.said.messages, aside(federation)) == ([], {})


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_objects_that_can_be_derived_are_derived_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    """Damaged together: the open round's plan, updates, evaluation and model, ``best.json`` and ``store.json``."""
    layout = federation.layout
    (part,) = federation.objects.list(layout.evaluations(3))
    keys = [
        layout.plan(3), layout.update_weights(3, "3"), layout.update_record(3, "4"), part, layout.global_weights(3),
        layout.best, layout.store,
    ]  # fmt: skip
    for key in keys:
        damage(federation, key, DAMAGES[how])
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    said = " ".join(federation.said.messages)
    named = [key for key in (layout.plan(3), layout.best, layout.store) if f"{key}: " in said]
    assert named == ([] if how == "missing" else [layout.plan(3), layout.best, layout.store])
    assert set(aside(federation)) == (set() if how == "missing" else {"0003/plan.json", "best.json"})
    assert federation.objects.exists(layout.damaged_store) == (how != "missing")
    assert federation.objects.get_json(layout.store) == {"version": 1}
    assert read_spec(federation.objects, federation.settings, "it") == SPEC


@pytest.mark.parametrize("how", ["missing", "half", "bit"])
def test_the_round_of_a_damaged_marker_is_done_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    marker = federation.layout.marker(2)
    content = damage(federation, marker, DAMAGES[how])
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    if content is None:  # without its marker, the round is not committed
        assert federation.said.messages == []
        return
    (line,) = federation.said.messages
    assert line.startswith(f"{marker}: damaged: ")
    assert line.endswith(
        f"round 2 is done again from round 1; the old objects are kept in {federation.layout.damaged}0001/"
    )
    assert aside(federation)["0002/round.json"] == content
    assert federation.went_back == [2]


@pytest.mark.parametrize("how", ["missing", "bit"])
def test_the_round_of_damaged_global_weights_is_done_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    key = federation.layout.global_weights(2)
    content = damage(federation, key, DAMAGES[how])
    damage(federation, federation.layout.plan(2), DAMAGES[how])  # the plan can be read from the marker too
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    (line,) = federation.said.messages
    assert line.startswith(f"{key}: damaged: ")
    assert "round 2 is done again from round 1; the old objects are kept in" in line
    assert aside(federation).get("0002/global.safetensors") == content
    assert "0002/round.json" in aside(federation)


@pytest.mark.parametrize("how", ["missing", "half"])
def test_damaged_global_weights_are_restored_from_this_machines_cache(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    key = federation.layout.global_weights(2)
    content = damage(federation, key, DAMAGES[how])
    assert figures(federation.run()) == figures(undisturbed)
    (line,) = federation.said.messages
    assert line.startswith(f"{key}: damaged: ")
    assert "restored from this machine's cache" in line
    assert aside(federation) == ({} if content is None else {"0002/global.safetensors": content})


def test_a_damaged_round_0_is_done_again(federation: EmptyFederation, undisturbed: list[RoundRecord]) -> None:
    layout = federation.layout
    later = [key for key in federation.objects.list(layout.rounds) if not key.startswith(layout.round(0))]
    federation.objects.delete(later)
    damage(federation, layout.marker(0), DAMAGES["bit"])
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    assert "round 0 is done again; the old objects" in federation.said.messages[0]


@pytest.mark.parametrize("how", ["empty", "bit"])
def test_a_damaged_record_before_other_rounds_is_named_and_nothing_changes(
    federation: EmptyFederation, how: str
) -> None:
    marker = federation.layout.marker(1)
    damage(federation, marker, DAMAGES[how])
    before = federation.objects.list("mending/cut/")
    with pytest.raises(FedbenchError) as caught:
        federation.run(cold=True)
    text = str(caught.value)
    assert text.startswith(f"{marker}: damaged: ")
    assert "rounds up to 2 follow it" in text
    assert "fedbench resume it --from ROUND" in text
    assert "\n" not in text
    assert federation.objects.list("mending/cut/") == before
    with pytest.raises(SpecError, match=marker):
        read_history(federation.objects, federation.layout)


def test_when_the_round_before_is_damaged_too_nothing_changes(federation: EmptyFederation) -> None:
    layout = federation.layout
    for key in (layout.global_weights(1), layout.global_weights(2)):
        damage(federation, key, DAMAGES["half"])
    before = federation.objects.list("mending/cut/")
    with pytest.raises(FedbenchError) as caught:
        federation.run(cold=True)
    assert layout.global_weights(2) in str(caught.value)
    assert f"and {layout.global_weights(1)}, from which round 2 is trained: damaged: " in str(caught.value)
    assert federation.objects.list("mending/cut/") == before


@pytest.mark.parametrize("how", ["half", "bit"])
def test_a_damaged_specification_is_replaced_by_the_same_one_only(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    key = federation.layout.spec
    content = damage(federation, key, DAMAGES[how])
    with pytest.raises(SpecError, match=f"{key}: damaged: .*written again by fedbench run SPEC --name it") as caught:
        read_spec(federation.objects, federation.settings, "it")
    assert "\n" not in str(caught.value)
    other = EmptyFederation(federation.settings.s3, federation.settings.home, "mending/cut", "it")
    other.spec = SPEC.model_copy(update={"seed": 7})
    with pytest.raises(SpecError, match=f"{key}: damaged: .*expected the specification of round 2 .* found another"):
        other.run()
    assert federation.objects.get_bytes(key) == content
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    assert read_spec(federation.objects, federation.settings, "it") == SPEC
    assert aside(federation) == {"spec.json": content}


def test_resume_restores_a_damaged_specification_from_this_machines_copy(federation: EmptyFederation) -> None:
    keep_spec(federation.settings, "it", SPEC)
    content = damage(federation, federation.layout.spec, DAMAGES["half"])
    assert stored_spec(federation.settings, "it") == SPEC
    (line,) = claim_name(federation.objects, federation.layout, stored_spec(federation.settings, "it"))
    assert "spec.json: damaged: " in line
    assert read_spec(federation.objects, federation.settings, "it") == SPEC
    assert aside(federation) == {"spec.json": content}
    damage(federation, federation.layout.spec, DAMAGES["half"])
    copy = federation.settings.home / "runs" / "it" / "spec.json"
    copy.write_text(copy.read_text()[:100])
    with pytest.raises(SpecError, match="written again by fedbench run SPEC --name it"):
        stored_spec(federation.settings, "it")


@pytest.mark.parametrize("how", ["missing", "bit"])
def test_an_update_damaged_after_its_reply_is_requested_again(
    federation: EmptyFederation, undisturbed: list[RoundRecord], how: str
) -> None:
    """The coordinator must fetch the update from the store, as it fetches a silo's."""
    layout, left = federation.layout, [1]
    federation.objects.delete(list(federation.objects.list(layout.updates(3))))

    def after(request: object) -> None:
        if getattr(request, "phase", "") == "request_update" and "4" in request.clients and left.pop():  # type: ignore[attr-defined]
            left.append(0)
            damage(federation, layout.update_weights(3, "4"), DAMAGES[how])

    assert figures(federation.run(after, cold=True)) == figures(undisturbed)
    assert federation.said.retried == ["4"]


def test_old_records_without_digests_are_read_and_a_torn_one_is_found(
    federation: EmptyFederation, undisturbed: list[RoundRecord]
) -> None:
    for key, content in ((key, federation.objects.get_bytes(key)) for key in federation.objects.list("mending/cut/")):
        if key.endswith(".json"):
            lines = [line for line in content.splitlines() if b'"record_sha256"' not in line]
            assert len(lines) == len(content.splitlines()) - 1, key
            federation.objects.put_bytes(key, b"\n".join(lines).replace(b",\n}", b"\n}"))
    damage(federation, federation.layout.marker(2), DAMAGES["half"])
    assert figures(federation.run(cold=True)) == figures(undisturbed)
    assert len(federation.said.messages) == 1
