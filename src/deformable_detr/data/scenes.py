"""Drawing of scenes of coloured shapes, with the pixels of each object; drawn.py builds data sets from them.

Several properties make detection in these scenes a realistic problem: sizes from 8 pixels to 60 % of the
picture's short side, objects that occlude each other or extend beyond the picture, shadows, clutter as large
as the objects, textured backgrounds, and colours that do not depend on the class. With `small_objects`, most
objects are small, and there are more of them.

Letters: H, W are the size of the picture; h, w that of an object's window, the rectangle of pixels around it;
N is the number of objects. Colours are RGB, 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .textures import TEXTURES, cloud

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")

SUPERSAMPLING = 4
SMALLEST = 8.0  # minimum long side of an object, in pixels
MIN_VISIBLE = 0.25  # share of an object's area; objects with a smaller visible share are not drawn
MIN_VISIBLE_PIXELS = 16
EMPTY_SHARE = 0.02  # share of pictures that are drawn without objects


@dataclass(frozen=True)
class Scene:
    """A drawn picture of height H and width W, and the visible pixels of its N objects.

    The objects are in order of distance, the nearest first. `picture`: RGB. `labels`: (N,) int64 indices into
    CLASS_NAMES. `masks`: (N, H, W) bool, the visible pixels of each object; masks do not overlap.
    """

    picture: Image.Image
    labels: np.ndarray
    masks: np.ndarray

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """The boxes (x0, y0, x1, y1) around the masks, (N, 4) int64; x1, y1 are one past the last pixel."""
        boxes = np.zeros((len(self.labels), 4), dtype=np.int64)
        for box, mask in zip(boxes, self.masks, strict=True):
            ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
        return boxes

    @property
    def areas(self) -> np.ndarray:
        """The numbers of pixels in the masks, (N,) int64."""
        result: np.ndarray = self.masks.sum(axis=(1, 2), dtype=np.int64)
        return result


def draw_scene(rng: np.random.Generator, image_size: tuple[int, int], small_objects: bool = False) -> Scene:
    """Return a drawn picture of `image_size` (H, W) with its objects.

    With `small_objects`, most objects are small, and there are more of them. The result depends only on the
    arguments and the generator's state.
    """
    style = SMALL_OBJECTS_STYLE if small_objects else USUAL_STYLE
    background = _background(rng, image_size, style)
    shapes, masks = place_shapes(rng, image_size, style)
    canvas = _paint(rng, background, shapes, style)
    return Scene(
        _photograph(rng, canvas),
        np.array([shape.label for shape in shapes], dtype=np.int64),
        np.array(masks, dtype=bool).reshape(len(shapes), *image_size),
    )


@dataclass(frozen=True)
class _Style:
    """The parameters of a kind of scene.

    `num_objects`, `num_strokes`, `num_pebbles`: minimum and maximum (inclusive) number of objects, before
    hardly visible ones are left out, and of the two kinds of clutter, strokes and pebbles. `small_share`: the
    probability that an object's long side is 8 to 24 pixels; otherwise it is at least 16 pixels, and at most
    `largest` times the picture's short side (or 24 pixels, if that is more). `contrast`: minimum Euclidean
    distance between the RGB colours of an object and its background, if it can be reached. `pebble_size`:
    minimum and maximum length of a pebble, in pixels.
    """

    num_objects: tuple[int, int]
    small_share: float
    largest: float
    contrast: float
    num_strokes: tuple[int, int]
    num_pebbles: tuple[int, int]
    pebble_size: tuple[float, float]


USUAL_STYLE = _Style(
    num_objects=(1, 10),
    small_share=0.15,
    largest=0.6,
    contrast=85.0,
    num_strokes=(0, 8),
    num_pebbles=(0, 12),
    pebble_size=(8.0, 60.0),
)
SMALL_OBJECTS_STYLE = _Style(
    num_objects=(12, 60),
    small_share=0.88,
    largest=0.35,
    contrast=65.0,
    num_strokes=(8, 40),
    num_pebbles=(20, 90),
    pebble_size=(5.0, 26.0),
)


# ---------------------------------------------------------------------------------------------------------
# Shapes and their positions


@dataclass(frozen=True)
class _Shape:
    """An object and its window, the rectangle of pixels around it.

    `label`: the object's index into CLASS_NAMES. `size`: the long side of its box, in pixels. `left`, `top`:
    the position of the window's corner in the picture, in pixels; the corner may be outside.
    `coverage`: (h, w) float32, the share of each pixel of the window that the object covers.
    """

    label: int
    size: float
    left: int
    top: int
    coverage: np.ndarray

    def windows(self, image_size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        return _windows(self.left, self.top, self.coverage.shape, image_size)


def _windows(
    left: int, top: int, shape: tuple[int, ...], image_size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of a window inside the picture, as slices of the picture and slices of the window.

    Both are pairs (rows, columns), and are empty if no part is inside. `left` and `top` are the position of
    the window's corner in the picture, `shape` is the window's (h, w), and `image_size` the picture's (H, W).
    """
    y0, y1 = max(top, 0), min(top + shape[0], image_size[0])
    x0, x1 = max(left, 0), min(left + shape[1], image_size[1])
    y1, x1 = max(y0, y1), max(x0, x1)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def place_shapes(
    rng: np.random.Generator, image_size: tuple[int, int], style: _Style
) -> tuple[list[_Shape], list[np.ndarray]]:
    """Place shapes from the nearest to the farthest; return them with masks of their visible pixels.

    Each mask is (H, W) bool. Near shapes are placed first, so that the visible part of each shape is known
    when it is placed. A shape is left out if less than a quarter of its area or fewer than 16 of its pixels
    would be visible. A scene is left empty with a probability of 2 %.
    """
    shapes: list[_Shape] = []
    masks: list[np.ndarray] = []
    if rng.random() < EMPTY_SHARE:
        return shapes, masks
    covered = np.zeros(image_size, dtype=bool)
    for _ in range(_between(rng, style.num_objects)):
        shape = random_shape(rng, image_size, style)
        in_picture, in_window = shape.windows(image_size)
        whole = shape.coverage >= 0.5
        visible = whole[in_window] & ~covered[in_picture]
        if visible.sum() < max(MIN_VISIBLE * whole.sum(), MIN_VISIBLE_PIXELS):
            continue
        mask = np.zeros(image_size, dtype=bool)
        mask[in_picture] = visible
        covered[in_picture] |= whole[in_window]
        shapes.append(shape)
        masks.append(mask)
    return shapes, masks


