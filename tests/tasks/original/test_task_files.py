"""Task files of the original benchmark: as published, in unusual places and forms, and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.errors import SpecError
from tasks.original.convert import Conversion, convert_task
from tasks.original.network_file import read_network
from tasks.original.rounds_csv import rounds_csv
from tasks.spec.detector import DarknetWeights
from tasks.spec.federation import load_spec, parse_spec
from tests.tasks.original.task_folder import write, write_tasks

FOLDER = "data/task_configs/yolo/street_5"
MODEL_PATH = f"{FOLDER}/yolo_model.json"
SERVER: dict[str, Any] = {
    "model_name": "Yolo",
    "model_config": MODEL_PATH,
    "log_dir": "yolo/street_5",
    "model_path": "yolo_model.pkl",
    "MIN_NUM_WORKERS": 5,
    "MAX_NUM_ROUNDS": 1000,
    "NUM_TOLERATE": -1,
    "NUM_CLIENTS_CONTACTED_PER_ROUND": 5,
    "ROUNDS_BETWEEN_VALIDATIONS": 1000,
}
MODEL: dict[str, Any] = {
    "model_def": "config/yolov3-custom-street.cfg",
    "pretrained_weights": "weights/darknet53.conv.74",
    "multiscale_training": True,
    "gradient_accumulations": 2,
    "img_size": 416,
}


def client(number: int) -> dict[str, Any]:
    return {
        "model_name": "Yolo",
        "model_config": MODEL_PATH,
        "log_filename": f"yolo/street_5/FL_client_{number}_log",
        "train": f"data/street_5/{number}/train.txt",
        "test": f"data/street_5/{number}/test.txt",
        "names": "data/street_5/classes.names",
        "n_cpu": 4,
        "local_epoch": 5,
        "batch_size": 1,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the original's root folder with its published task files."""
    write_tasks(tmp_path / FOLDER, "yolo", SERVER, MODEL, client)
    return tmp_path


def became(conversion: Conversion, name: str) -> str:
    (found,) = {row.became for row in conversion.rows if row.field == name}
    return found


def test_the_published_task_becomes_its_experiment(root: Path) -> None:
    spec = convert_task(root / FOLDER / "yolo_task.json").spec
    assert (spec.seed, spec.max_rounds, spec.patience) == (1234, 1001, None)
    assert (spec.data.kind, spec.clients) == ("federated-street", ("1", "2", "3", "4", "5"))
    assert spec.detector.kind == "yolov3"
    assert (spec.detector.width, spec.detector.height) == (416, 352)
    assert (spec.detector.assignment, spec.detector.box_loss) == ("best-prior", "squared-error")
    assert spec.detector.weights == DarknetWeights(name="darknet53.conv.74")
    pixels = [(round(width * 416, 2), round(height * 352, 2)) for width, height in spec.detector.anchors]
    assert (pixels[0], pixels[-1]) == ((10, 13), (373, 326))
    training = spec.training
    assert (training.local_epochs, training.batch_size, training.accumulate, training.loader_workers) == (5, 1, 2, 4)
    assert training.multi_scale == (320, 512)
    assert (training.optimizer.kind, training.optimizer.lr, training.clip_norm) == ("adam", 0.001, None)
    assert (training.augmentation.flip, training.augmentation.color, training.schedule.warmup_steps) == (0.5, 0, 0)
    assert (spec.evaluation.score_threshold, spec.evaluation.nms_iou) == (0.001, 0.5)
    assert (spec.participation.min_clients, spec.participation.clients_per_round) == (5, 5)
    assert not spec.participation.check_load


def test_the_yaml_is_a_specification_and_explains_each_original_field(root: Path, tmp_path: Path) -> None:
    conversion = convert_task(root / FOLDER / "yolo_task.json")
    file = write(tmp_path / "spec.yaml", conversion.to_yaml())
    assert load_spec(file) == conversion.spec
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for name in (*SERVER, *MODEL, *client(1)):
        assert any(f": {name} " in line for line in head), name
    assert "one round more" in became(conversion, "MAX_NUM_ROUNDS")
    assert "cuts the recall axis short" in became(conversion, "confidence 0.5")
    assert became(conversion, "ROUNDS_BETWEEN_VALIDATIONS").startswith("not carried over: every round is evaluated")
    assert "images to a square" in became(conversion, "img_size")


