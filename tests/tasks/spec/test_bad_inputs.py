"""Bad inputs are refused, and the message names the field, file or client, and what was expected there.

One table has specifications, their files, ``--set``, settings, names, data sets, updates and objects of the store.
Rows of a command run the real command. It must end without a traceback, with exit code 2 (1 if something failed).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infra.errors import StoreCorrupt
from infra.store.objects import ObjectStore
from tasks.data.synthetic import make_synthetic_street
from tasks.errors import ClientError, FedbenchError, SpecError
from tasks.spec.data import SyntheticStreet
from tasks.spec.plans import RoundPlan, UpdateRecord
from tests.tasks.spec.bad_input_rows import (
    FAILED,
    GOOD,
    Bench,
    Exit,
    Row,
    another_run,
    command,
    data,
    diverged,
    file,
    labels,
    missing_weights,
    other_detector,
    other_weights,
    record,
    setting,
    settings,
    spec,
    stored,
    update,
)

TINY = {"kind": "yolov3-tiny"}
ADAMW = {"kind": "adamw"}
FLIPPED = {"class": "table", "bbox": ["30", "2", "10", "9"]}
NEWER = "is newer than this fedbench understands (up to 1)"
NOBODY = "http://127.0.0.1:9/api"

TABLE: dict[str, Row] = {
    # Specifications: one field.
    "unknown field": spec({"max_round": 3}, "max_round: no such field; expected one of: version, seed, max_rounds"),
    "unknown nested field": spec({"detector": {**TINY, "widht": 64}}, "detector.widht: no such field", "width, height"),
    "word for a number": spec({"max_rounds": "many"}, "max_rounds: expected a whole number, found 'many'"),
    "half a round": spec({"max_rounds": 1.5}, "max_rounds: expected a whole number, found 1.5"),
    "too small": spec({"seed": -1}, "seed: expected at least 0, found -1"),
    "too large": spec({"seed": 2**32}, "seed: expected less than 4294967296"),
    "not finite": spec({"target_map": float("nan")}, "target_map: expected a finite number, found nan"),
    "null": spec({"max_rounds": None}, "max_rounds: expected a whole number, found None"),
    "unknown kind": spec({"data": {"kind": "lvis"}}, "data.kind: expected one of: 'synthetic-street', 'federated-s"),
    "no kind": spec({"data": {"split": 5}}, "data.kind: expected one of: 'synthetic-street'", "found none"),
    "not a mapping": spec({"training": 3}, "training: expected a mapping of fields, found 3"),
    "list as specification": spec([1], "expected a mapping of fields, found list"),
    "unknown choice": spec({"training": {"device": "tpu"}}, "training.device: expected 'cpu' or 'cuda', found 'tpu'"),
    "probability": spec({"training": {"augmentation": {"flip": 2}}}, "training.augmentation.flip: expected at most 1"),
    "threshold": spec({"evaluation": {"score_threshold": 1}}, "evaluation.score_threshold: expected less than 1"),
    "optimizer": spec({"training": {"optimizer": {"kind": "lion"}}}, "optimizer.kind: expected one of: 'adamw'"),
    "field of another kind": spec(
        {"training": {"optimizer": {"kind": "sgd", "betas": [0.9, 0.99]}}},
        "training.optimizer.betas: no such field; expected one of: kind, lr, momentum",
    ),
    "beta of one": spec(
        {"training": {"optimizer": {**ADAMW, "betas": [0.9, 1]}}},
        "training.optimizer.betas.1: expected less than 1, found 1",
    ),
    "one beta": spec({"training": {"optimizer": {**ADAMW, "betas": [0.9]}}}, "training.optimizer.betas.1: missing"),
    "anchors in pixels": spec(
        {"detector": {**TINY, "anchors": [[10, 14]]}}, "detector.anchors.0.0: expected at most 1, found"
    ),
    "three scales": spec(
        {"detector": {**TINY, "masks": [[0], [1], [2]]}},
        "detector.masks: expected 2, one a scale (strides 16, 32), found 3",
    ),
    "digest": spec({"data": {"kind": "federated-street", "digest": "12"}}, "data.digest: expected text that matches"),
    "client number": spec({"participation": {"clients": [1]}}, "participation.clients.0: expected text", "in quotes"),
    "client with a slash": spec({"participation": {"clients": ["../1"]}}, "participation.clients.0", "matches ^[A-Za"),
    "two mistakes": spec(
        {"seed": -1, "detector": {**TINY, "width": "x"}}, "seed: expected", "\nmy.yaml: detector.width: exp"
    ),
    # Specifications: fields that contradict each other.
    "width": spec({"detector": {**TINY, "width": 300}}, "detector.width: expected a multiple of 32, found 300"),
    "height of the laptop's": spec(
        {"detector": {"kind": "fcos-lite0", "height": 300}}, "detector.height: expected a multiple of 32, found 300"
    ),
    "frozen blocks that nobody trained": spec(
        {"detector": {"kind": "fcos-lite0", "weights": {"kind": "random"}}},
        "detector.frozen_blocks: expected 0 with random weights, found 3",
    ),
    "more frozen blocks than there are": spec(
        {"detector": {"kind": "fcos-lite0", "frozen_blocks": 17}}, "detector.frozen_blocks: expected", "17"
    ),
    "ImageNet weights for YOLO": spec(
        {"detector": {**TINY, "weights": {"kind": "efficientnet-lite0"}}}, "detector.weights.kind: expected"
    ),
    "backbone that does not learn": spec(
        {"detector": {"kind": "fcos-lite0", "backbone_lr": 0}}, "detector.backbone_lr: expected"
    ),
    "frozen statistics that nobody measured": spec(
        {"detector": {"kind": "faster-rcnn-resnet50-fpn", "norm": "frozen-batch-norm"}},
        "detector.norm: expected group-norm or batch-norm with random weights",
        "found frozen-batch-norm",
    ),
    "a torchvision file of no name": spec(
        {"detector": {"kind": "faster-rcnn-vgg16", "weights": {"kind": "torchvision", "name": "../vgg16.pth"}}},
        "detector.weights.name: expected text that matches",
    ),
    "a download that torchvision does not have": spec(
        {
            "detector": {
                "kind": "faster-rcnn-vgg16",
                "weights": {"kind": "torchvision-hub", "trained_on": "coco"},
            }
        },
        "detector.weights.trained_on: expected imagenet",
        "found coco",
    ),
    "mask of no anchor": spec(
        {"detector": {**TINY, "masks": [[0], [9]]}},
        "detector.masks: expected different indices of the 6 anchors, 0 to 5, found [9]",
    ),
    "no anchors": spec({"detector": {**TINY, "anchors": []}}, "detector.anchors: expected at least one anchor, found"),
    "amp on cpu": spec({"training": {"amp": True}}, "training.amp: expected false unless device is cuda"),
    "nesterov": spec(
        {"training": {"optimizer": {"kind": "sgd", "momentum": 0, "nesterov": True}}},
        "training.optimizer.nesterov: expected false without momentum",
    ),
    "no clients": spec({"participation": {"clients": []}}, "participation.clients: expected at least one client"),
    "client twice": spec({"participation": {"clients": ["1", "1"]}}, "participation.clients: ", "each named once"),
    "client of another split": spec(
        {"participation": {"clients": ["1", "9"]}}, "participation.clients: 9: expected devices of the 5-device split"
    ),
    "draws more than there are": spec(
        {"participation": {"clients": ["1", "2"], "clients_per_round": 3}},
        "participation.clients_per_round: expected at most 2, the number of clients, found 3",
    ),
    "quorum over the draw": spec(
        {"participation": {"clients_per_round": 2, "min_updates": 3}},
        "participation.min_updates: expected at most clients_per_round (2), found 3",
    ),
    "waits for more than there are": spec(
        {"participation": {"min_clients": 6}}, "participation.min_clients: expected at most 5, the split's devices"
    ),
    # Specification files.
    "newer specification": file("version: 2\nmax_raunds: 3\n", f"version: 2 {NEWER}"),
    "version in words": file("version: one\n", "version: expected a whole number from 1 to 1, found 'one'"),
    "file: field": file("training: {batch_size: 0}\n", "training.batch_size: expected at least 1, found 0"),
    "file: a suite's": file("experiments: []\n", "expected a federation's specification, found a suite"),
    "file: not YAML": file("max_rounds: [3\n", ".yaml, line 2, column 1: expected YAML: while parsing"),
    "file: control character": file("seed: \x07\n", ".yaml, line 1, column 7: expected YAML: unacceptable character"),
    "file: not text": file(b"\xff\xfe\x00", "expected YAML"),
    "file: key twice": file("max_rounds: 1\nseed: 2\nmax_rounds: 7\n", "max_rounds: ", "twice on lines 1 and 3"),
    "file: JSON key twice": file('{"seed": 1, "seed": 2}', "seed: expected each key once", name="my.json"),
    "file: leading zero": file("seed: 010\n", "my.yaml: line 1: seed: 010 has a leading zero: it is 8 in YAML 1.1"),
    "set: leading zero": setting("seed=010", "--set seed=010: seed: 010 has a leading zero", "expected quotes"),
    "set: two readings": setting("data={{kind: coco, name: a, pooled: no}}", "data.pooled: no is false in YAML 1.1"),
    "set: true as a number": setting("max_rounds=true", "max_rounds: expected a whole number, found True"),
    "set: key twice": setting("training={{batch_size: 4, batch_size: 5}}", "batch_size: expected each key once"),
    "file: no such date": file("seed: 2020-99-99\n", "line 1: seed: 2020-99-99 is a date in YAML 1.1"),
    "file: Python object": file("seed: !!python/object/apply:os.getpid []\n", "expected YAML", "could not determine"),
    "file: endless nesting": file("[" * 100_000, "expected YAML"),
    "file: list": file("- 1\n", "expected a mapping of fields, found list"),
    "file: missing": command("run", "{folder}/none.yaml", says=("none.yaml: cannot be read: No such file",)),
    "file: folder": command("run", "{folder}", says=("expected train_label.json (street), train.json", "(yolo)")),
    "no such preset": command("run", "street6", says=("street6: no such preset or file", "synthetic5, street5")),
    # --set and the other options.
    "set: no value": setting("seed", "--set seed: expected FIELD=VALUE"),
    "set: unknown": setting("detector.size=3", "detector.size: no such field; expected one of: kind, width"),
    "set: unknown group": setting("model.width=3", "model.width: no such field; expected one of: version, seed"),
    "set: below a value": setting("seed.x=3", "seed.x: seed has no fields"),
    "set: not YAML": setting("seed=[1", "--set seed=[1: expected a YAML value after ="),
    "set: no such date": setting("seed=2020-99-99", "--set seed=2020-99-99: seed: 2020-99-99 is a date in YAML 1.1"),
    "set: kind": setting("training.optimizer.kind=lion", "training.optimizer.kind: expected one of", "found 'lion'"),
    "set: against another field": setting("participation.min_updates=9", "participation.min_updates: expected at most"),
    "option: rounds": command("run", "smoke", "--max-rounds", "0", says=("max_rounds: expected at least 1, found 0",)),
    "option: name": command("run", "smoke", "--name", "a/b", says=("--name: expected letters", "'a/b'")),
    "option: unknown": command("run", "smoke", "--rounds", "3", says=("No such option: --rounds",)),
    "option: word": command("run", "smoke", "--seed", "x", says=("--seed", "valid integer")),
    "option: slots": command("run", "smoke", "--slots", "0", says=("slots: ", "or equal to 1 (found '0')")),
    "threads": setting("training.threads=64", "training.threads: expected at most", "this machine's cores, found 64"),
    "full disk": command("run", "smoke", ends=FAILED, says=("MB free under",), MIN_FREE_MEGABYTES="9" * 12),
    "no such run": command("show", "nobody", home="store", says=("nobody: no such federation in the store",)),
    "name with dots": command("resume", "../x", home="store", says=("federation: expected letters", "'../x'")),
    # Settings.
    "settings: unknown": settings("slotz: 3\n", "settings.yaml: slotz: no such setting; expected:", "slots"),
    "settings: number as name": settings("1: 3\n", "settings.yaml: 1: no such setting"),
    "settings: list": settings("[1]", "settings.yaml: expected a mapping of settings, found list"),
    "settings: not YAML": settings("slots: [\n", "settings.yaml, line 2, column 1: expected YAML"),
    "settings: value": settings("keep_globals: 1\n", "keep_globals: Input should be greater than or equal to 2"),
    "settings: S3 field": settings("s3: {bukket: x}\n", "s3.bukket: no such setting; expected one of: endpoint"),
    "settings: no file": command("list", says=("none.yaml: cannot be read",), SETTINGS="{folder}/none.yaml"),
    "settings: word": command("list", says=("slots: ", "valid integer", "'many'"), SLOTS="many"),
    "settings: endpoint": command("list", says=("s3.endpoint: expected a URL", "'box:9'"), S3__ENDPOINT="box:9"),
    "settings: half a key": command(
        "list", says=("s3.access_key and secret_key: expected both or neither",), S3__SECRET_KEY="hush"
    ),
    "settings: bucket": command("list", says=("s3.bucket: ", "should match pattern"), S3__BUCKET="A B"),
    "settings: not JSON": command("list", says=("data_roots", "expected JSON"), DATA_ROOTS="/data"),
    # Deployments.
    "deploy: no server": command(
        "deploy", ends=FAILED, says=("Prefect at http://127.0.0.1:9/api: does not answer",), PREFECT_API_URL=NOBODY
    ),
    # Which deployments there are, the server knows. Its test is in tests/flows/deployments/test_deployments.py.
    "deploy: no server named": command(
        "deploy", "--schedule", "street6=0 3 * * *", says=("prefect_api_url: expected the address of a Prefect server",)
    ),
    "deploy: cron": command(
        "deploy", "--schedule", "street5=0 3", says=("--schedule: expected five cron fields",), PREFECT_API_URL=NOBODY
    ),
    "deploy: pool": command("deploy", "--silo-pool", "a/b", says=("--silo-pool: expected letters", "'a/b'")),
    # Data sets.
    "data: no folder": command("run", "street5", says=("data.name", "'street'", "set FEDBENCH_STREET_DIR")),
    "data: another set": command("run", "street5", says=("expected content digest d7f1",), STREET_DIR="{street}"),
    "data: empty folder": command("run", "street5", says=("Images: no such folder",), STREET_DIR="{folder}"),
    "data: no labels": data(lambda street: (street / "test_label.json").unlink(), "test_label.json: no such file"),
    "data: not JSON": data(lambda street: (street / "train_label.json").write_text("{"), "label.json: expected JSON"),
    "data: box": data(
        labels("train_label.json", lambda document: document[0]["items"].insert(0, FLIPPED)),
        "train_label.json: image ", "object 1: bbox: expected xmin < xmax",
    ),
    "data: device": data(
        labels("train_label.json", lambda document: document[0].update(device_2_id="6")),
        "device_2_id: expected a device from 1 to 5, found '6'",
    ),
    "data: no image": data(lambda street: min((street / "Images").iterdir()).unlink(), "the image cannot be read"),
    # Updates.
    "update: shape": update({**GOOD, "conv.weight": torch.ones(3, 2)}, "conv.weight: expected float32 [2, 3], found"),
    "update: type": update({**GOOD, "conv.weight": torch.ones(2, 3).double()}, "float32 [2, 3], found float64"),
    "update: missing": update({"conv.weight": GOOD["conv.weight"]}, "batches_tracked: expected int64 []"),
    "update: extra": update({**GOOD, "x": torch.ones(1)}, "tensor x: expected no such tensor"),
    "update: NaN": update({**GOOD, "conv.weight": torch.full((2, 3), torch.nan)}, "conv.weight: expected finite"),
    "update: pickle": update(b"\x80\x04K\x01.", "expected an update in safetensors format"),
    "update: second": update(GOOD, "expected one update in a round, found a second", again=True),
    "update: diverged": (diverged, ClientError, ("client 3", "conv.weight holds NaN or infinity")),
    "global: other classes": (other_detector, ClientError, ("global.safetensors: tensor layers.15", "expected shape")),
    # The store and its records.
    "newer store": stored("store.json", {"version": 2}, SpecError, f"version: 2 {NEWER}"),
    "newer stored specification": stored("spec.json", {"version": 7}, SpecError, f"version: 7 {NEWER}"),
    "newer record": stored("rounds/0000/round.json", {"version": 3, "x": 1}, SpecError, f"version: 3 {NEWER}"),
    "damaged record": stored("rounds/0000/round.json", {"round": 0}, SpecError, "federation: missing"),
    "lost record": stored(
        "rounds/0001/round.json", {"round": 1}, FedbenchError, "is missing in the store", names="rounds/0000/round.json"
    ),
    "name of another run": (another_run, SpecError, ("max_rounds (was 9, now 5)", "only a larger max_rounds")),
    "newer plan": record(RoundPlan, {"version": 2}, "a/plan.json: version: 2", NEWER),
    "record without fields": record(UpdateRecord, {"client": "1"}, "a/plan.json: federation: missing"),
    "record: sha256": record(
        UpdateRecord, {"weights": {"key": "k", "sha256": "zz", "bytes": -1}},
        "weights.sha256: expected text that matches", "weights.bytes: expected at least 0, found -1",
    ),
    "weights: missing": (missing_weights, StoreCorrupt, ("none.safetensors: missing",)),
    "weights: swapped": (other_weights, StoreCorrupt, ("swapped.safetensors: expected sha256 aaaa", "found sha256")),
}  # fmt: skip


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)
    return make_synthetic_street(small, tmp_path_factory.mktemp("street"))


@pytest.fixture
def bench(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    s3_home: Path,
    object_store: ObjectStore,
    street: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Bench]:
    """Yield the means of a row. Afterwards restore the environment and the root logger, which commands change."""
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for name in [name for name in os.environ if name.startswith("FEDBENCH_")]:
        del os.environ[name]
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.callspec.id)
    yield Bench(tmp_path, monkeypatch, s3_home, object_store, street, name)
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(environment)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.mark.parametrize("row", TABLE)
def test_a_bad_input_is_refused_with_the_reason(row: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    provoke, error, says = TABLE[row]
    if isinstance(error, Exit):
        with pytest.raises(SystemExit) as ended:
            provoke(bench)
        assert ended.value.code == error.code
        printed = capsys.readouterr()
        text = printed.err
        assert "Traceback" not in printed.out + text
        assert "hush" not in printed.out + text
    else:
        with pytest.raises(error) as caught:
            provoke(bench)
        assert type(caught.value) is error or error is StoreCorrupt
        text = str(caught.value)
    for part in says:
        assert part in text, text
    if error is SpecError:
        assert "Input should" not in text, text


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 45
    assert sum(isinstance(error, Exit) for _, error, _ in TABLE.values()) >= 20
