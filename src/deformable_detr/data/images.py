"""Pictures of every kind as 8-bit RGB, upright, and never larger than agreed.

Three entrances: `read_header` looks only at the first bytes of a file (size, EXIF orientation), `open_image`
decodes, `read_thumbnail` decodes as coarsely as the format can. All decide on rotation with `should_rotate`,
so that inspecting a data set and training on it cannot disagree. Sizes are (H, W).

What becomes of modes that are not RGB:
- grey, 1-bit, palette, CMYK, YCbCr, HSV: Pillow's conversion;
- transparency of any kind (RGBA, LA, PA, palette or tRNS): laid over white, as viewers show it;
- 16-bit grey: divided by 257, so that 65535 becomes 255 (Pillow alone would cut at 255);
- 32-bit integers: as 16-bit grey where all values fit it, otherwise stretched from their own range;
- 32-bit floats: [0, 1] times 255, [0, 255] as it is, otherwise stretched from their own range; NaN is 0.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError

# Raster formats that decode inside Pillow. Not EPS, which would run Ghostscript, and none of the formats
# without a signature, which take almost any file for a picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo"}
)

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_lock = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """The facts in the first bytes of an image file.

    `stored_size`: (H, W) of the pixels as they are stored. `orientation`: EXIF's 1 to 8, 1 = upright.
    A TIFF always counts as upright: Pillow itself turns it while decoding, and gives the turned size.
    """

    stored_size: tuple[int, int]
    orientation: int
    mode: str
    format: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """(H, W) after the rotation that EXIF requests, as a viewer shows the picture."""
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)


@dataclass(frozen=True)
class OpenedImage:
    """`picture`: mode RGB, decoded, without metadata. `rotated`: EXIF's orientation was applied (rotation
    or mirroring). `fits`: False where the annotation states a size that the picture has in neither position:
    its boxes then belong to other pixels."""

    picture: Image.Image
    rotated: bool
    fits: bool


def should_rotate(header: ImageHeader, annotated_size: tuple[int, int] | None) -> bool:
    """Return True if the EXIF orientation is to be applied: always, unless boxes refer to the stored pixels.

    The size decides: the rotation is applied only if it leads to the annotation's (H, W). Half turns,
    mirrorings and square pictures have the same size either way, and are applied as viewers do.
    """
    if header.orientation == 1:
        return False
    return annotated_size is None or header.upright_size == tuple(annotated_size)


def read_header(source: str | os.PathLike[str] | bytes) -> ImageHeader:
    """Read size and orientation of an image file (a path, or its bytes) without decoding it.

    Raises UserError if there is no file or it is not an image.
    """
    if isinstance(source, bytes):
        name = _name_of_bytes(source)
        with _naming(name):
            return _header_of(_parse(BytesIO(source)))
    name = os.fspath(source)
    with _open_file(name) as file, _naming(name):
        return _header_of(_parse(file))


def open_image(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray,
    *,
    annotated_size: tuple[int, int] | None = None,
    max_pixels: int,
) -> OpenedImage:
    """Decode a picture to RGB and set it upright.

    source: a path, the bytes of an image file, a PIL image of any mode, or an (H, W, 3) uint8 RGB array.
    annotated_size: (H, W) that the annotation states, see `should_rotate`; None for pictures without one.
    max_pixels: the largest H·W; more is refused before anything is decoded.

    Raises UserError with the path in it: missing, a folder, not an image, truncated, too large, or pixels
    of a kind that has no RGB.
    """
    if isinstance(source, np.ndarray):
        _check_array(source)
        picture = Image.fromarray(np.ascontiguousarray(source))
        return _finish(picture, annotated_size, max_pixels, "the image array")
    if isinstance(source, Image.Image):
        return _finish(source, annotated_size, max_pixels, "the image")
    if isinstance(source, bytes):
        name = _name_of_bytes(source)
        return _decode(BytesIO(source), annotated_size, max_pixels, name)
    name = os.fspath(source)
    with _open_file(name) as file:
        return _decode(file, annotated_size, max_pixels, name)


def read_thumbnail(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    annotated_size: tuple[int, int] | None = None,
    max_pixels: int,
) -> np.ndarray:
    """The whole picture as (H, W) grey float32 of `size`, upright; every byte of the file was decoded for it.

    JPEG is decoded at an eighth of its sides where that is enough, in a fraction of the time of `open_image`.
    Raises what `open_image` raises.
    """
    name = os.fspath(path)
    with _open_file(name) as file:
        with _naming(name):
            image = _parse(file)
            # The reader of MPO is not the one of JPEG, and has no coarse decoding that can be relied on.
            if image.format == "JPEG" and image.height * image.width <= max_pixels:
                rotate = should_rotate(_header_of(image), annotated_size)
                orientation = _orientation(image)
                image.draft("L", (4 * max(size), 4 * max(size)))
                image.load()
                picture = image.transpose(_TRANSPOSITIONS[orientation]) if rotate else image
                return _shrunk(picture, size)
        picture = _finish(image, annotated_size, max_pixels, name).picture
    return _shrunk(picture, size)


def _shrunk(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    grey = picture.convert("L").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32)


def _decode(
    file: IO[bytes], annotated_size: tuple[int, int] | None, max_pixels: int, name: str
) -> OpenedImage:
    with _naming(name):
        image = _parse(file)
    return _finish(image, annotated_size, max_pixels, name)


def _finish(
    image: Image.Image, annotated_size: tuple[int, int] | None, max_pixels: int, name: str
) -> OpenedImage:
    """Size, pixels, mode, orientation. The result shares nothing with `image`, which may be the caller's."""
    _check_size((image.height, image.width), max_pixels, name)
    with _naming(name):
        header = _header_of(image)
        # TIFF alone is judged by Pillow's own limit once more when its pixels are loaded.
        with _pillow_limit(max_pixels) if image.format == "TIFF" else nullcontext():
            image.load()
        rotated = should_rotate(header, annotated_size)
        picture = _to_rgb(image)
        if rotated:
            picture = picture.transpose(_TRANSPOSITIONS[header.orientation])
        if picture is image:
            picture = picture.copy()
    # Metadata left behind would turn the picture a second time when it is opened again.
    picture.info = {}
    fits = annotated_size is None or (picture.height, picture.width) == tuple(annotated_size)
    return OpenedImage(picture, rotated, fits)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey(_from_16_bit(np.asarray(image)))
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= 65535:
            return _grey(_from_16_bit(values))
        return _grey(_stretched(values.astype(np.float64)))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        if values.min() >= 0 and values.max() <= 1:
            return _grey(np.round(values * 255))
        if values.min() >= 0 and values.max() <= 255:
            return _grey(np.round(values))
        return _grey(_stretched(values))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) + 128) // 257  # v / 257, rounded


