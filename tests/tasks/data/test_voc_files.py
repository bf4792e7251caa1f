"""The files that a PASCAL VOC folder names: each annotation's image, and the images in its lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tasks.data.entries import Faults
from tasks.data.samples import samples_digest
from tasks.data.voc import load_voc
from tasks.errors import DataError
from tasks.spec.clients import Iid
from tasks.spec.data import VocFolders
from tests.tasks.data.voc_folder import CHAIR, add_image, add_lists

DIVIDED = VocFolders(name="mine", clients=Iid(clients=1))


def read_names(root: Path) -> list[str]:
    data = load_voc(root, DIVIDED)
    return sorted(sample.path.name for sample in (*data.train["1"], *data.test["1"]))


def name_file(root: Path, key: str, filename: str) -> None:
    path = root / "Annotations" / f"{key}.xml"
    path.write_text(path.read_text().replace("<size>", f"<filename>{filename}</filename><size>", 1))


def test_files_that_are_no_images_are_skipped(one_folder: Path) -> None:
    images = one_folder / "JPEGImages"
    expected = read_names(one_folder)
    for name in ("a.json", "a.txt", "b.JSON", "t.xml"):
        (images / name).write_text("{}")
    (images / "c").mkdir()
    assert read_names(one_folder) == expected
    (images / "b.png").rename(images / "b.picture")  # not an image's suffix, but Pillow reads the file
    assert read_names(one_folder) == ["a.png", "b.picture", "c.png", "t.jpg"]
    (images / "b.picture").unlink()
    with pytest.raises(DataError, match=r"b\.JSON: expected a readable image"):
        read_names(one_folder)


def test_the_annotation_names_its_image(one_folder: Path) -> None:
    images = one_folder / "JPEGImages"
    Image.open(images / "a.png").save(images / "a.jpg")
    with pytest.raises(
        DataError, match=r"a\.xml: expected one image, found a\.jpg and a\.png in .*; name it in <filena"
    ):
        read_names(one_folder)
    name_file(one_folder, "a", "a.png")
    assert read_names(one_folder) == ["a.png", "b.png", "c.png", "t.jpg"]
    faults = Faults()
    load_voc(one_folder, DIVIDED, faults=faults)
    (line,) = map(str, faults.notes.findings(DIVIDED))
    assert line.startswith("1 images have several files, of which <filename> names one: ")
    assert line.endswith("a.xml: a.png, beside a.jpg")
    name_file(one_folder, "b", "C:\\set\\JPEGImages\\b.png")
    name_file(one_folder, "c", "renamed.jpg")  # there is no such file
    assert read_names(one_folder) == ["a.png", "b.png", "c.png", "t.jpg"]
    (images / "c.png").rename(images / "renamed.jpg")
    assert read_names(one_folder) == ["a.png", "b.png", "renamed.jpg", "t.jpg"]


def test_lists_with_a_byte_order_mark_and_suffixes_are_read(one_folder: Path) -> None:
    expected = load_voc(one_folder, DIVIDED)
    lists = one_folder / "ImageSets" / "Main"
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbfc.png\r\na\r\nb.xml\r\n")
    found = load_voc(one_folder, DIVIDED)
    assert samples_digest(found.train["1"]) == samples_digest(expected.train["1"])
    add_image(one_folder, "v.1", CHAIR)
    add_lists(one_folder, "c\na\nb\n", "v.1\n")
    assert [sample.key for sample in load_voc(one_folder, DIVIDED).test["1"]] == ["v.1"]


LINES: list[tuple[bytes, str]] = [
    (b"a\nb  1\nc -1\n", r"train\.txt: line 2: expected an image's name alone, found columns, 'b  1'"),
    (b"a\nc\nb\xe9\n", r"train\.txt: line 3: expected an image's name in UTF-8, found 'b.*udce9'"),
    ("a\nb\n".encode("utf-16"), r"train\.txt: expected UTF-8, found UTF-16"),
    (b"a\n.\\b\n", r"train\.txt: line 2: expected an image's name, found '.*b'"),
]


@pytest.mark.parametrize(("content", "message"), LINES)
def test_lines_that_are_no_names_are_refused(one_folder: Path, content: bytes, message: str) -> None:
    (one_folder / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_voc(one_folder, DIVIDED)