def random_shape(rng: np.random.Generator, image_size: tuple[int, int], style: _Style) -> _Shape:
    label = int(rng.integers(len(CLASS_NAMES)))
    small = rng.random() < style.small_share
    if small:
        size = rng.uniform(SMALLEST, 24.0)
    else:
        size = 16.0 + (max(24.0, style.largest * min(image_size)) - 16.0) * rng.random() ** 1.6

    outline = _turned(rng, _OUTLINES[label](rng) * (1.0, rng.uniform(0.8, 1.0)))
    outline -= (outline.max(axis=0) + outline.min(axis=0)) / 2
    outline *= size / np.ptp(outline, axis=0).max()

    extent = np.ptp(outline, axis=0) / 2
    limits = np.array([image_size[1], image_size[0]])
    if rng.random() < 0.15:  # may extend beyond the picture
        centre = rng.uniform(0, limits)
    else:
        centre = rng.uniform(np.minimum(extent, limits / 2), np.maximum(limits - extent, limits / 2))
    left, top = (np.floor(centre - extent) - 1).astype(int).tolist()
    right, bottom = (np.ceil(centre + extent) + 1).astype(int).tolist()

    image = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    # Pillow's coordinates refer to pixel centres, the outline's to pixel corners
    points = (outline + centre - (left, top)) * SUPERSAMPLING - 0.5
    draw.polygon(points.ravel().tolist(), fill=255)
    if CLASS_NAMES[label] == "ring":
        middle = (points.max(axis=0) + points.min(axis=0)) / 2
        hole = middle + (points - middle) * rng.uniform(0.5, 0.62)
        draw.polygon(hole.ravel().tolist(), fill=0)
    coverage = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    return _Shape(label, size, left, top, coverage)


def _turned(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    result: np.ndarray = points @ np.array([[cosine, sine], [-sine, cosine]])
    return result


def _circle(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _square(rng: np.random.Generator) -> np.ndarray:
    return np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


def _triangle(rng: np.random.Generator) -> np.ndarray:
    angles = np.arange(3) * 2 * math.pi / 3
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(rng: np.random.Generator) -> np.ndarray:
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.5))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(rng: np.random.Generator) -> np.ndarray:
    arm = rng.uniform(0.25, 0.38)
    corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])


# in the order of CLASS_NAMES; a ring is a circle with a hole
_OUTLINES: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    _circle,
    _square,
    _triangle,
    _star,
    _circle,
    _cross,
)


