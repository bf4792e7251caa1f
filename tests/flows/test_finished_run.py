"""A finished run whose report was made is only printed again; without a best round it needs no registered model."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from flows import run
from flows.views.files import PLOTTED
from flows.views.progress import Progress
from flows.views.registration import FILE
from infra.settings import Settings, run_folder
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Metrics
from tests.records import evaluation_record, round_record

SPEC = FederationSpec(max_rounds=1)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("score", [0.25, None])
def test_only_a_run_with_a_best_round_must_have_its_model(
    settings: Settings, object_store: ObjectStore, score: float | None, noted: bool
) -> None:
    layout, folder = FederationLayout(settings.s3.prefix, "mine"), run_folder(settings, "mine")
    object_store.put_json(layout.spec, SPEC.model_dump(mode="json"))
    for number in range(2):
        record = round_record(
            number,
            federation="mine",
            evaluations=(evaluation_record("1", map50_voc10=score),),
            metrics=Metrics(loss=0.5, map50_voc10=score),
            decision=Decision(stop=number == 1, reason="max_rounds" if number else None, best_round=0),
        )
        object_store.put_json(layout.marker(number), record.model_dump(mode="json"))
    folder.mkdir(parents=True)
    (folder / PLOTTED).write_bytes(b"")
    if noted:
        note = {"uri": "models:/mine@best", "version": "1", "weights_sha256": record.model.sha256}
        (folder / FILE).write_text(json.dumps(note))
    session: Any = SimpleNamespace(settings=settings, with_store=lambda look: look(object_store))
    found = run._finished(session, "mine", SPEC, Progress(), None)
    if score is None:
        assert found is not None
        assert found.model is None
    elif noted:
        assert found is not None
        assert found.model == "models:/mine@best"
    else:
        assert found is None
