"""Detections of image files, in their pixels: the same as an evaluation finds, whatever the file's format."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader
from tasks.data.samples import ImageSample
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.errors import DataError, SpecError
from tasks.models.file import ModelCard
from tasks.models.predict import detect, drawn_files, image_files, read_picture, save_picture, score_below
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.training import EvaluationSpec
from tasks.training.evaluation import evaluate
from tests.special_files import never_waiting, put_pipe

LOW: dict[str, Any] = {"score": 0.2, "nms_iou": 0.5, "max_detections": 100, "device": "cpu"}


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Return a detector of random weights whose detections depend on the image, with all scores and places."""
    made = build_detector(YoloV3TinySpec(width=96, height=64, batch_norm_momentum=1), 2, seed=5)
    with torch.no_grad():
        made.train()(torch.randint(256, (8, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)))
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:  # the outputs
                layer.weight.mul_(15)
    return made.eval()


@pytest.fixture(scope="module")
def pixels() -> Image.Image:
    """Return an image of 160 x 90 without any symmetry."""
    noise = torch.randint(256, (9, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Image.fromarray(noise.numpy()).resize((160, 90), Image.Resampling.BICUBIC)


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def test_a_prediction_finds_what_an_evaluation_finds(detector: Detector, pixels: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    pixels.save(path, exif=turned_exif())
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    sample = ImageSample(path, 160, 90, *nothing, key="1", content=content)
    loader = EvaluationLoader([sample], width=96, height=64, batch_size=1, cache=ImageCache(0))
    spec = EvaluationSpec(score_threshold=0.2)
    expected = evaluate(detector, loader, [sample], spec, device="cpu").detections[0]
    found = detect(detector, read_picture(path).image, **LOW)
    assert len(found) == len(expected) > 5
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.boxes[:, 2].max() > 96  # boxes are in pixels of the image, not of the input
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [160, 90, 160, 90]).all()


@pytest.mark.parametrize("form", ["plain.png", "turned.png", "alpha.png", "palette.gif", "picture.bmp", "picture.tiff"])
def test_forms_of_the_same_pixels_give_the_same_detections(
    detector: Detector, pixels: Image.Image, tmp_path: Path, form: str
) -> None:
    few = pixels.quantize(64)  # few enough colours for a palette
    shown = few.convert("RGB")
    written = {"alpha.png": shown.convert("RGBA"), "palette.gif": few}.get(form, shown)
    options: dict[str, Any] = {"exif": turned_exif()} if form == "turned.png" else {}
    written.save(tmp_path / form, **options)
    picture = read_picture(tmp_path / form)
    assert (picture.image.mode, picture.image.size) == ("RGB", (160, 90))
    assert picture.turned == (form == "turned.png")
    expected = detect(detector, shown, **LOW)
    assert len(expected) > 5
    np.testing.assert_array_equal(detect(detector, picture.image, **LOW).boxes, expected.boxes)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "I;16"])
