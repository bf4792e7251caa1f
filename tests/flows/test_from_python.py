"""The functions that ``import fedbench`` gives, over a real store: frames of a run, errors, the environment after."""

from __future__ import annotations

import os

import pytest

import fedbench
import flows.from_python
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import FedbenchError, SpecError
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Metrics
from tests.records import client_info, evaluation_record, round_record


@pytest.fixture
def stored(command_settings: Settings, object_store: ObjectStore) -> str:
    """Return the name of a run of two rounds in the store."""
    spec = FederationSpec(max_rounds=3)
    layout = FederationLayout(command_settings.s3.prefix, "two")
    object_store.put_json(layout.spec, spec.model_dump(mode="json"))
    for number, value in enumerate((0.125, 0.5)):
        record = round_record(
            number,
            federation="two",
            spec_digest=spec.digest,
            clients=(client_info(),),
            evaluations=(evaluation_record(map50_voc10=value, per_class={"car": value, "bus": None}),),
            metrics=Metrics(map50_voc10=value, loss=2.0),
            decision=Decision(stop=False, best_round=number, best_map50_voc10=value),
        )
        object_store.put_json(layout.marker(number), record.model_dump(mode="json"))
    return "two"


def test_the_names_are_those_of_the_module() -> None:
    assert set(fedbench.__all__) == {"read_run", "load_model", "run"}
    for name in fedbench.__all__:
        assert getattr(fedbench, name) is getattr(flows.from_python, name)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = fedbench.other


def test_a_run_becomes_frames(stored: str) -> None:
    before = dict(os.environ)
    run = fedbench.read_run(stored)
    assert dict(os.environ) == before
    assert (run.name, run.status, run.best_round, len(run.records)) == ("two", "stopped", 1, 2)
    frame = run.rounds()
    assert list(frame.index) == [0, 1]
    assert list(frame["map50_voc10"]) == [0.125, 0.5]
    assert list(frame["loss"]) == [2.0, 2.0]
    evaluations = run.evaluations()
    assert evaluations.index.names == ["round", "clients"]
    assert list(evaluations["AP car"]) == [0.125, 0.5]
    assert not evaluations["own model"].any()


def test_a_run_without_a_round_has_empty_frames(command_settings: Settings, object_store: ObjectStore) -> None:
    layout = FederationLayout(command_settings.s3.prefix, "young")
    object_store.put_json(layout.spec, FederationSpec().model_dump(mode="json"))
    run = fedbench.read_run("young")
    assert (run.best_round, len(run.rounds()), len(run.evaluations())) == (None, 0, 0)


def test_mistakes_are_raised_with_the_messages_of_the_commands(stored: str) -> None:
    with pytest.raises(SpecError, match="nobody: no such federation in the store; expected one of: two"):
        fedbench.read_run("nobody")
    with pytest.raises(SpecError, match="nobody: no such model"):
        fedbench.load_model("nobody")
    with pytest.raises(SpecError, match="max_rounds"):
        fedbench.run({"max_rounds": -1})
    with pytest.raises(FedbenchError, match="name"):
        fedbench.run({"max_rounds": 1}, name="no/name", quiet=True)
