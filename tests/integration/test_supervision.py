"""The boxes of YOLO files as the library supervision reads them. It is installed for this test alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.data.catalog import load_data
from tasks.data.export.yolo import write_yolo
from tasks.data.recognise import recognise
from tasks.spec.data import SyntheticStreet
from tests.tasks.data.yolo_folder import add_image, write_yolo_folder
from tests.tasks.drawn_data import drawn_data

pytestmark = [pytest.mark.integration, pytest.mark.slow]

VERSION = "0.31.2"
READ = """
import json, sys
import supervision
found = {}
for folder in sys.argv[1:]:
    data = supervision.DetectionDataset.from_yolo(
        f"{folder}/images/train", f"{folder}/labels/train", f"{folder}/data.yaml"
    )
    for path, _, detections in data:
        classes = [data.classes[label] for label in detections.class_id]
        found[path] = sorted(zip(classes, detections.xyxy.tolist()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def supervision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with supervision. Skip where no package can be downloaded."""
    folder = tmp_path_factory.mktemp("supervision")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", str(python), f"supervision=={VERSION}"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"supervision {VERSION} cannot be installed: {done.stderr[-300:]}")
    return python


def test_supervision_reads_the_same_boxes(supervision: Path, tmp_path: Path) -> None:
    drawn = drawn_data(SyntheticStreet(train_images=40, test_images=5, width=97, height=83), tmp_path / "cache")
    write_yolo(drawn, tmp_path / "drawn")
    write_yolo_folder(tmp_path / "own")
    polygons = "1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n0 0.1 0.1 0.4 0.1 0.4 0.3\n"
    add_image(tmp_path / "own", "images/train/2.png", polygons)
    (tmp_path / "own" / "labels" / "train" / "3.txt").write_text("")
    folders = [*(tmp_path / "drawn" / device for device in drawn.train), tmp_path / "own"]
    ours = {}
    for root in (tmp_path / "drawn", tmp_path / "own"):
        data = load_data(recognise(root, "mine"), root_of=lambda name, root=root: root, cache=tmp_path)  # type: ignore[misc]
        for samples in data.train.values():
            for sample in samples:
                names = [data.classes[label] for label in sample.labels]
                ours[str(sample.path)] = sorted(zip(names, sample.boxes.tolist(), strict=True))
    command = [str(supervision), "-c", READ, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert ours.keys() == theirs.keys()
    assert len(ours) == 46
    for path, objects in ours.items():
        assert [name for name, _ in objects] == [name for name, _ in theirs[path]], path
        expected = [box for _, box in theirs[path]]
        np.testing.assert_allclose([box for _, box in objects], expected, atol=1e-3, err_msg=path)
