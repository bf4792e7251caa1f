"""``fedbench evaluate --on``: which images it scores, and with which figures on record it compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.evaluate_model import (
    Evaluated,
    analysis_documents,
    evaluate_opened,
    figures_table,
    write_analyses,
)
from flows.commands.opened_model import OpenedModel
from infra.settings import Settings
from tasks.data.catalog import load_data
from tasks.data.samples import samples_digest
from tasks.detectors.registry import build_detector
from tasks.errors import DataError
from tasks.models.card import card_of
from tasks.models.evaluate import evaluation_sets
from tasks.spec.data import Holdout, SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.training import EvaluationSpec
from tests.records import client_info, evaluation_record, round_record

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = SyntheticStreet(
    train_images=40, test_images=5, width=64, height=64, holdout=Holdout(fraction=0.4, least=4, seed=2)
)
SPEC = FederationSpec(
    data=DATA, detector=YoloV3TinySpec(width=64, height=64), evaluation=EvaluationSpec(on="holdout", batch_size=8)
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def opened(home: Path) -> OpenedModel:
    """Return the model of a run whose rounds scored held-out images alone."""
    data = load_data(DATA, root_of=lambda name: None, cache=home / "cache" / "data")
    infos = tuple(
        client_info(
            client,
            test_digest=samples_digest(data.test[client]),
            holdout_size=len(held),
            holdout_digest=samples_digest(held) if held else None,
            class_counts=dict.fromkeys(data.classes, 1),
        )
        for client, held in data.holdout.items()
    )
    scored = tuple(
        evaluation_record(info.client, on="holdout", test_digest=info.holdout_digest, test_size=info.holdout_size)
        for info in infos
        if info.holdout_size >= 4
    )
    record = round_record(clients=infos, evaluations=scored, decision={"stop": False, "best_round": 1, "on": "holdout"})
    detector = build_detector(SPEC.detector, len(data.classes), seed=1)
    return OpenedModel("run, round 1", detector.eval(), card_of(SPEC, record), SPEC, record)


def evaluated(opened: OpenedModel, home: Path, **fields: Any) -> Evaluated:
    return evaluate_opened(
        opened, Settings(home=home), data=None, fields=fields, device="cpu", threads=1, console=Console(quiet=True)
    )


def test_the_test_set_is_scored_unless_the_option_says_otherwise(opened: OpenedModel, home: Path) -> None:
    found = evaluated(opened, home)
    assert [(record.on, record.clients, record.test_size) for record in found.records] == [
        ("test", ("1", "2", "3", "4", "5"), 5)
    ]
    assert found.metrics.holdout is None
    assert figures_table(found).row_count == 1  # the figures on record are of other images


@pytest.mark.parametrize("on", ["holdout", "both"])
def test_held_out_images_are_scored_for_clients_that_have_enough(opened: OpenedModel, home: Path, on: str) -> None:
    found = evaluated(opened, home, **{"evaluation.on": on})
    assert opened.record is not None
    expected = [(item.clients, item.test_digest) for item in opened.record.evaluations]
    assert [(item.clients, item.test_digest) for item in found.records if item.on == "holdout"] == expected
    assert [item.clients for item in found.records if item.on == "test"] == ([tuple("12345")] if on == "both" else [])
    assert found.metrics.holdout is not None
    assert found.metrics.holdout.loss is not None
    assert (found.metrics.loss is None) == (on == "holdout")
    assert found.on_record
    titles = list(figures_table(found).columns[0].cells)
    assert titles[-1] == "on record"
    assert "all clients, held-out" in titles


def test_images_that_changed_since_the_run_are_refused(opened: OpenedModel, home: Path) -> None:
    assert opened.record is not None
    changed = tuple(item.model_copy(update={"test_digest": "b" * 64}) for item in opened.record.evaluations)
    other = OpenedModel(
        opened.title, opened.detector, opened.card, SPEC, opened.record.model_copy(update={"evaluations": changed})
    )
    with pytest.raises(DataError, match="its held-out images have changed since the run: expected digest bbbb"):
        evaluated(other, home, **{"evaluation.on": "holdout"})


def test_data_without_enough_held_out_images_are_refused(opened: OpenedModel, home: Path) -> None:
    data = load_data(DATA, root_of=lambda name: None, cache=home / "cache" / "data")
    with pytest.raises(DataError, match="expected a client with at least 999 held-out images, found none"):
        evaluation_sets(data, data.classes, on="holdout", least=999)


def test_the_analysis_has_a_folder_for_each_part_of_the_data(opened: OpenedModel, home: Path, tmp_path: Path) -> None:
    found = evaluated(opened, home, **{"evaluation.on": "both"})
    analyses = found.analyses()
    assert list(analyses) == ["test", "holdout"]
    for part, analysis in analyses.items():
        records = [record for record in found.records if record.on == part]
        assert (analysis.sets, analysis.images) == (len(records), sum(record.test_size for record in records))
    (record,) = [record for record in found.records if record.on == "test"]
    assert analyses["test"].errors.average_precision == record.map50_voc10
    written = write_analyses(analyses, found.model.title, tmp_path)
    assert len(written) == 12
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")) == sorted(written)
    assert "holdout/errors.csv" in written
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/.*: cannot be written"):
        write_analyses(analyses, "m", tmp_path / "file")
    assert write_analyses({"test": analyses["test"]}, "m", tmp_path / "one")[0] == "precision-recall.csv"
    documents = analysis_documents(analyses)
    assert json.loads(json.dumps(documents, allow_nan=False)) == documents
    assert documents["test"]["map50_voc10"] == record.map50_voc10
