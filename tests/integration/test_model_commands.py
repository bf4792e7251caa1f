"""``evaluate`` and ``predict`` with a real run's models: by run name, from a model file, from MLflow's registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.models.file import read_card
from tasks.spec.records import RoundRecord
from tests.integration.conftest import FinishedRun, images_of
from tests.integration.homes import Home

pytestmark = pytest.mark.integration


def evaluated(home: Home, path: Path, *words: object) -> dict[str, Any]:
    """Return the JSON that ``fedbench evaluate`` writes."""
    result = home.run("evaluate", *words, "--json", path)
    assert result.returncode == 0, result.stdout
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all that an evaluation measured except its seconds."""
    return [{**evaluation, "seconds": 0} for evaluation in found["evaluations"]]


def recorded(record: RoundRecord) -> list[dict[str, Any]]:
    return figures(record.model_dump(mode="json"))


def best_of(run: FinishedRun) -> RoundRecord:
    return run.records[run.records[-1].decision.best_round]


@pytest.fixture(scope="module")
def model_file(undisturbed: FinishedRun, shared_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    result = shared_home.run("save-model", "tiny", path)
    assert result.returncode == 0, result.stdout
    assert f"tiny, round {best_of(undisturbed).round}: {path}" in result.stdout
    return path


def test_an_evaluation_returns_the_runs_recorded_figures_to_the_bit(
    undisturbed: FinishedRun, shared_home: Home, tmp_path: Path
) -> None:
    best, last = best_of(undisturbed), undisturbed.records[-1]
    for words, record in ((("tiny",), best), (("tiny", "--round", last.round), last)):
        found = evaluated(shared_home, tmp_path / "e.json", *words)
        assert figures(found) == recorded(record)
        untrained = {**record.metrics.model_dump(mode="json"), "train_loss": None}
        untrained["unweighted"] = {**untrained["unweighted"], "train_loss": None}
        assert found["metrics"] == untrained


def test_a_model_file_is_evaluated_like_its_run(
    undisturbed: FinishedRun, shared_home: Home, model_file: Path, tmp_path: Path
) -> None:
    best = best_of(undisturbed)
    card = read_card(model_file)
    assert (card.federation, card.round, card.spec_digest) == ("tiny", best.round, best.spec_digest)
    words = (model_file, "--threads", 1, "-s", "evaluation.batch_size=4")
    (found,) = figures(evaluated(shared_home, tmp_path / "e.json", *words))
    (expected,) = recorded(best)
    assert found == expected


def test_a_model_predicts_the_same_by_name_from_a_file_and_from_the_registry(
    undisturbed: FinishedRun, shared_home: Home, model_file: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in images_of(undisturbed)[:6]:
        (images / path.name).write_bytes(path.read_bytes())
    answers = []
    for number, model in enumerate(("tiny", model_file, "models:/tiny@best")):
        out, path = tmp_path / str(number), tmp_path / f"{number}.json"
        result = shared_home.run("predict", model, images, "--out", out, "--score", 0, "--json", path)
        assert result.returncode == 0, result.stdout
        found = json.loads(path.read_text())
        assert (found["federation"], found["round"]) == ("tiny", best_of(undisturbed).round)
        answers.append([(entry["file"], entry["detections"]) for entry in found["images"]])
        assert len(answers[-1]) == len(list(out.iterdir())) == 6
        for entry in found["images"][:3]:
            with Image.open(entry["drawn"]) as drawn:
                assert drawn.size == (entry["width"], entry["height"]) == (96, 80)
    assert any(detections for _, detections in answers[0])
    assert all(answer == answers[0] for answer in answers)


def test_unknown_models_are_refused(shared_home: Home) -> None:
    result = shared_home.run("evaluate", "nobody")
    assert result.returncode == 2, result.stdout
    assert "nobody: no such model: no run of this name in the store (it has: " in result.stdout
    result = shared_home.run("predict", "models:/nobody@best", shared_home.path)
    assert result.returncode == 2, result.stdout
    result = shared_home.run("evaluate", "models:/nobody@best")
    assert result.returncode == 2, result.stdout
    assert "models:/nobody@best: no such model in the registry; it has: models:/" in result.stdout
    assert "models:/tiny@best" in result.stdout
    assert "Traceback" not in result.stdout