def test_other_modes_are_read_as_in_training(
    detector: Detector, pixels: Image.Image, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / ("m.jpg" if mode == "CMYK" else "m.png")
    grey = np.asarray(pixels.convert("L")).astype(np.uint16)
    (Image.fromarray(grey) if mode == "I;16" else pixels.convert(mode)).save(path)
    picture = read_picture(path)
    assert picture.image.mode == "RGB"
    if mode == "CMYK":
        assert np.abs(np.asarray(picture.image, float) - np.asarray(pixels, float)).mean() < 10
    if mode == "L":
        np.testing.assert_array_equal(np.asarray(picture.image)[..., 1], grey)
    assert len(detect(detector, picture.image, **LOW)) > 0


def test_a_higher_score_threshold_leaves_the_best_detections(detector: Detector, pixels: Image.Image) -> None:
    all_found = detect(detector, pixels, **LOW)
    limit = float(np.median(all_found.scores))
    best = detect(detector, pixels, **{**LOW, "score": limit})
    assert 0 < len(best) < len(all_found)
    assert (best.scores > limit).all()
    none = detect(detector, pixels, **{**LOW, "score": 1.0})
    assert none.boxes.shape == (0, 4)


def test_a_file_that_is_no_image_is_named(pixels: Image.Image, tmp_path: Path) -> None:
    text, cut, missing = tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "missing.png"
    text.write_text("no image")
    pixels.save(cut)
    cut.write_bytes(cut.read_bytes()[:1500])
    for path, message in (
        (text, f"{text}: expected an image that can be decoded"),
        (cut, f"{cut}: expected an image that can be decoded: image file is truncated"),
        (missing, f"{missing}: the image cannot be read: No such file"),
    ):
        with pytest.raises(DataError) as caught:
            read_picture(path)
        assert message in str(caught.value)
        assert "0x" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow warns too
def test_damaged_exif_does_not_make_an_image_unreadable(pixels: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    pixels.save(path, exif=b"Exif\0\0MM\0*\0\0\xff\xff\0\0")
    assert read_picture(path).image.size == (160, 90)


def test_a_model_gets_images_turned_as_in_its_training(pixels: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    pixels.save(path, exif=turned_exif())
    stored, applied = read_picture(path), read_picture(path, "applied")
    assert (stored.image.size, stored.turned) == ((160, 90), True)
    assert (applied.image.size, applied.turned) == ((90, 160), False)
    np.testing.assert_array_equal(np.asarray(applied.image), np.rot90(np.asarray(stored.image), -1))
    card = ModelCard(detector=YoloV3TinySpec(), classes=("a",))
    readings = [card.model_copy(update={"data": data}).exif for data in (None, {"kind": "coco"}, {"exif": "applied"})]
    assert readings == ["as-stored", "as-stored", "applied"]


def test_16_bit_grey_is_read_and_names_not_in_utf8_are_refused(pixels: Image.Image, tmp_path: Path) -> None:
    grey = np.asarray(pixels.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / "grey.png")
    expected = np.asarray(pixels.convert("L").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "grey.png").image), expected)
    odd = Path(f"{tmp_path}/caf\udce9.png")
    pixels.save(odd.open("wb"), format="PNG")
    with pytest.raises(DataError, match=r"caf\\udce9\.png': expected a file name in UTF-8; rename the file") as refusal:
        read_picture(odd)
    str(refusal.value).encode()


def test_folders_are_searched_for_images_by_name(pixels: Image.Image, tmp_path: Path) -> None:
    folder = tmp_path / "camera"
    (folder / "below").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "below/c.png", "notes.txt"):
        (folder / name).write_bytes(b"")
    named = folder / "notes.txt"
    assert image_files([named, folder, folder / "a.png"]) == [named, folder / "a.png", folder / "b.JPG"]
    with pytest.raises(DataError, match="expected images in this folder"):
        image_files([tmp_path])
    (folder / "x.png").symlink_to(tmp_path / "nowhere")
    put_pipe(folder / "y.png")
    files = image_files([folder])
    assert files == [folder / "a.png", folder / "b.JPG", folder / "y.png"]
    with never_waiting(), pytest.raises(DataError, match=r"y\.png: the image cannot be read: expected a regular file"):
        read_picture(files[-1])


def test_copies_keep_their_names_and_overwrite_no_original(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    files = [one / "a.jpg", two / "a.jpg", one / "a.bmp", one / "b.JPEG", two / "a.png"]
    names = [path.name for path in drawn_files(files, tmp_path / "out").values()]
    assert names == ["a.jpg", "a-2.jpg", "a.png", "b.JPEG", "a-2.png"]
    with pytest.raises(SpecError, match=r"--out .*/two: expected another folder, the image .*/two/a\.jpg would be"):
        drawn_files(files[1:2], two)
    assert drawn_files([one / "a.bmp"], one) == {one / "a.bmp": one / "a.png"}


@pytest.mark.parametrize("score", [0.0412, 0.04, 0.3, 0.299999, 1.0, 0.00123, 1e-9, 0.0999999, 0.1])
def test_the_threshold_below_a_score_has_two_digits_and_is_near(score: float) -> None:
    below = score_below(score)
    assert 0.85 * score < below < score
    assert float(f"{below:.2g}") == below


def test_pictures_are_written_in_the_format_of_their_suffix(pixels: Image.Image, tmp_path: Path) -> None:
    for name, form in (("a.jpg", "JPEG"), ("b.png", "PNG")):
        save_picture(pixels, tmp_path / "new" / name)
        with Image.open(tmp_path / "new" / name) as image:
            assert image.format == form
    with pytest.raises(DataError, match=r"b\.png/c\.png: the picture cannot be written: "):
        save_picture(pixels, tmp_path / "new" / "b.png" / "c.png")
