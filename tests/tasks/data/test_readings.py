"""Valid data that can still harm figures, such as empty boxes or turned images: how they are read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tasks.data.catalog import load_data
from tasks.data.check import DataReport, check_data
from tasks.data.export.voc import write_voc
from tasks.data.image_cache import ImageCache, decode
from tasks.data.loading import EvaluationLoader
from tasks.data.samples import FederatedData, samples_digest
from tasks.errors import DataError
from tasks.spec.data import Coco, DataSpec, FederatedStreet
from tests.tasks.data.pictures import HEIGHT, WIDTH, picture

BOXES: dict[str, list[list[float]]] = {"1": [[1, 1, 20, 20]], "2": [[2, 1, 20, 20]], "3": [[3, 1, 20, 20]]}


class OwnData:
    """A COCO set below ``root``: training images 1 and 2 on devices a and b, and test image 3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boxes = {name: list(boxes) for name, boxes in BOXES.items()}
        self.sizes: dict[str, tuple[int, int]] = dict.fromkeys(BOXES, (WIDTH, HEIGHT))
        (root / "images").mkdir(parents=True)
        for name in BOXES:
            picture(int(name)).save(self.path(name))

    def path(self, name: str) -> Path:
        return self.root / "images" / f"{name}.png"

    def _document(self, names: str) -> dict[str, Any]:
        images = [
            {"id": int(name), "file_name": f"{name}.png", "device": " ab"[int(name)] if name != "3" else None}
            | dict(zip(("width", "height"), self.sizes[name], strict=True))
            for name in names
        ]
        boxes = [(int(name), box) for name in names for box in self.boxes[name]]
        annotations = [
            {"id": 10 * image + number, "image_id": image, "category_id": 1, "bbox": box}
            for number, (image, box) in enumerate(boxes)
        ]
        return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "bin"}]}

    def write(self) -> None:
        (self.root / "train.json").write_text(json.dumps(self._document("12")))
        (self.root / "test.json").write_text(json.dumps(self._document("3")))

    def load(self, **fields: Any) -> FederatedData:
        self.write()
        return load_data(Coco(name="mine", **fields), root_of=lambda name: self.root, cache=self.root)

    def check(self, **fields: Any) -> DataReport:
        self.write()
        return check_data(Coco(name="mine", **fields), root_of=lambda name: self.root, cache=self.root)


@pytest.fixture
def own(tmp_path: Path) -> OwnData:
    return OwnData(tmp_path / "set")


def test_a_set_without_such_data_has_no_warning(own: OwnData) -> None:
    report = own.check()
    assert (report.errors, report.warnings) == ((), ())


EMPTY = {
    "left of the image": [-0.75, 5, 0.5, 10],
    "below the image": [5, HEIGHT + 0.25, 10, 0.5],
    "on the edge": [WIDTH, 5, 0.5, 10],
    "no width in 32 bits": [50, 5, 1e-7, 10],
    "no height in 32 bits": [50, 5, 10, 1e-7],
}


@pytest.mark.parametrize("case", EMPTY)
def test_boxes_that_become_empty_are_left_out_and_counted(own: OwnData, case: str) -> None:
    own.boxes["1"].append(EMPTY[case])
    own.boxes["3"].append(EMPTY[case])
    data = own.load()
    assert [len(data.train["a"][0].boxes), len(data.test["a"][0].boxes)] == [1, 1]
    report = own.check()
    assert report.errors == ()
    (warning,) = report.warnings
    assert warning.startswith("2 boxes left out: they are empty once they are cut to their image and stored in 32 bits")
    assert f"{own.root}/train.json: annotation 11, {own.root}/test.json: annotation 31" in warning


@pytest.mark.parametrize("side", [1e-7, 1e-6, 2e-6, 1e-4])
def test_boxes_that_are_kept_have_an_area_at_every_input_size(own: OwnData, side: float) -> None:
    """Scaling boxes to an input size must not round short sides to zero."""
    own.boxes["3"] = [[left, left / 2, WIDTH * side, HEIGHT * side] for left in np.linspace(0, WIDTH - 1, 200).tolist()]
    samples = own.load().test["a"]
    assert (len(samples[0].boxes) > 100) == (side > 1e-7)
    for width, height in ((32, 32), (416, 288), (97, 1333)):
        (batch,) = EvaluationLoader(samples, width=width, height=height, batch_size=1, cache=ImageCache(0))
        assert ((batch.boxes[0][:, 2:] - batch.boxes[0][:, :2]) > 0).all()