# ---------------------------------------------------------------------------------------------------------
# Painting


def _between(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _colours(
    rng: np.random.Generator, count: int, saturation: tuple[float, float], brightness: tuple[float, float]
) -> np.ndarray:
    """Return random colours of any hue, (count, 3) float32.

    `saturation` and `brightness` are the minimum and the maximum of HSV's saturation and value, in [0, 1].
    """
    hue, s, v = rng.uniform(
        ((0.0,), saturation[:1], brightness[:1]), ((6.0,), saturation[1:], brightness[1:]), (3, count)
    )
    # HSV to RGB in closed form: each channel is a trapezoid of the hue
    k = (np.array([5, 3, 1]) + hue[:, None]) % 6
    dip = np.minimum(k, 4 - k).clip(0, 1)
    rgb: np.ndarray = (255 * v[:, None] * (1 - s[:, None] * dip)).astype(np.float32)
    return rgb


def _background(rng: np.random.Generator, image_size: tuple[int, int], style: _Style) -> np.ndarray:
    """Return a background, (H, W, 3) float32: a colour gradient with a texture and clutter."""
    height, width = image_size
    base = _colours(rng, 1, (0.05, 0.45), (0.3, 0.95))[0]
    accents = _colours(rng, 12, (0.05, 0.5), (0.25, 1.0)).reshape(3, 4, 3)
    corners = base + rng.uniform(0.1, 0.35) * (accents - base)
    gradient = Image.fromarray(corners.clip(0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, image_size)
    canvas = np.asarray(gradient, dtype=np.float32) * (1 + rng.uniform(0.04, 0.14) * texture[..., None])
    return _strew(rng, canvas.clip(0, 255), base, style)


def _strew(rng: np.random.Generator, canvas: np.ndarray, base: np.ndarray, style: _Style) -> np.ndarray:
    """Return a copy of the background `canvas`, (H, W, 3) float32, with clutter drawn on it.

    The clutter consists of strokes and long pebbles, whose sizes and colours are like those of objects, but
    whose shapes differ. The colours of the clutter vary around `base`, an RGB colour (3,).
    """
    height, width = canvas.shape[:2]
    scale = 2
    # nearest neighbour, so that pixels without clutter are unchanged when the picture is reduced again below
    picture = Image.fromarray(canvas.astype(np.uint8)).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture, "RGBA")

    def ink() -> tuple[int, ...]:
        colour = base + rng.uniform(0.25, 1.0) * (_colours(rng, 1, (0.1, 0.9), (0.15, 1.0))[0] - base)
        return (*colour.clip(0, 255).astype(int).tolist(), int(rng.integers(90, 230)))

    for _ in range(_between(rng, style.num_pebbles)):
        size = math.exp(rng.uniform(*np.log(style.pebble_size)))
        draw.polygon(
            (_pebble(rng, size) + rng.uniform(0, (width, height))).ravel().dot(scale).tolist(), ink()
        )
    for _ in range(_between(rng, style.num_strokes)):
        length = rng.uniform(0.05, 0.45) * min(height, width)
        points = _stroke(rng, length) + rng.uniform(0, (width, height))
        draw.line((points * scale).ravel().tolist(), ink(), width=int(rng.integers(2, 8)), joint="curve")
    return np.asarray(picture.reduce(scale), dtype=np.float32)


def _pebble(rng: np.random.Generator, size: float) -> np.ndarray:
    """Return the outline of a bent blob, (24, 2) points (x, y) around (0, 0).

    The blob is about `size` pixels long and two to four times as long as wide.
    """
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    radii = 1 + sum(
        rng.uniform(0, 0.22) * np.cos(wave * angles + rng.uniform(0, 2 * math.pi)) for wave in (2, 3, 4)
    )
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles) / rng.uniform(2, 4)], axis=1)
    points[:, 1] += rng.uniform(-0.5, 0.5) * points[:, 0] ** 2
    return _turned(rng, points * size / 2)


def _stroke(rng: np.random.Generator, length: float) -> np.ndarray:
    """Return a curve with one bend, as (12, 2) points (x, y). Its ends are `length` pixels apart."""
    t = np.linspace(0, 1, 12)[:, None]
    bend = np.array([rng.uniform(0.2, 0.8), rng.uniform(-0.7, 0.7)])
    return _turned(rng, (2 * t * (1 - t) * bend + t**2 * (1.0, 0.0)) * length)


