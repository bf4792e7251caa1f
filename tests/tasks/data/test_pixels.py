"""Reading RGB from the bytes of an image file: orientations, 16 bits, and JPEGs with data after or inside them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from tasks.data.pixels import Header, has_orientation, read_header, read_rgb, turned

WIDTH, HEIGHT = 40, 24
PIXELS = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)

# How each orientation shows stored pixels [rows, columns, 3]. The EXIF standard says where row 0 and column 0 go.
SHOWN: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


def written(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def oriented(orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return written(Image.fromarray(PIXELS), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_pixels_are_as_stored_or_turned(form: str, orientation: int) -> None:
    data = oriented(orientation, form)
    header = read_header(data)
    assert (header.size, header.orientation) == ((WIDTH, HEIGHT), orientation)
    assert has_orientation(data) == (orientation != 1)
    np.testing.assert_array_equal(np.asarray(read_rgb(data)), PIXELS)
    shown = read_rgb(data, "applied")
    np.testing.assert_array_equal(np.asarray(shown), SHOWN[orientation](PIXELS))
    assert turned(header.size, orientation) == shown.size


def test_a_jpeg_is_turned_too_and_an_unknown_orientation_is_ignored() -> None:
    data = oriented(6, "JPEG")
    stored, shown = np.asarray(read_rgb(data)), np.asarray(read_rgb(data, "applied"))
    np.testing.assert_array_equal(shown, SHOWN[6](stored))
    for unknown in (0, 9):
        assert read_header(oriented(unknown, "JPEG")).orientation == 1
        assert read_rgb(oriented(unknown, "JPEG"), "applied").size == (WIDTH, HEIGHT)


def test_reading_the_header_of_a_png_without_exif_does_not_decode_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(Image.fromarray(PIXELS), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert read_header(data) == Header((WIDTH, HEIGHT), orientation=1, deep=False, whole=True)


def png_of_16_bits(values: NDArray[np.uint16]) -> bytes:
    """Return a PNG of colours [rows, columns, 3] with 16 bits a channel. Pillow reads such files but writes none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def pgm_of_16_bits() -> bytes:
    return b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + GREY.astype(">u2").tobytes()


def big_endian_tiff() -> bytes:
    return written(Image.frombytes("I;16B", (WIDTH, HEIGHT), GREY.astype(">u2").tobytes()), "TIFF")


DEEP: dict[str, Callable[[], bytes]] = {
    "grey PNG": lambda: written(Image.fromarray(GREY), "PNG"),
    "grey TIFF": lambda: written(Image.fromarray(GREY), "TIFF"),
    "big-endian TIFF": big_endian_tiff,
    "PGM": pgm_of_16_bits,
    "colour PNG": lambda: png_of_16_bits(np.repeat(GREY[:, :, None], 3, axis=2)),
}


@pytest.mark.parametrize("form", DEEP)
def test_the_upper_8_of_16_bits_are_read(form: str) -> None:
    data = DEEP[form]()
    expected = np.repeat((GREY // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    assert len(np.unique(expected)) == 256
    np.testing.assert_array_equal(np.asarray(read_rgb(data)), expected)
    assert read_header(data).deep


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.int32) * 1000, "its pixels are 32-bit integers, which have no stated range"),
        (GREY.astype(np.float32), "its pixels are floating-point numbers, which have no stated range"),
    ],
    ids=["integers", "floats"],
)
def test_pixels_without_a_range_are_refused(values: NDArray[Any], message: str) -> None:
    data = written(Image.fromarray(values), "TIFF")
    for read in (read_header, read_rgb):
        with pytest.raises(ValueError, match=message):
            read(data)


@pytest.mark.parametrize("image", [Image.fromarray(PIXELS), Image.fromarray(PIXELS[:, :, 0]).convert("1")])
def test_8_bits_are_read_as_pillow_converts_them(image: Image.Image) -> None:
    for mode in {"L", "P", "RGBA", image.mode}:
        data = written(image.convert(mode), "PNG")
        np.testing.assert_array_equal(np.asarray(read_rgb(data)), np.asarray(image.convert(mode).convert("RGB")))
        assert not read_header(data).deep


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (120, 160, 3), dtype=np.uint8))


def with_thumbnail() -> bytes:
    """Return a JPEG whose header holds another complete JPEG, as cameras write them."""
    thumbnail = written(NOISE.resize((32, 24)), "JPEG")
    inner = b"Exif\0\0" + thumbnail
    return written(NOISE, "JPEG", exif=inner)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"exif": b"Exif\0\0"}])
@pytest.mark.parametrize("trailer", [b"", b"\0" * 9000, b"\0\0\0\x18ftypmp42" + b"\xff\xe1\xff\xda\0" * 3000])
def test_a_jpeg_may_have_anything_after_its_end(options: dict[str, Any], trailer: bytes) -> None:
    data = written(NOISE, "JPEG", **options) + trailer
    assert read_header(data).whole
    np.testing.assert_array_equal(np.asarray(read_rgb(data)), np.asarray(read_rgb(data[: len(data) - len(trailer)])))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_jpeg_is_recognised(options: dict[str, Any], part: float) -> None:
    whole = written(NOISE, "JPEG", **options)
    assert not read_header(whole[: int(len(whole) * part)]).whole


def test_the_end_of_a_thumbnail_is_not_taken_for_the_images_end() -> None:
    whole = with_thumbnail()
    assert whole.count(b"\xff\xd9") == 2
    assert read_header(whole).whole
    cut = whole[: len(whole) * 3 // 4]
    assert cut.count(b"\xff\xd9") == 1
    assert not read_header(cut).whole


@pytest.mark.parametrize("read", [read_header, read_rgb])
def test_a_program_is_no_image(read: Callable[[bytes], object]) -> None:
    """For an EPS file, Pillow would start Ghostscript, which runs it as a program."""
    with pytest.raises(ValueError, match="EPS"):
        read(written(Image.new("RGB", (8, 8)), "EPS"))