def orient(own: OwnData, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture(int(name)).save(own.path(name), exif=exif)


def test_a_warning_names_turned_images_whose_sizes_fit_both_readings(own: OwnData) -> None:
    orient(own, "1", 3)
    orient(own, "3", 2)
    (warning,) = own.check().warnings
    assert warning == (
        "2 images have an EXIF orientation other than 1; of their annotations' sizes 2 fit both; the sizes do not tell "
        "which reading fits, and data.exif is as-stored. Most annotation tools and OpenCV show such images turned: if "
        f"the boxes were drawn on turned images, set data.exif=applied: {own.path('1')} (3), {own.path('3')} (2)"
    )
    (warning,) = own.check(exif="applied").warnings
    assert "data.exif is applied. Most" in warning
    assert "if the boxes were drawn on turned images, keep it, else set data.exif=as-stored: " in warning


def test_a_warning_names_the_reading_that_fits_the_annotated_sizes(own: OwnData) -> None:
    orient(own, "1", 6)
    orient(own, "2", 3)
    (warning,) = own.check().warnings
    assert "of their annotations' sizes 1 fit the pixels as stored, 1 fit both; data.exif=as-stored fits, as" in warning
    own.sizes["1"] = HEIGHT, WIDTH
    report = own.check()
    assert "1 fit them turned, 1 fit both; data.exif=applied fits: " in report.warnings[0]
    (error,) = report.errors
    assert error.endswith(
        f"{own.path('1')}: expected the annotation's 64 x 96 pixels, found 96 x 64; its EXIF orientation is 6, and "
        "data.exif=applied reads it in the annotation's size"
    )
    assert own.check(exif="applied").errors == ()
    orient(own, "3", 8)
    assert "no reading fits all: write the pixels turned, without EXIF" in own.check().warnings[0]


def test_only_the_reading_applied_turns_pixels_and_size(own: OwnData) -> None:
    pixels = decode(own.load().train["a"][0], width=WIDTH, height=HEIGHT)
    orient(own, "1", 6)
    stored = own.load()
    np.testing.assert_array_equal(decode(stored.train["a"][0], width=WIDTH, height=HEIGHT), pixels)
    own.sizes["1"] = HEIGHT, WIDTH
    applied = own.load(exif="applied")
    sample = applied.train["a"][0]
    assert (sample.width, sample.height) == (HEIGHT, WIDTH)
    turned = np.rot90(pixels, -1, axes=(1, 2))
    np.testing.assert_array_equal(decode(sample, width=HEIGHT, height=WIDTH), turned)


def test_images_in_different_readings_are_different(own: OwnData) -> None:
    """Equal test sets share an evaluation, and equal images a cache entry. Images in two readings must differ."""
    orient(own, "1", 3)
    stored, applied = own.load(), own.load(exif="applied")
    assert stored.digest == applied.digest  # the digest of the files
    assert samples_digest(stored.train["a"]) != samples_digest(applied.train["a"])
    assert samples_digest(stored.test["a"]) == samples_digest(applied.test["a"])  # no test image is turned
    cache = ImageCache(1)
    first, second = (cache.get(data.train["a"][0], width=WIDTH, height=HEIGHT) for data in (stored, applied))
    np.testing.assert_array_equal(second, first[:, ::-1, ::-1])


def grey_16_bits(seed: int, top: int) -> Image.Image:
    values = np.asarray(picture(seed).convert("L")).astype(np.uint16)
    return Image.fromarray((values * (top / 255)).astype(np.uint16))


def test_16_bits_are_scaled_with_a_warning(own: OwnData) -> None:
    for name in "13":
        grey_16_bits(int(name), top=65535).save(own.path(name))
    report = own.check()
    assert report.errors == ()
    (warning,) = report.warnings
    assert warning.startswith("2 images have more than 8 bits a channel: of 16 bits the upper 8 are read (value // 256")
    pixels = decode(own.load().train["a"][0], width=WIDTH, height=HEIGHT)
    expected = np.asarray(picture(1).convert("L")).astype(int)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_warning_names_16_bit_images_that_become_nearly_black(own: OwnData) -> None:
    grey_16_bits(1, top=4095).save(own.path("1"))
    assert (
        "1 images of more than 8 bits a channel are nearly black once the upper 8 are read (no part is over 63 of "
        f"255): scale their values to the whole range: {own.path('1')}"
    ) in own.check().warnings


def test_floats_are_refused_with_the_files_name(own: OwnData) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(own.path("1"), format="TIFF")
    with pytest.raises(DataError, match=rf"{own.path('1')}: expected a readable image: its pixels are floating-point"):
        own.load()
    (error,) = own.check().errors
    assert "1.png" in error


def test_images_of_one_colour_are_no_near_duplicates(own: OwnData) -> None:
    for name, shade in (("1", 10), ("3", 200)):
        image = Image.new("RGB", (WIDTH, HEIGHT), (shade,) * 3)
        image.paste((255, 0, 0), (20 * int(name), 5, 20 * int(name) + 8, 13))  # each image has it elsewhere
        image.save(own.path(name))
    assert own.check().warnings == (
        "2 images are of one colour, or nearly so; they are not compared for near-duplicates: "
        f"{own.path('1')}, {own.path('3')}",
    )


def test_exact_duplicates_of_objects_are_counted_and_dropped_if_asked(own: OwnData) -> None:
    box = BOXES["1"][0]
    own.boxes["1"] = [box, [30, 30, 5, 5], box, box]
    own.boxes["3"] *= 2
    report = own.check()
    assert report.errors == ()
    (warning,) = report.warnings
    assert warning.startswith("3 objects repeat another one of their image, with the same class and box (each one more")
    assert "data.drop_duplicate_objects=true" in warning
    assert f"annotation 12, {own.root}/train.json: annotation 13, {own.root}/test.json: annotation 31" in warning
    assert [len(own.load().train["a"][0].boxes), report.test_boxes["bin"]] == [4, 2]
    dropped = own.load(drop_duplicate_objects=True)
    np.testing.assert_array_equal(dropped.train["a"][0].boxes, [[1, 1, 21, 21], [30, 30, 35, 35]])
    assert len(dropped.test["a"][0].boxes) == 1
    assert "only the first of each is read" in own.check(drop_duplicate_objects=True).warnings[0]


def test_both_forms_of_the_street_support_these_readings(tmp_path: Path) -> None:
    items = [{"class": "chair", "bbox": ["1", "2", "9", "10"]}] * 2
    train = [{"image_id": str(n), "device_1_id": str(n), "device_2_id": str(n), "items": items} for n in range(1, 6)]
    (tmp_path / "train_label.json").write_text(json.dumps(train))
    (tmp_path / "test_label.json").write_text(json.dumps([{"image_id": "6", "items": items}]))
    (tmp_path / "Images").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    for number in range(1, 7):
        picture(number).save(tmp_path / "Images" / f"{number}.jpg", exif=exif)

    def load(**fields: Any) -> FederatedData:
        spec: DataSpec = FederatedStreet(name="mine", **fields)
        return load_data(spec, root_of=lambda name: tmp_path, cache=tmp_path)

    write_voc(load(), tmp_path / "street_5")
    for form in ("json", "voc"):
        plain, read = load(form=form), load(form=form, exif="applied", drop_duplicate_objects=True)
        assert [len(data.test["1"][0].boxes) for data in (plain, read)] == [2, 1]
        assert [data.test["1"][0].turn for data in (plain, read)] == [1, 3]


def test_a_folder_whose_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(str(tmp_path), "caf\udce9")
    with pytest.raises(DataError, match=r"data\.name: mine: expected a folder whose path is in UTF-8, found .*udce9"):
        load_data(Coco(name="mine"), root_of=lambda name: folder, cache=tmp_path)