def _stretched(values: np.ndarray) -> np.ndarray:
    lowest, highest = values.min(), values.max()
    # Halved, so that the range of extreme floats does not overflow.
    span = highest / 2 - lowest / 2
    return np.round((values / 2 - lowest / 2) / span * 255) if span > 0 else np.zeros_like(values)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _header_of(image: Image.Image) -> ImageHeader:
    return ImageHeader(
        stored_size=(image.height, image.width),
        orientation=1 if image.format == "TIFF" else _orientation(image),
        mode=image.mode,
        format=image.format or "",
    )


def _orientation(image: Image.Image) -> int:
    try:
        # Not `image.getexif()`: PNG's own decodes the whole picture in search of an EXIF chunk behind the
        # pixels, where next to no writer puts it.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Broken EXIF says nothing about the pixels. Like a viewer, show them as they are stored.
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _parse(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it."""
    # Pillow judges the size by a limit of its own, which warns at 89 and refuses at 179 million pixels.
    # Ours is the caller's, so Pillow's is set aside while it reads the header.
    with _pillow_limit(None):
        Image.init()
        return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    with _pillow_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open_file(name: str) -> IO[bytes]:
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder, not an image file: name one of the pictures in it.")
    try:
        return Path(name).open("rb")
    except FileNotFoundError as error:
        raise UserError(f"there is no image file {name}: check the path.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the image file {name!r} cannot be opened: {error}.") from error


def _name_of_bytes(content: bytes) -> str:
    return f"the image ({len(content)} bytes)"


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault. Decoders fed with broken bytes raise almost every kind
    of exception (OSError, SyntaxError, struct.error, KeyError, …), hence the width of the net; only calls
    into Pillow belong inside."""
    try:
        yield
    except UnidentifiedImageError as error:
        if os.path.isfile(name) and os.path.getsize(name) == 0:
            raise UserError(f"{name} is empty (0 bytes): replace the file.") from error
        raise UserError(
            f"{name} is not an image that can be read: give JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF."
        ) from error
    except Exception as error:
        raise UserError(
            f"{name} is a broken image ({str(error).rstrip('.') or type(error).__name__}): replace the file."
        ) from error


def _check_array(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise UserError(
            f"an image array must be (H, W, 3) uint8 in RGB order, not {array.dtype} {array.shape}: "
            "convert it first."
        )


def _check_size(size: tuple[int, ...], max_pixels: int, name: str) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"{name} has {width} x {height} pixels, it is empty: replace it.")
    if height * width > max_pixels:
        raise UserError(
            f"{name} has {width} x {height} pixels ({height * width:,}), more than the limit of "
            f"{max_pixels:,}: make it smaller or raise the limit (--data.max_pixels)."
        )
