"""The detections of the best and the last rounds are in the store, and have the figures of the rounds' records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flows.federation
import tasks.client_eval
import tasks.training.turn
from flows.stored.detections import read_scored
from infra.leftovers.store import Retention, kept_rounds
from infra.settings_groups import S3Settings
from tasks.errors import DataError
from tasks.metrics.detections import ImageDetections
from tasks.spec.federation import FederationSpec, with_fields
from tasks.training.evaluation import PartResult
from tasks.training.local import TrainingResult
from tests.flows.empty_federation import SPEC, EmptyFederation, without_prefect_and_learning


def _evaluate(detector: Any, batches: Any, samples: Any, spec: Any, *, device: str, **_: Any) -> PartResult:
    """Find about half of each image's objects, some with a wrong class; other ones by detector."""
    seed = int(1000 * abs(float(next(iter(detector.state_dict().values())).sum())))
    indices = [index for batch in batches for index in batch.indices]
    found = {}
    for index in indices:
        random, sample = np.random.default_rng([seed, index]), samples[index]
        kept = random.random(len(sample.labels)) < 0.5
        labels = np.where(random.random(kept.sum()) < 0.8, sample.labels[kept], 0)
        found[index] = ImageDetections(sample.boxes[kept] + random.normal(0, 2, (kept.sum(), 4)), random.random(
            kept.sum()), labels)  # fmt: skip
    return PartResult([1.0] * -(-len(indices) // spec.batch_size), len(indices), found, 0.0)


@pytest.fixture(autouse=True)
def _with_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_page(*arguments: Any) -> None: ...

    without_prefect_and_learning(monkeypatch)
    monkeypatch.setattr(flows.federation, "show_clients", no_page)
    monkeypatch.setattr(tasks.client_eval, "evaluate", _evaluate)


def _federation(store: S3Settings, home: Path, prefix: str, **fields: Any) -> EmptyFederation:
    spec: FederationSpec = with_fields(SPEC, {"max_rounds": 4, "patience": 50, **fields}, source="test")
    return EmptyFederation(store, home, prefix, "found", spec)


@pytest.fixture
def federation(s3_settings: S3Settings, tmp_path: Path, own_prefix: str) -> EmptyFederation:
    return _federation(s3_settings, tmp_path, own_prefix)


def test_the_best_and_the_last_rounds_keep_their_detections(federation: EmptyFederation) -> None:
    records = federation.run()
    objects, layout = federation.objects, federation.layout
    kept = kept_rounds(range(5), [records[-1].decision.best_round], Retention())
    found = {key for key in objects.list(layout.rounds) if key.endswith(".npz")}
    assert found == {layout.detections(number) for number in kept}
    for record in records:
        scored = read_scored(objects, layout, record)
        if record.round not in kept:
            assert scored is None
            continue
        assert scored is not None
        assert scored.classes == tuple(record.evaluations[0].per_class)
        (item,), (evaluation,) = scored.sets, record.evaluations
        assert (item.clients, item.on, item.digest) == (evaluation.clients, "test", evaluation.test_digest)
        assert len(item) == evaluation.test_size
        matches = item.matches(scored)
        assert 0 < matches.right.sum() < len(matches.right)


def test_clients_own_models_stand_for_a_shared_one_that_is_not_complete(
    s3_settings: S3Settings, tmp_path: Path, own_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = TrainingResult(loss=1.0, terms={}, images=0, steps=1, seconds=0.0)
    monkeypatch.setattr(tasks.training.turn, "train", lambda *arguments, **options: nothing)
    for kind, personal in (("fedper", True), ("ditto", False)):
        home = tmp_path / kind
        federation = _federation(s3_settings, home, f"{own_prefix}/{kind}", **{"strategy.kind": kind, "max_rounds": 1})
        last = federation.run()[-1]
        scored = read_scored(federation.objects, federation.layout, last)
        assert scored is not None
        assert scored.personal is personal
        expected = last.personal if personal else last.evaluations
        assert [item.clients for item in scored.sets] == [item.clients for item in expected]


def test_held_out_images_are_kept_beside_test_sets(s3_settings: S3Settings, tmp_path: Path, own_prefix: str) -> None:
    fields = {"data.holdout.fraction": 0.4, "data.holdout.least": 1, "evaluation.on": "both", "max_rounds": 1}
    federation = _federation(s3_settings, tmp_path, own_prefix, **fields)
    last = federation.run()[-1]
    scored = read_scored(federation.objects, federation.layout, last)
    assert scored is not None
    for part in ("test", "holdout"):
        sets = [(item.clients, len(item)) for item in scored.on(part).sets]
        assert sets == [(item.clients, item.test_size) for item in last.evaluations_on(part)]
        assert sets


def test_detections_that_are_not_those_of_the_record_are_refused(federation: EmptyFederation) -> None:
    records = federation.run()
    objects, layout, last = federation.objects, federation.layout, records[-1]
    key = layout.detections(last.round)
    whole = objects.get_bytes(key)
    objects.put_bytes(key, whole[:-100])
    with pytest.raises(DataError, match=r"0004/detections\.npz: expected detections in numpy's \.npz format"):
        read_scored(objects, layout, last)
    objects.put_bytes(key, objects.get_bytes(layout.detections(last.round - 1)))
    with pytest.raises(DataError, match=r"0004/detections\.npz: expected detections with the figures of round 4"):
        read_scored(objects, layout, last)


def test_a_resumed_round_writes_the_same_detections(
    federation: EmptyFederation, s3_settings: S3Settings, tmp_path: Path, own_prefix: str, monkeypatch: Any
) -> None:
    federation.run()
    again = _federation(s3_settings, tmp_path / "again", f"{own_prefix}/again")

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("flows.round.commit", killed)
        with pytest.raises(KeyboardInterrupt):
            again.run()
    assert again.objects.exists(again.layout.detections(0))
    again.run()
    for number in (3, 4):
        expected = federation.objects.get_bytes(federation.layout.detections(number))
        assert again.objects.get_bytes(again.layout.detections(number)) == expected
