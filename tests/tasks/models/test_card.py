"""The card of a federation's model, and its notes about licences."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.errors import DataError
from tasks.models.card import card_of, licence_notes
from tasks.spec.federation import parse_spec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Decision, Environment, Metrics, RoundRecord
from tests.records import client_info, round_record

SHA = "b" * 64


def record(**fields: Any) -> RoundRecord:
    info = client_info(train_size=4, test_size=2, test_digest=SHA, class_counts={"a": 0, "b": 3})
    base = round_record(
        2,
        federation="mine",
        spec_digest=SHA,
        clients=(info,),
        model=WeightRef(key="k", sha256=SHA, bytes=1),
        metrics=Metrics(
            train_loss=9.0, loss=3.0, map50_voc10=0.5, map_coco=0.25, recall=None, per_class={"b": 0.5, "a": None}
        ),
        decision=Decision(stop=True, reason="max_rounds", best_round=2),
        environment=Environment(fedbench="0.1.0", python="3", torch="2", torchvision="0", cpu="x", threads=1),
        committed=datetime(2026, 1, 2, tzinfo=UTC),
    )
    return base.model_copy(update=fields)


def test_the_card_has_the_records_figures() -> None:
    spec = parse_spec({"data": {"kind": "coco", "name": "mine", "classes": ["b", "a"]}}, source="test")
    card = card_of(spec, record(), notes=("statistics re-estimated",))
    assert card.classes == ("b", "a")  # in the specification's order: a record's JSON is sorted
    assert card.detector == spec.detector
    assert (card.federation, card.round, card.spec_digest, card.code_version) == ("mine", 2, SHA, "0.1.0")
    assert card.data == spec.data.model_dump(mode="json")
    assert card.metrics == {
        "map50_voc10": 0.5,
        "map50_voc07": None,
        "map50_coco": None,
        "map_coco": 0.25,
        "recall": None,
        "loss": 3.0,
    }
    assert card.per_class == {"b": 0.5, "a": None}
    assert card.notes[0] == "statistics re-estimated"
    assert "'mine', whose own licence" in card.notes[1]


def test_a_record_without_clients_has_no_classes() -> None:
    with pytest.raises(DataError, match="mine: round 2: clients: expected at least one"):
        card_of(parse_spec({}, source="test"), record(clients=()))


def test_synthetic_data_and_random_weights_need_no_note() -> None:
    assert licence_notes(parse_spec({"detector": {"kind": "yolov3"}}, source="test")) == ()


def test_notes_on_first_weights_and_data() -> None:
    weights = {"kind": "darknet", "name": "darknet53.conv.74", "sha256": SHA}
    document = {"data": {"kind": "federated-street"}, "detector": {"kind": "yolov3", "weights": weights}}
    first, second = licence_notes(parse_spec(document, source="test"))
    assert "darknet53.conv.74" in first
    assert SHA in first
    assert "Federated Street" in second
    assert "licence governs" in second
