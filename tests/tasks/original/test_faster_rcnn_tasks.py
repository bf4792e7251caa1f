"""Task files of the original's Faster R-CNN: as its generators write them, and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import SpecError
from tasks.original.convert import Conversion, convert_task
from tasks.spec.detector_parts import TorchvisionWeights
from tasks.spec.faster_rcnn import FasterRcnnVgg16Spec
from tasks.spec.federation import load_spec
from tasks.spec.presets import street5_faster_rcnn
from tasks.spec.training import Adam, Sgd
from tests.tasks.original.task_folder import write, write_tasks

FOLDER = "data/task_configs/faster/street_5"
MODEL_PATH = f"{FOLDER}/faster_model.json"
SERVER: dict[str, Any] = {
    "model_name": "FasterRCNN",
    "model_config": MODEL_PATH,
    "log_dir": "faster/street_5",
    "data_path": "data/Street_voc/total",
    "model_path": "faster_model.pkl",
    "MIN_NUM_WORKERS": 5,
    "MAX_NUM_ROUNDS": 1000,
    "NUM_TOLERATE": -1,
    "NUM_CLIENTS_CONTACTED_PER_ROUND": 5,
    "ROUNDS_BETWEEN_VALIDATIONS": 1000,
}
MODEL: dict[str, Any] = {
    "model_name": "fasterrcnn-faccee",
    "env": "FasterRCNN",
    "plot_every": 100,
    "batch_size": 1,
    "label_names": ["basket", "carton", "chair", "electrombile", "gastank", "sunshade", "table"],
}


def client(number: int) -> dict[str, Any]:
    return {
        "model_name": "FasterRCNN",
        "model_config": MODEL_PATH,
        "log_filename": f"faster/street_5/FL_client_{number}_log",
        "data_path": f"data/street_5/{number}",
        "local_epoch": 5,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the original's root folder with the task files that its generator writes."""
    write_tasks(tmp_path / FOLDER, "faster", SERVER, MODEL, client)
    return tmp_path


def became(conversion: Conversion, name: str) -> list[str]:
    return [row.became for row in conversion.rows if row.field == name]


def with_model(root: Path, **fields: Any) -> Conversion:
    write(root / MODEL_PATH, MODEL | fields)
    return convert_task(root / FOLDER / "faster_task.json")


def test_the_generated_task_becomes_its_experiment(root: Path) -> None:
    spec = convert_task(root / FOLDER / "faster_task.json").spec
    assert (spec.seed, spec.max_rounds, spec.patience, spec.best_metric) == (1234, 1001, None, "map50_voc07")
    assert (spec.data.kind, spec.clients) == ("federated-street", ("1", "2", "3", "4", "5"))
    assert spec.detector == FasterRcnnVgg16Spec(weights=TorchvisionWeights(name="vgg16-397923af.pth"))
    assert spec.detector.frozen == 4
    training = spec.training
    assert (training.local_epochs, training.batch_size, training.accumulate, training.loader_workers) == (5, 1, 1, 8)
    assert training.optimizer == Sgd(lr=1e-4, momentum=0.9, weight_decay=5e-4)
    assert (training.clip_norm, training.schedule.warmup_steps, training.multi_scale) == (None, 0, None)
    assert (spec.evaluation.score_threshold, spec.evaluation.nms_iou) == (0.001, 0.3)
    assert (spec.participation.min_clients, spec.participation.clients_per_round) == (5, 5)


def test_the_preset_has_the_published_detector_and_training(root: Path) -> None:
    spec, preset = convert_task(root / FOLDER / "faster_task.json").spec, street5_faster_rcnn()
    assert spec.detector == preset.detector
    assert spec.training.optimizer == preset.training.optimizer
    assert spec.training.augmentation == preset.training.augmentation


def test_every_field_has_a_line_and_the_yaml_is_the_specification(root: Path, tmp_path: Path) -> None:
    conversion = convert_task(root / FOLDER / "faster_task3.json")
    file = tmp_path / "spec.yaml"
    file.write_text(conversion.to_yaml())
    assert load_spec(file) == conversion.spec == convert_task(root / FOLDER / "faster_task.json").spec
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for name in (*SERVER, *MODEL, *client(3)):
        assert any(f": {name} " in line for line in head), name
    assert not any("unknown to this reader" in line for line in head)


def test_older_copies_name_the_epochs_and_the_model_file_otherwise(tmp_path: Path) -> None:
    model = {key: value for key, value in MODEL.items() if key != "model_name"} | {"epoch": 14}
    write(tmp_path / "faster_rcnn_model.json", model)
    fields = {"model_name": "FasterRCNN", "model_config_file": "faster_rcnn_model.json", "epoch": 3}
    fields |= {"log_filename": "logs/street_20/a", "data_path": "../street_20/1", "train_size": 40, "test_size": 191}
    conversion = convert_task(write(tmp_path / "faster_rcnn_task1.json", fields))
    assert (conversion.spec.training.local_epochs, len(conversion.spec.clients or ())) == (3, 20)
    assert became(conversion, "epoch")[1] == "not carried over: the original's federated code never uses it"


def test_fields_of_the_originals_configuration(root: Path) -> None:
    spec = with_model(root, lr=3e-4, weight_decay=1e-4, min_size=300, max_size=500, num_workers=2).spec
    assert spec.training.optimizer == Sgd(lr=3e-4, momentum=0.9, weight_decay=1e-4)
    assert spec.training.loader_workers == 2
    assert isinstance(spec.detector, FasterRcnnVgg16Spec)
    assert (spec.detector.width, spec.detector.height) == (352, 288)  # 367 x 300: to the nearest 32
    assert with_model(root, use_adam=True).spec.training.optimizer == Adam(lr=1e-4, weight_decay=5e-4)
    longer = with_model(root, max_size=704)
    assert (longer.spec.detector.width, longer.spec.detector.height) == (704, 576)
    (line,) = became(with_model(root, batch_size=4), "batch_size")
    assert line.startswith("not carried over: training.batch_size: 1; ")
    assert "dropout" in became(with_model(root, use_drop=True), "use_drop")[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": "fast"}, "lr: expected a number from 0 to 10, found fast"),
        ({"lr": 0}, "training.optimizer.lr: expected more than 0"),
        ({"use_adam": "yes"}, "use_adam: expected true or false, found yes"),
        ({"min_size": 8}, "min_size: expected a whole number from 32, found 8"),
        ({"max_size": 10**6, "min_size": 10**6}, "detector.width: expected at most 2048"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1, found 0"),
        ({"load_path": 3}, "load_path: expected text, found 3"),
        ({"weight_decay": True}, "weight_decay: expected a number from 0 to 10, found True"),
        ({"caffe_pretrain": 1}, "caffe_pretrain: expected true or false, found 1"),
    ],
)
def test_wrong_fields_are_refused_by_name(root: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        with_model(root, **fields)
    assert message in str(error.value)
