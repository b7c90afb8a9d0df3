"""Reading of pictures of any kind as upright 8-bit RGB, up to a given number of pixels.

`read_header` reads only the first bytes of a file on the disk (size, EXIF orientation), `open_image` decodes
the picture, and `read_thumbnail` returns a small grey version of it. Whether a picture is rotated is decided
only in `should_rotate`, so that inspection and training treat a data set alike. Sizes are (H, W), height and
width in pixels.

Modes other than RGB are converted as follows:
- grey, 1-bit, palette, CMYK, YCbCr and HSV: by Pillow;
- transparency of any kind (RGBA, LA, PA, palette or tRNS): composited over white, as viewers show it;
- 16-bit grey: divided by 257, so that 65535 becomes 255 (Pillow alone would clip at 255);
- 32-bit integers: like 16-bit grey if all values fit into 16 bits, otherwise their range is stretched to
  [0, 255];
- 32-bit floats: [0, 1] is multiplied by 255, [0, 255] is kept, any other range is stretched to [0, 255]; NaN
  becomes 0.
The last three ignore transparency. If the range to stretch has only one value, the picture becomes black.
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
from ..files import is_pipe
from .remote_folder import RemoteFile

# Raster formats that Pillow decodes itself. EPS is not among them, because it would run Ghostscript; neither
# are formats without a signature, because their readers accept almost any file as a picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo"}
)


def is_image(name: str) -> bool:
    """Return True if a file's name ends with the suffix of a picture, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


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
    """The properties of an image file that its first bytes state.

    `stored_size`: (H, W) of the pixels as they are stored. `orientation`: EXIF's 1 to 8, where 1 is upright;
    also 1 if there is no valid EXIF orientation. `mode`, `format`: as Pillow names them, such as RGB and
    JPEG.
    A TIFF always counts as upright: Pillow itself rotates it while decoding, and reports the rotated size.
    """

    stored_size: tuple[int, int]
    orientation: int
    mode: str
    format: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """The size (H, W) after the rotation that EXIF requests, as a viewer shows the picture."""
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)


@dataclass(frozen=True)
class OpenedImage:
    """A decoded picture.

    `picture`: mode RGB, without metadata. `rotated`: True if EXIF's orientation was applied (rotation or
    mirroring). `fits`: False if an annotation states a size that the picture has neither as stored nor
    upright; the boxes then belong to other pixels.
    """

    picture: Image.Image
    rotated: bool
    fits: bool


def should_rotate(header: ImageHeader, annotated_size: tuple[int, int] | None) -> bool:
    """Return True if a picture must be rotated or mirrored according to its EXIF orientation.

    Boxes may refer to the stored pixels, so the annotated (H, W) decides: the orientation is applied only if
    the picture then has that size. If the picture has that size either way (half turns, mirroring, square
    pictures), or if `annotated_size` is None, the orientation is applied, as image viewers do.
    """
    if header.orientation == 1:
        return False
    return annotated_size is None or header.upright_size == tuple(annotated_size)


def read_header(source: str | os.PathLike[str] | bytes | RemoteFile) -> ImageHeader:
    """Return the size, orientation, mode and format of an image file without decoding it.

    `source` is a path, the bytes of the file, or a file behind a URL, which is read completely.

    Raises:
        UserError: if the file cannot be read, is not an image or has a broken header.
    """
    if isinstance(source, bytes):
        name = _name_of_bytes(source)
        with _naming(name):
            return _header_of(_parse(BytesIO(source)))
    if isinstance(source, RemoteFile):
        with BytesIO(source.read()) as content, _naming(str(source)):
            return _header_of(_parse(content))
    name = os.fspath(source)
    with _open_file(name) as file, _naming(name):
        return _header_of(_parse(file))


def open_image(
    source: str | os.PathLike[str] | bytes | RemoteFile | Image.Image | np.ndarray,
    *,
    annotated_size: tuple[int, int] | None = None,
    max_pixels: int,
) -> OpenedImage:
    """Decode a picture to 8-bit RGB, and rotate it as EXIF requests, unless its boxes refer to stored pixels.

    Args:
        source: a path, the bytes of an image file, a file behind a URL, a PIL image of any mode, or an
            (H, W, 3) uint8 RGB array.
        annotated_size: (H, W) that the annotation states; None if there is no annotation. With a size, the
            picture is rotated only if it then has this size (see `should_rotate`).
        max_pixels: the maximum H·W; larger pictures are refused before anything is decoded.

    Raises:
        UserError: if the file is missing, a folder, a pipe, not an image or broken; if an array has another
            shape or type; or if the picture is empty, too large or cannot be converted to RGB. The message
            names the file.
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
    if isinstance(source, RemoteFile):
        return _decode(BytesIO(source.read()), annotated_size, max_pixels, str(source))
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
    """Return the whole picture as a grey float32 array of `size` (H, W), with values from 0 to 255.

    The picture is rotated as in `open_image`, and `annotated_size` and `max_pixels` have the same meaning as
    there. A JPEG is decoded at a half, a quarter or an eighth of each side, the smallest of these at which
    both decoded sides have at least four times as many pixels as the longer side of `size`. This takes a
    fraction of the time of `open_image`. The whole file is read in any case, so broken files are noticed.

    Raises:
        UserError: if the file is missing, a folder, a pipe, not an image or broken, or if the picture is too
            large or cannot be converted. The message names the file.
    """
    name = os.fspath(path)
    with _open_file(name) as file:
        with _naming(name):
            image = _parse(file)
            # Pillow's reader of MPO is not that of JPEG, and its decoding at a reduced scale is not reliable.
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
    """Check the size of a picture, convert it to RGB, and rotate it if necessary.

    The result shares no data with `image`. `name` stands for the picture in messages.
    """
    _check_size((image.height, image.width), max_pixels, name)
    with _naming(name):
        header = _header_of(image)
        # Only for TIFF does Pillow check its own size limit again when the pixels are loaded.
        with _pillow_limit(max_pixels) if image.format == "TIFF" else nullcontext():
            image.load()
        rotated = should_rotate(header, annotated_size)
        picture = _to_rgb(image)
        if rotated:
            picture = picture.transpose(_TRANSPOSITIONS[header.orientation])
        if picture is image:
            picture = picture.copy()
    # If the picture were saved with its metadata, it would be rotated again when it is opened.
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
    return (values.astype(np.uint32) + 128) // 257  # values / 257, rounded


def _stretched(values: np.ndarray) -> np.ndarray:
    lowest, highest = values.min(), values.max()
    # The values are halved so that the range of extreme floats does not overflow.
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
        # Not `image.getexif()`: PNG's version decodes the whole picture to find an EXIF chunk after the
        # pixels, where hardly any writer puts it.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Broken EXIF does not mean broken pixels. Like viewers, show them as they are stored.
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _parse(file: IO[bytes]) -> Image.Image:
    """Open an image of one of the formats in `_FORMATS` without decoding it."""
    # Pillow has its own size limit: it warns at 89 and refuses at 179 million pixels. Here the caller sets
    # the limit, so Pillow's is disabled while it reads the header.
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
    if is_pipe(Path(name)):
        raise UserError(f"{name} is a pipe, not an image file: save the picture in a file first.")
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
    """Convert any exception raised inside the `with` block to a UserError that contains `name`.

    Given broken bytes, decoders raise almost any kind of exception (OSError, SyntaxError, struct.error,
    KeyError, …), so all kinds are caught. Therefore, only calls into Pillow belong in the block.
    """
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