def test_a_clients_task_file_finds_the_servers(root: Path) -> None:
    by_client = convert_task(root / FOLDER / "yolo_task3.json")
    assert by_client.spec == convert_task(root / FOLDER / "yolo_task.json").spec
    assert {row.file for row in by_client.rows} >= {"yolo_task3.json", "yolo_task.json", "yolo_model.json"}


def test_missing_files_are_replaced_by_the_published_values(tmp_path: Path) -> None:
    model = write(tmp_path / "m.json", MODEL)
    server = convert_task(write(tmp_path / "a" / "task.json", SERVER), model)
    assert (server.spec.training.local_epochs, server.spec.training.batch_size) == (5, 1)
    assert "as published" in became(server, "local_epoch, batch_size")
    alone = convert_task(write(tmp_path / "b" / "yolo_task2.json", client(2) | {"local_epoch": 3}), model)
    assert (alone.spec.max_rounds, alone.spec.training.local_epochs) == (1001, 3)
    assert "as published" in became(alone, "MAX_NUM_ROUNDS, …")
    nothing = convert_task(write(tmp_path / "c" / "task.json", {"MAX_NUM_ROUNDS": 3}))
    assert (nothing.spec.max_rounds, nothing.spec.detector.kind) == (4, "yolov3")
    assert became(nothing, "model file") == "as published: no field names one"


