"""Scenes as pictures: textured ground, outlined shapes, slight variations in shade and rotation that no caption mentions."""

from __future__ import annotations

import io
import math
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unimo_ds.data.prepare.scenes.model import RADII, Scene, Thing

PICTURE_SIZE = 128
"""Width and height of a picture in pixels."""
JPEG_QUALITY = 90
_OVERSAMPLING = 2
"""Pictures are drawn larger and reduced, since Pillow draws polygons without antialiasing."""
_LARGEST_ROTATION = 8.0
"""Degrees."""
_LARGEST_SHADE = 14
"""Largest change of a colour channel, out of 255."""

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOUR_VALUES: dict[str, Colour] = {
    "red": (214, 32, 38),
    "orange": (246, 138, 20),
    "yellow": (246, 224, 40),
    "green": (24, 150, 62),
    "blue": (36, 84, 214),
    "purple": (140, 44, 172),
    "white": (240, 240, 240),
    "black": (22, 22, 24),
}
GROUND_VALUES: dict[str, Colour] = {
    "sand": (222, 202, 160),
    "snow": (222, 232, 242),
    "grass": (150, 196, 116),
    "slate": (92, 100, 112),
}
_LINE_WIDTHS = {"small": 2, "large": 3}
"""Of outlines, in pixels of the oversampled drawing."""
_OUTLINE: Colour = (64, 58, 62)
_RING_THICKNESS = 0.5
"""As a fraction of the ring's radius."""


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of PICTURE_SIZE x PICTURE_SIZE; a pure function of the scene."""
    size = PICTURE_SIZE * _OVERSAMPLING
    randomness = random.Random(scene.drawing_seed)
    picture = _texture(scene.ground, randomness.randrange(_TEXTURES_PER_GROUND)).copy()
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        colour = _shaded(COLOUR_VALUES[thing.colour], randomness)
        rotation = math.radians(randomness.uniform(-_LARGEST_ROTATION, _LARGEST_ROTATION))
        points = [(x * size, y * size) for x, y in outline(thing, rotation=rotation)]
        line = _LINE_WIDTHS[thing.size]
        if thing.shape == "ring":
            _draw_ring(pen, thing, colour, size, line)
        else:
            pen.polygon(points, fill=colour)
            pen.line([*points, points[0], points[1]], fill=_OUTLINE, width=line, joint="curve")
    return picture.reduce(_OVERSAMPLING)


def draw_jpeg(scene: Scene) -> bytes:
    """`draw` as JPEG bytes."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)  # halved chroma greys small things
    return buffer.getvalue()


def boxes_of(scene: Scene) -> NDArray[np.float32]:
    """One box around each thing, ignoring rotation: [things, 4] x1, y1, x2, y2 as fractions of the picture."""
    boxes = []
    for thing in scene.things:
        points = np.asarray(outline(thing, rotation=0.0))
        boxes.append([*points.min(axis=0), *points.max(axis=0)])
    return np.clip(np.asarray(boxes, np.float32), 0.0, 1.0)


def outline(thing: Thing, *, rotation: float) -> Points:
    """Corners of the thing's outline as fractions of the picture.

    rotation: in radians.
    """
    radius = RADII[thing.size]
    cosine, sine = math.cos(rotation) * radius, math.sin(rotation) * radius
    return [(thing.x + cosine * x - sine * y, thing.y + sine * x + cosine * y) for x, y in _unit_outline(thing.shape)]


@cache
def _unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """The shape's outline within [-1, 1] x [-1, 1], y downwards."""
    turn = 2 * math.pi
    if shape in ("circle", "ring"):
        return tuple((math.cos(turn * step / 48), math.sin(turn * step / 48)) for step in range(48))
    if shape == "square":
        return ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
    if shape == "triangle":
        return ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85))
    if shape == "star":
        radii = [1.0 if step % 2 == 0 else 0.42 for step in range(10)]
        return tuple(
            (radius * math.sin(turn * step / 10), -radius * math.cos(turn * step / 10))
            for step, radius in enumerate(radii)
        )
    if shape == "heart":
        angles = [turn * step / 48 for step in range(48)]
        return tuple(
            (
                math.sin(angle) ** 3,
                -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 16
                - 0.12,
            )
            for angle in angles
        )
    if shape == "cross":
        arm, width = 0.98, 0.34
        corner = ((-width, -arm), (width, -arm), (width, -width), (arm, -width), (arm, width), (width, width))
        return (*corner, *((-x, -y) for x, y in corner))
    if shape == "crescent":
        # The outer arc of a circle, and the arc of a second circle, shifted right, that cuts into it.
        start, stop = math.radians(50), math.radians(310)
        outer = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(start, stop, 32).tolist()]
        tip_x, tip_y = outer[0]
        shift = 0.62
        bite = math.hypot(tip_x - shift, tip_y)
        begin = math.atan2(-tip_y, tip_x - shift) % turn
        end = math.atan2(tip_y, tip_x - shift) % turn
        inner = [
            (shift + bite * math.cos(angle), bite * math.sin(angle)) for angle in np.linspace(begin, end, 24).tolist()
        ]
        return tuple((x + 0.15, y) for x, y in outer + inner[1:-1])
    raise ValueError(f"unknown shape {shape!r}")


def _draw_ring(pen: ImageDraw.ImageDraw, thing: Thing, colour: Colour, size: int, line: int) -> None:
    """The ground shows through a ring's hole, so it is a thick circle, not a polygon."""
    x, y, radius = thing.x * size, thing.y * size, RADII[thing.size] * size
    thickness = round(_RING_THICKNESS * radius)

    def circle(circle_radius: float, fill: Colour, width: int) -> None:
        box = (x - circle_radius, y - circle_radius, x + circle_radius, y + circle_radius)
        pen.ellipse(box, outline=fill, width=width)

    circle(radius, colour, thickness)
    circle(radius, _OUTLINE, line)
    circle(radius - thickness + line, _OUTLINE, line)


def _shaded(colour: Colour, randomness: random.Random) -> Colour:
    red, green, blue = (
        min(255, max(0, channel + randomness.randint(-_LARGEST_SHADE, _LARGEST_SHADE))) for channel in colour
    )
    return red, green, blue


_TEXTURES_PER_GROUND = 16


@cache
def _texture(name: str, number: int) -> Image.Image:
    """One of the ground's textures at drawing size: grains, flakes, blades or cracks on its colour."""
    size = PICTURE_SIZE * _OVERSAMPLING
    randomness = random.Random(f"{name} {number}")
    base = _shaded(GROUND_VALUES[name], randomness)
    picture = Image.new("RGB", (size, size), base)
    pen = ImageDraw.Draw(picture)
    for _ in range(260):
        x, y = randomness.randrange(size), randomness.randrange(size)
        red, green, blue = (min(255, max(0, channel + randomness.choice((-22, -14, 12)))) for channel in base)
        mark = (red, green, blue)
        if name == "grass":
            pen.line((x, y, x + randomness.randint(-3, 3), y - randomness.randint(6, 12)), fill=mark, width=2)
        elif name == "slate":
            pen.line((x, y, x + randomness.randint(8, 20), y + randomness.randint(-2, 2)), fill=mark, width=2)
        else:
            radius = randomness.choice((1, 2)) if name == "sand" else randomness.choice((2, 3))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark)
    return picture
