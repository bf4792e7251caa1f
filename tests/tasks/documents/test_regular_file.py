"""Every reader of a user's file refuses what is not a regular file, and names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.suite.export_file import read_export
from infra.environment.certificates import use_certificates
from infra.settings import load_settings
from tasks.data.image_cache import read_sample
from tasks.data.samples import ImageSample
from tasks.data.similar import thumbnail
from tasks.detectors.darknet import read_header
from tasks.detectors.weight_file import check_weights
from tasks.documents import regular_file
from tasks.documents.regular_file import open_regular, read_regular, read_regular_text, require_regular
from tasks.models.file import read_card, read_state
from tasks.models.predict import read_picture
from tasks.original.network_file import read_network
from tasks.original.task_files import read_task
from tasks.original.unpickle import read_arrays
from tasks.spec.detector_parts import DarknetWeights
from tasks.spec.federation import load_spec
from tasks.spec.suite import load_suite
from tests.special_files import SPECIAL, never_waiting, put_pipe


def sample_at(path: Path) -> ImageSample:
    return ImageSample(path, 8, 8, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), key="x", content="x")


def certificates(path: Path) -> None:
    use_certificates({"SSL_CERT_FILE": str(path)}, over_tls=True)


READERS: dict[str, Callable[[Path], Any]] = {
    "bytes": read_regular,
    "text": read_regular_text,
    "for a library": require_regular,
    "specification": load_spec,
    "suite": load_suite,
    "export of a suite": read_export,
    "card of a model": read_card,
    "tensors of a model": read_state,
    "image to predict": read_picture,
    "image to compare": thumbnail,
    "image to train on": lambda path: read_sample(sample_at(path)),
    "initial weights": lambda path: check_weights(DarknetWeights(name="x"), path),
    "Darknet's header": read_header,
    "the original's weights": read_arrays,
    "the original's task": read_task,
    "the original's network": read_network,
    "certificates": certificates,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_with_its_name(reader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    SPECIAL[kind](path)
    with never_waiting(), pytest.raises(Exception) as refused:  # noqa: PT011 - each reader has an error of its own
        READERS[reader](path)
    assert not isinstance(refused.value, AssertionError)
    assert f"expected a regular file, found {kind}" in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("kind", SPECIAL)
def test_so_does_that_of_settings(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "given.yaml"
    SPECIAL[kind](path)
    monkeypatch.setenv("FEDBENCH_SETTINGS", str(path))
    with never_waiting(), pytest.raises(Exception, match=f"cannot be read: expected a regular file, found {kind}"):
        load_settings()


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes("a\r\nb\rü\n".encode())
    (tmp_path / "link").symlink_to("there")
    assert read_regular(tmp_path / "link") == "a\r\nb\rü\n".encode()
    assert read_regular_text(tmp_path / "link") == (tmp_path / "there").read_text(encoding="utf-8") == "a\nb\nü\n"


@pytest.mark.parametrize(
    ("name", "expected"), [("missing", FileNotFoundError), ("folder", IsADirectoryError), ("x" * 300, OSError)]
)
def test_other_files_have_the_usual_errors(name: str, expected: type[OSError], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(expected) as usual:
        (tmp_path / name).read_bytes()
    with pytest.raises(expected) as ours:
        read_regular(tmp_path / name)
    assert (ours.value.errno, ours.value.strerror) == (usual.value.errno, usual.value.strerror)


def test_a_pipe_that_replaces_the_file_meanwhile_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def replace(checked: Path) -> None:
        require_regular(checked)
        put_pipe(checked)

    monkeypatch.setattr(regular_file, "require_regular", replace)
    before = len(os.listdir("/proc/self/fd"))
    with never_waiting(), pytest.raises(OSError, match="expected a regular file, found a named pipe"):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before