def _paint(rng: np.random.Generator, canvas: np.ndarray, shapes: list[_Shape], style: _Style) -> np.ndarray:
    """Paint the shapes on the background `canvas`, (H, W, 3) float32, which is changed and returned.

    `shapes` begins with the nearest shape; the farthest one is painted first. Each shape throws a shadow on
    the pixels behind it.
    """
    angle = rng.uniform(0, 2 * math.pi)
    light = np.array([math.cos(angle), math.sin(angle)])
    shadow = rng.uniform(0.0, 0.5)
    for shape in reversed(shapes):
        _throw_shadow(canvas, shape, light, shadow)
        in_picture, _ = shape.windows((canvas.shape[0], canvas.shape[1]))
        behind = canvas[in_picture].mean(axis=(0, 1))
        blend_into(canvas, shape.left, shape.top, shape.coverage, _coat(rng, shape, behind, light, style))
    return canvas


def blend_into(canvas: np.ndarray, left: int, top: int, alpha: np.ndarray, colours: np.ndarray) -> None:
    in_picture, in_window = _windows(left, top, alpha.shape, (canvas.shape[0], canvas.shape[1]))
    weight = alpha[in_window][..., None]
    canvas[in_picture] += weight * (colours[in_window] - canvas[in_picture])


def _throw_shadow(canvas: np.ndarray, shape: _Shape, light: np.ndarray, strength: float) -> None:
    radius = 1 + 0.04 * shape.size
    margin = math.ceil(2 * radius)
    padded = np.pad(shape.coverage * 255, margin).astype(np.uint8)
    blurred = Image.fromarray(padded).filter(ImageFilter.GaussianBlur(radius))
    alpha = np.asarray(blurred, dtype=np.float32) * (strength / 255)
    dx, dy = np.rint(light * (1 + 0.05 * shape.size)).astype(int).tolist()
    blend_into(canvas, shape.left - margin + dx, shape.top - margin + dy, alpha, np.zeros((*alpha.shape, 3)))


def _coat(
    rng: np.random.Generator, shape: _Shape, behind: np.ndarray, light: np.ndarray, style: _Style
) -> np.ndarray:
    """Return the colours of a shape's surface, (h, w, 3) float.

    The surface has a colour that contrasts with `behind`, the mean colour of the pixels in the shape's
    window, and is shaded according to the direction of `light`, the unit vector (x, y) away from the light.
    Some surfaces of larger shapes also have stripes or a rim.
    """
    candidates = _colours(rng, 8, (0.3, 1.0), (0.2, 1.0))
    contrasts = np.linalg.norm(candidates - behind, axis=1)
    enough = contrasts >= style.contrast
    colour = candidates[np.argmax(enough) if enough.any() else np.argmax(contrasts)]

    height, width = shape.coverage.shape
    ys = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / shape.size
    xs = (np.arange(width, dtype=np.float32) - width / 2) / shape.size
    shade = 1 - rng.uniform(0.1, 0.7) * (xs * light[0] + ys * light[1])
    coat = colour * shade[..., None]
    if shape.size >= 20 and rng.random() < 0.25:
        angle = rng.uniform(0, math.pi)
        waves = np.sin((xs * math.cos(angle) + ys * math.sin(angle)) * rng.uniform(12, 30)) > 0
        coat += 0.45 * waves[..., None] * (_colours(rng, 1, (0.2, 1.0), (0.2, 1.0)) - coat)
    if shape.size >= 16 and rng.random() < 0.5:
        # a box blur and a threshold: an erosion whose cost does not grow with its width
        solid = Image.fromarray((shape.coverage * 255).astype(np.uint8))
        inner = np.asarray(solid.filter(ImageFilter.BoxBlur(1 + 0.02 * shape.size)), dtype=np.float32) / 255
        rim = 1 - ((inner - 0.7) / 0.3).clip(0, 1)
        coat *= 1 + (rim * rng.choice((-0.45, 0.35)))[..., None]
    result: np.ndarray = coat.clip(0, 255)
    return result


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> Image.Image:
    """Return the canvas as a picture with uneven light, sensor noise and sometimes a slight blur."""
    size = (canvas.shape[0], canvas.shape[1])
    light = 1 + rng.uniform(0, 0.2) * cloud(rng, size, 2)
    noise = rng.uniform(1, 6) * rng.standard_normal(size, dtype=np.float32)
    exposed = canvas * light[..., None] + noise[..., None]
    picture = Image.fromarray(exposed.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8)))
    return picture
