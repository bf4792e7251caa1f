"""The specification: its digest, its files, and how its fields are set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.spec.federation import FederationSpec, changed_fields, load_spec, parse_spec, with_fields
from tasks.spec.presets import PRESETS, preset
from tasks.spec.training import AdamW, Sgd


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_are_read_from_their_file(name: str, tmp_path: Path) -> None:
    spec = preset(name)
    (tmp_path / "spec.yaml").write_text(spec.to_yaml())
    (tmp_path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")))
    for file in ("spec.yaml", "spec.json"):
        again = load_spec(tmp_path / file)
        assert again == spec
        assert again.digest == spec.digest
    assert FederationSpec.model_validate_json(spec.model_dump_json()) == spec


def test_presets_differ() -> None:
    assert len({preset(name).digest for name in PRESETS}) == len(PRESETS)


def test_a_digest_depends_on_the_fields_and_not_on_how_they_are_written() -> None:
    short = parse_spec({"training": {"optimizer": {"kind": "adamw", "lr": 1}}}, source="a")
    long = parse_spec(
        {"seed": "1234", "training": {"batch_size": 8, "optimizer": {"lr": 1.0, "kind": "adamw"}}}, source="b"
    )  # fmt: skip
    assert short.digest == long.digest
    assert short.digest != parse_spec({"seed": 1}, source="c").digest


def test_a_digest_is_the_same_in_every_process() -> None:
    program = "from tasks.spec.presets import preset; print(preset('smoke').digest)"
    root = Path(__file__).resolve().parents[3]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=root, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == preset("smoke").digest


def test_an_empty_file_is_the_default_specification(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_spec(tmp_path / "empty.yaml") == FederationSpec()


def test_fields_are_set_by_dotted_names() -> None:
    spec = with_fields(
        FederationSpec(),
        {"training.optimizer.lr": "1e-3", "detector.width": 320, "participation.clients": ["2", "1"], "patience": 3},
        source="--set",
    )
    assert spec.training.optimizer.lr == 1e-3  # a YAML 1.1 reader gives the text 1e-3
    assert (spec.detector.width, spec.detector.height) == (320, 416)
    assert spec.participation.clients == ("2", "1")
    assert spec.patience == 3


def test_another_kind_starts_from_its_own_defaults_whatever_the_order() -> None:
    fields = {"training.optimizer.momentum": 0.5, "training.optimizer.kind": "sgd"}
    assert with_fields(FederationSpec(), fields, source="--set").training.optimizer == Sgd(momentum=0.5)
    same = with_fields(FederationSpec(), {"training.optimizer.kind": "adamw"}, source="--set")
    assert same.training.optimizer == AdamW()


def test_changes_are_named_with_both_values() -> None:
    old = FederationSpec()
    new = with_fields(old, {"training.optimizer.kind": "sgd", "max_rounds": 12, "target_map": 0.5}, source="x")
    changes = changed_fields(old, new)
    assert changes["max_rounds"] == (10, 12)
    assert changes["target_map"] == (None, 0.5)
    assert changes["training.optimizer.kind"] == ("adamw", "sgd")
    assert changes["training.optimizer.momentum"] == (None, 0.9)
    assert "training.optimizer.lr" not in changes
    assert changed_fields(old, old) == {}


def test_a_specification_is_immutable() -> None:
    spec = FederationSpec()
    with pytest.raises(ValueError, match="frozen"):
        spec.max_rounds = 3  # type: ignore[misc]
    assert hash(spec) == hash(FederationSpec())
    assert yaml.safe_load(spec.to_yaml())["version"] == 1


def test_classes_are_in_the_order_of_labels_whatever_the_order_in_json() -> None:
    named = parse_spec({"data": {"kind": "coco", "name": "mine", "classes": ["van", "car", "bus"]}}, source="test")
    assert named.class_order(["bus", "car", "van"]) == ("van", "car", "bus")
    unnamed = parse_spec({"data": {"kind": "coco", "name": "mine"}}, source="test")
    assert unnamed.class_order(["van", "car", "bus"]) == ("bus", "car", "van")
    # No class is lost if a client has other classes.
    assert named.class_order(["x", "car", "a"]) == ("car", "a", "x")
