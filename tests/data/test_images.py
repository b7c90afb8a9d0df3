from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deformable_detr.data.images import (
    ImageHeader,
    open_image,
    read_header,
    read_thumbnail,
    should_rotate,
)
from deformable_detr.errors import UserError

LIMIT = 1_000_000


def pixels_of(source: str | Path | bytes | Image.Image | np.ndarray, **options: object) -> np.ndarray:
    opened = open_image(source, max_pixels=LIMIT, **options)  # type: ignore[arg-type]
    assert opened.picture.mode == "RGB"
    return np.asarray(opened.picture)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def colours(height: int = 6, width: int = 8) -> np.ndarray:
    """A picture in which no two pixels are the same, under any rotation."""
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def header_only_png(width: int, height: int) -> bytes:
    """A file that promises a picture and holds none: decoding it would fail, asking for its size does not."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# --- sources ----------------------------------------------------------------------------------------------


def test_all_kinds_of_sources(tmp_path: Path) -> None:
    array = colours()
    picture = Image.fromarray(array)
    data = saved(picture)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (array, array[:, ::-1][:, ::-1], picture, data, path, str(path)):
        np.testing.assert_array_equal(pixels_of(source), array)


def test_the_callers_picture_stays_as_it_is() -> None:
    picture = Image.fromarray(colours())
    picture.info["comment"] = "mine"
    opened = open_image(picture, max_pixels=LIMIT).picture
    assert opened is not picture
    opened.putpixel((0, 0), (9, 9, 9))
    np.testing.assert_array_equal(np.asarray(picture), colours())
    assert picture.info == {"comment": "mine"}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be \(H, W, 3\) uint8 in RGB order"):
        open_image(array, max_pixels=LIMIT)


# --- modes ------------------------------------------------------------------------------------------------


def test_grey_and_1_bit() -> None:
    values = np.array([[0, 100, 255]], np.uint8)
    np.testing.assert_array_equal(pixels_of(saved(Image.fromarray(values))), np.stack([values] * 3, -1))
    one_bit = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(pixels_of(saved(one_bit))[0, :, 0], [0, 255, 255])


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], np.uint8)
    expected = [[200, 100, 0], [255, 255, 255], [227, 177, 127]]
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        np.testing.assert_allclose(
            pixels_of(saved(Image.fromarray(rgba), format, **options))[0], expected, atol=1
        )
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(pixels_of(saved(grey))[0], [[200] * 3, [255] * 3])
    premultiplied = Image.fromarray(rgba).convert("RGBa")
    np.testing.assert_allclose(pixels_of(premultiplied)[0], expected, atol=2)


def test_palettes_with_and_without_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    np.testing.assert_array_equal(pixels_of(saved(picture))[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    see_through = [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    np.testing.assert_array_equal(pixels_of(saved(picture, transparency=1))[0], see_through)
    np.testing.assert_array_equal(pixels_of(saved(picture, "GIF", transparency=1))[0], see_through)
    alphas = pixels_of(saved(picture, transparency=b"\xff\x00\xff"))
    np.testing.assert_array_equal(alphas[0], see_through)


def test_one_transparent_colour() -> None:
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(
        pixels_of(saved(picture, transparency=(4, 5, 6)))[0], [[1, 2, 3], [255, 255, 255]]
    )


def test_16_bit_grey_is_scaled_not_cut() -> None:
    values = np.array([[0, 128, 129, 257, 256 * 100, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 100, 255]
    big_endian = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    sources = (saved(Image.fromarray(values)), saved(Image.fromarray(values), "TIFF"), big_endian)
    for source in sources:
        np.testing.assert_array_equal(pixels_of(source)[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 1, 70000], [0, 0, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([-5, -5, -5], [0, 0, 0]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    picture = Image.fromarray(np.array([values], np.int32))
    assert picture.mode == "I"
    np.testing.assert_array_equal(pixels_of(saved(picture, "TIFF"))[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), 0.5, 1.0], [0, 128, 255]),
        ([float("-inf"), 0.0, float("inf")], [0, 128, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    picture = Image.fromarray(np.array([values], np.float32))
    assert picture.mode == "F"
    np.testing.assert_allclose(pixels_of(saved(picture, "TIFF"))[0, :, 0], expected, atol=1)


def test_cmyk_and_other_colour_spaces() -> None:
    red = Image.new("RGB", (8, 8), (250, 10, 10))
    np.testing.assert_allclose(pixels_of(saved(red.convert("CMYK"), "JPEG"))[4, 4], [250, 10, 10], atol=12)
    for mode in ("YCbCr", "HSV"):
        np.testing.assert_allclose(pixels_of(red.convert(mode))[4, 4], [250, 10, 10], atol=4)
    lab = Image.new("LAB", (4, 4), (138, 128 + 80, 128 + 67))
    np.testing.assert_allclose(pixels_of(lab)[2, 2], [250, 10, 10], atol=4)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(data)[0, 0], [255, 0, 0])


# --- orientation ------------------------------------------------------------------------------------------


def oriented(orientation: int, format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(colours()), format, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_pictures_without_annotation_are_set_upright(orientation: int, format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(colours()), format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    opened = open_image(data, max_pixels=LIMIT)
    np.testing.assert_array_equal(np.asarray(opened.picture), expected)
    assert opened.rotated == (orientation != 1 and format != "TIFF")
    path = tmp_path / "a"
    path.write_bytes(data)
    assert read_header(path).upright_size == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_decide_on_the_orientation(orientation: int) -> None:
    data, stored = oriented(orientation), colours()
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    for annotated_size in ((6, 8), (8, 6)):
        opened = open_image(data, annotated_size=annotated_size, max_pixels=LIMIT)
        rotate = orientation != 1 and annotated_size == upright.shape[:2]
        assert opened.rotated == rotate
        np.testing.assert_array_equal(np.asarray(opened.picture), upright if rotate else stored)
        assert opened.fits == (annotated_size == (upright if rotate else stored).shape[:2])


def test_a_size_that_fits_neither_way() -> None:
    opened = open_image(oriented(6), annotated_size=(99, 99), max_pixels=LIMIT)
    assert (opened.rotated, opened.fits, opened.picture.size) == (False, False, (8, 6))


def test_opening_twice_rotates_once() -> None:
    for annotated_size in (None, (6, 8)):
        first = open_image(oriented(6), annotated_size=annotated_size, max_pixels=LIMIT)
        second = open_image(first.picture, max_pixels=LIMIT)
        assert not second.rotated
        np.testing.assert_array_equal(np.asarray(first.picture), np.asarray(second.picture))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientations_that_do_not_exist(orientation: int) -> None:
    opened = open_image(oriented(orientation), max_pixels=LIMIT)
    assert not opened.rotated


def test_broken_exif_is_no_reason_to_refuse_a_picture() -> None:
    data = saved(Image.fromarray(colours()), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels_of(data), colours())


def test_should_rotate() -> None:
    header = ImageHeader((6, 8), 6, "RGB", "JPEG")
    assert should_rotate(header, None)
    assert should_rotate(header, (8, 6))
    assert not should_rotate(header, (6, 8))
    assert not should_rotate(ImageHeader((6, 8), 1, "RGB", "JPEG"), (8, 6))


# --- sizes ------------------------------------------------------------------------------------------------


def test_large_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(header_only_png(30_000, 20_000))
    expected = r"large\.png has 30000 x 20000 pixels \(600,000,000\), more than the limit of 100,000,000"
    with pytest.raises(UserError, match=expected):
        open_image(path, max_pixels=100_000_000)
    assert read_header(path).stored_size == (20_000, 30_000)


@pytest.mark.parametrize("source", [np.zeros((20, 30, 3), np.uint8), Image.new("L", (30, 20))])
def test_large_pictures_in_memory_are_refused(source: np.ndarray | Image.Image) -> None:
    with pytest.raises(UserError, match=r"has 30 x 20 pixels \(600\), more than the limit of 599"):
        open_image(source, max_pixels=599)
    assert open_image(source, max_pixels=600).picture.size == (30, 20)


def test_pillows_own_limit_neither_warns_nor_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = saved(Image.fromarray(colours()), format)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_image(data, max_pixels=48).picture.size == (8, 6)
            with pytest.raises(UserError, match="8 x 6 pixels"):
                open_image(data, max_pixels=47)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillows_limit_comes_back_when_threads_open_images() -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = [saved(Image.fromarray(colours()), format) for format in ("PNG", "JPEG")]
    threads = [
        threading.Thread(target=lambda: [open_image(item, max_pixels=48) for item in data * 20])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_tiff_that_claims_to_be_large() -> None:
    data = bytearray(saved(Image.fromarray(colours(16, 16)), "TIFF"))
    directory = struct.unpack_from("<I", data, 4)[0]
    for index in range(struct.unpack_from("<H", data, directory)[0]):
        at = directory + 2 + 12 * index
        tag = struct.unpack_from("<H", data, at)[0]
        if tag in (256, 257):  # width, height
            struct.pack_into("<HHII", data, at, tag, 4, 1, 60_000)
    with pytest.raises(UserError, match="60000 x 60000 pixels"):
        open_image(bytes(data), max_pixels=LIMIT)


# --- broken -----------------------------------------------------------------------------------------------


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no image file .*nowhere\.jpg"):
        open_image(tmp_path / "nowhere.jpg", max_pixels=LIMIT)
    with pytest.raises(UserError, match=f"{tmp_path} is a folder"):
        open_image(tmp_path, max_pixels=LIMIT)
    with pytest.raises(UserError, match="cannot be opened"):
        open_image("a\0b.jpg", max_pixels=LIMIT)
    with pytest.raises(UserError, match="cannot be opened"):
        open_image("a" * 300 + ".jpg", max_pixels=LIMIT)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="is a pipe, not an image file"):
        open_image(tmp_path / "pipe.jpg", max_pixels=LIMIT)
    for name, content, complaint in (
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"hello, I am a text", "is not an image"),
        ("eps.eps", b"%!PS-Adobe", "is not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        for function in (read_header, lambda path: open_image(path, max_pixels=LIMIT)):
            with pytest.raises(UserError, match=f"{name} {complaint}"):
                function(tmp_path / name)
    with pytest.raises(UserError, match=r"the image \(4 bytes\) is not an image"):
        open_image(b"abcd", max_pixels=LIMIT)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_files(tmp_path: Path, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "cut"
    path.write_bytes(saved(Image.fromarray(noise), format)[:-200])
    with pytest.raises(UserError, match=r"cut is (a broken|not an) image"):
        open_image(path, max_pixels=LIMIT)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"]), st.data())
@settings(max_examples=150)
def test_no_bytes_get_past_the_reader(format: str, data: st.DataObject) -> None:
    content = bytearray(saved(Image.fromarray(colours()), format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(len(content) // 2, len(content)))
    try:
        opened = open_image(bytes(content[:end]), max_pixels=LIMIT)
    except UserError:
        return
    assert opened.picture.mode == "RGB"
    assert opened.picture.width * opened.picture.height <= LIMIT


# --- thumbnails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_thumbnails_are_small_and_upright(format: str, orientation: int, tmp_path: Path) -> None:
    values = np.zeros((480, 640, 3), dtype=np.uint8)
    values[:, 320:] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    Image.fromarray(values).save(path, format, exif=exif)
    thumbnail = read_thumbnail(path, (12, 16), max_pixels=LIMIT)
    assert (thumbnail.shape, thumbnail.dtype) == ((12, 16), np.float32)
    picture = open_image(path, max_pixels=LIMIT).picture.convert("L").resize((16, 12))
    np.testing.assert_allclose(thumbnail, np.asarray(picture), atol=30)
    lying = read_thumbnail(path, (12, 16), annotated_size=(480, 640), max_pixels=LIMIT)
    assert np.abs(lying[:, :6] - lying[:, 10:]).mean() > 150  # dark and light lie side by side


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_thumbnails_find_what_is_broken(format: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format)
    with pytest.raises(UserError, match=r"a has 300 x 200 pixels .* more than the limit"):
        read_thumbnail(path, (8, 8), max_pixels=1000)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="a is a broken image"):
        read_thumbnail(path, (8, 8), max_pixels=LIMIT)