def test_the_model_file_is_found_beside_and_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "flat" / "yolo_model.json", MODEL | {"gradient_accumulations": 4})
    beside = convert_task(write(tmp_path / "flat" / "task.json", SERVER))
    assert beside.spec.training.accumulate == 4
    assert "3 steps in 4" in became(beside, "gradient_accumulations")
    write(tmp_path / "root" / MODEL_PATH, MODEL | {"gradient_accumulations": 1})
    monkeypatch.chdir(tmp_path / "root")
    away = convert_task(write(tmp_path / "away" / "task.json", SERVER))
    assert away.spec.training.accumulate == 1
    assert "no step at all" in became(away, "gradient_accumulations")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"NUM_TOLERATE": 3}, {"patience": 4, "patience_metric": "loss"}),
        ({"NUM_TOLERATE": 0}, {"patience": None}),
        ({"MAX_NUM_ROUNDS": 0}, {"max_rounds": 1}),
        ({"ignore_load": True}, {"participation.check_load": False}),
        ({"ignore_load": False}, {"participation.check_load": True, "participation.max_load": 0.4}),
        ({"device": "cuda"}, {"training.device": "cuda"}),
        ({"gpu": 0}, {"training.device": "cuda"}),
        ({"device": "cpu"}, {"training.device": "cpu"}),
        ({"local_epoch": 10, "batch_size": 4}, {"training.local_epochs": 10, "training.batch_size": 4}),
        ({"multiscale_training": False}, {"training.multi_scale": None}),
        ({"pretrained_weights": None}, {"detector.weights.kind": "random"}),
        ({"pretrained_weights": "checkpoints/yolov3_ckpt_99.pth"}, {"detector.weights.kind": "random"}),
        ({"pretrained_weights": "C:\\w\\yolov3.weights"}, {"detector.weights.name": "yolov3.weights"}),
        ({"model_def": "config/yolov3-tiny.cfg"}, {"detector.kind": "yolov3-tiny"}),
        ({"nms_thres": 0.4, "conf_thres": 0.5}, {"evaluation.nms_iou": 0.4, "evaluation.score_threshold": 0.001}),
        ({"img_size": 608}, {"detector.width": 416}),
        ({"log_dir": "yolo/street_20", "model_config": None}, {"data.split": 20}),
        ({"log_filename": "x", "model_config": None, "MIN_NUM_WORKERS": 20}, {"data.split": 20}),
        ({"log_dir": "street_200"}, {"data.split": 5}),
    ],
)
def test_fields_of_both_files_are_converted(tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Some copies of the original have all fields in one file."""
    task = write(tmp_path / "task.json", {"model_name": "yolo", "MAX_NUM_ROUNDS": 10, **fields})
    spec = convert_task(task).spec.model_dump(mode="json")
    for name, value in expected.items():
        found: Any = spec
        for part in name.split("."):
            found = found[part]
        assert found == value, name


def test_unknown_fields_are_listed_and_change_nothing(tmp_path: Path) -> None:
    odd = {"momentum": 0.9, "a\nmax_rounds: 7\n": "x\u2028y", "nested": {"deep": [1, 2]}, "long": "z" * 500}
    conversion = convert_task(write(tmp_path / "task.json", {"MAX_NUM_ROUNDS": 1, **odd}))
    rows = [row for row in conversion.rows if row.became == "not carried over: unknown to this reader"]
    assert [row.field for row in rows] == ["momentum", "a?max_rounds: 7?", "nested", "long"]
    assert parse_spec(yaml.safe_load(conversion.to_yaml()), source="x") == conversion.spec
    assert conversion.spec.max_rounds == 2
    assert max(map(len, conversion.to_yaml().splitlines())) < 400


def test_clients_that_differ_are_named(root: Path) -> None:
    write(root / FOLDER / "yolo_task4.json", client(4) | {"local_epoch": 1})
    conversion = convert_task(root / FOLDER / "yolo_task.json")
    assert conversion.spec.training.local_epochs == 5
    (line,) = [row.became for row in conversion.rows if row.file == "(its code)" and row.field == "local_epoch"]
    assert line == "yolo_task1.json's for every client; not carried over: another one in yolo_task4.json"


def test_the_originals_folders_of_devices_are_read_in_place(root: Path) -> None:
    (root / "data" / "street_5" / "1" / "Annotations").mkdir(parents=True)
    data = convert_task(root / FOLDER / "yolo_task.json").spec.data
    assert data.model_dump()["form"] == "voc"


def cfg(
    convolutions: int = 13, outputs: int = 2, classes: object = 7, anchors: str = "10,14, 23,27", **keys: str
) -> str:
    masks = ("1", "0", "0")
    text = "[net]\nwidth=416\n# a comment = none\n" + "[convolutional]\nfilters=16\n" * convolutions
    for number in range(outputs):
        values = {"mask": masks[number], "anchors": anchors, "classes": str(classes), **keys}
        text += "[yolo]\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value)
    return text


def test_the_cfg_determines_network_anchors_and_scales(root: Path) -> None:
    write(root / "config" / "yolov3-custom-street.cfg", cfg())
    spec = convert_task(root / FOLDER / "yolo_task.json").spec
    assert spec.detector.kind == "yolov3-tiny"  # the file's content decides, not its name
    assert spec.detector.masks == ((0,), (1,))
    assert spec.detector.anchors == ((round(10 / 416, 6), round(14 / 352, 6)), (round(23 / 416, 6), round(27 / 352, 6)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cfg(14), r"14 \[convolutional\] and 2 \[yolo\] sections; expected a cfg with 75 \(yolov3\) or 13"),
        (cfg(outputs=0), r"13 \[convolutional\] and 0 \[yolo\]"),
        (cfg(anchors=""), r"\[yolo\] anchors: missing"),
        (cfg(anchors="10,14,x"), r"\[yolo\] anchors: expected numbers, found '10,14,x'"),
        (cfg(anchors="10,14,23"), r"\[yolo\] anchors: expected the same pairs"),
        (cfg(mask="1_0"), r"\[yolo\] mask: expected numbers, found '1_0'"),
        (cfg(mask="inf"), r"\[yolo\] mask: expected numbers, found 'inf'"),
        (
            cfg() + "[yolo]\nmask=0\nanchors=10,14,23,27\nclasses=80\n",
            r"\[yolo\] classes: expected one number, found 7, 80",
        ),
        ("\x00\x01", r"0 \[convolutional\]"),
    ],
)  # fmt: skip
def test_wrong_cfg_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_network(write(tmp_path / "net.cfg", text))


def test_a_cfg_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    path.write_bytes(b"\xff\xfe[net]")
    with pytest.raises(SpecError, match="expected a Darknet cfg, found text that is not UTF-8"):
        read_network(path)
    with pytest.raises(SpecError, match=r"none\.cfg: cannot be read"):
        read_network(tmp_path / "none.cfg")


WRONG: dict[str, tuple[Any, str]] = {
    "other detector": ({"model_name": "ssd"}, "model_name: expected Yolo or FasterRCNN, found ssd"),
    "no name": ({"model_name": None}, "model_name: expected Yolo or FasterRCNN, found None"),
    "no json": ("{", "expected JSON"),
    "key twice": ('{"MAX_NUM_ROUNDS": 1,\n"MAX_NUM_ROUNDS": 2}', "MAX_NUM_ROUNDS: expected each key once"),
    "deep json": ("[" * 100_000, "expected JSON"),
    "a list": ([1], "expected a mapping of fields, found list"),
    "too long": ('{"a": "' + "x" * 1_000_001 + '"}', "more than 1000000 bytes"),
    "no model file": ({"model_config": "not/here.json"}, "model_config: no file not/here.json in the task's folder"),
    "model file of no name": ({"model_config": 3}, "model_config: expected the model file's path, found 3"),
    "model file that none can be": ({"model_config": "a\x00b"}, "model_config: no file a?b"),
    "model file too long a name": ({"model_config_file": "a" * 5000}, "model_config_file: no file aaaa"),
    "rounds": ({"MAX_NUM_ROUNDS": -1}, "MAX_NUM_ROUNDS: expected a whole number from 0, found -1"),
    "rounds as text": ({"MAX_NUM_ROUNDS": "10"}, "MAX_NUM_ROUNDS: expected a whole number from 0, found 10"),
    "rounds as flag": ({"MAX_NUM_ROUNDS": True}, "MAX_NUM_ROUNDS: expected a whole number from 0, found True"),
    "too many rounds": ({"MAX_NUM_ROUNDS": 10**9}, "max_rounds: expected at most 100000"),
    "tolerance": ({"NUM_TOLERATE": 1.5}, "NUM_TOLERATE: expected a whole number"),
    "more clients than devices": (
        {"MIN_NUM_WORKERS": 6, "log_dir": "street_5"},
        "participation.min_clients: expected at most 5, the split's devices, found 6",
    ),
    "contacted": (
        {"NUM_CLIENTS_CONTACTED_PER_ROUND": 0},
        "NUM_CLIENTS_CONTACTED_PER_ROUND: expected a whole number from 1, found 0",
    ),
    "epochs": ({"local_epoch": 0}, "local_epoch: expected a whole number from 1, found 0"),
    "many epochs": ({"local_epoch": 5000}, "training.local_epochs: expected at most 1000, found 5000"),
    "batch": ({"batch_size": 2.5}, "batch_size: expected a whole number from 1, found 2.5"),
    "workers": ({"n_cpu": -1}, "n_cpu: expected a whole number from 0, found -1"),
    "accumulation": ({"gradient_accumulations": 0}, "gradient_accumulations: expected a whole number from 1, found 0"),
    "scale": ({"multiscale_training": "yes"}, "multiscale_training: expected true or false, found yes"),
    "load": ({"ignore_load": 1}, "ignore_load: expected true or false, found 1"),
    "size": ({"img_size": 8}, "img_size: expected a whole number from 32, found 8"),
    "weights": ({"pretrained_weights": 7}, "pretrained_weights: expected text, found 7"),
    "overlap": ({"nms_thres": 1.5}, "nms_thres: expected a number from 0 to 1, found 1.5"),
    "no overlap": ({"nms_thres": 0}, "evaluation.nms_iou: expected more than 0"),
    "confidence": ({"conf_thres": float("nan")}, "conf_thres: expected a number from 0 to 1, found nan"),
    "device": ({"device": [0]}, "device: expected cpu, cuda or a GPU's number, found [0]"),
    "network": ({"model_def": None}, "model_def: expected text, found None"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_task_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    document, message = WRONG[case]
    if isinstance(document, dict):
        document = {"MAX_NUM_ROUNDS": 10, **document}
    path = write(tmp_path / "task.json", document)
    with pytest.raises(SpecError) as caught:
        convert_task(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.json: cannot be read: No such file"):
        convert_task(tmp_path / "none.json")
    task = write(tmp_path / "task.json", {"MAX_NUM_ROUNDS": 1})
    with pytest.raises(SpecError, match=r"model\.json: cannot be read"):
        convert_task(task, tmp_path / "model.json")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        convert_task(tmp_path)
    write(tmp_path / "task2.json", "nonsense")
    with pytest.raises(SpecError, match=r"task2\.json: expected JSON"):
        convert_task(task)


def test_the_csv_of_no_rounds_has_only_its_header() -> None:
    assert rounds_csv([]) == "round,train_loss,test_map,test_recall\n"
