"""Retrieval made visible: a caption, its image, and the images that the model retrieved for it, side by side.

Drawn with Pillow from the stored JPEGs; if a folder was prepared without them, an image's regions are drawn as boxes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision.images import BadImage, decode

Picture = NDArray[np.uint8]

_TILE, _GAP, _LINE, _COLUMNS = 144, 8, 18, 3  # three columns: TensorBoard shows its pictures some 350 pixels wide
_BACKGROUND, _INK, _RIGHT, _WRONG = (255, 255, 255), (20, 20, 20), (30, 150, 60), (200, 50, 40)


def compose(
    caption: str, tiles: Sequence[Image.Image], *, is_right: Sequence[bool], scores: Sequence[float]
) -> Picture:
    """[H, W, 3] uint8: the caption above rows of tiles. The first is the true image; the others are retrieved, best first.

    is_right, scores: of the retrieved tiles; a green frame marks the true image, a red one any other.
    """
    width = _GAP + (_TILE + _GAP) * _COLUMNS
    lines = textwrap.wrap(caption, width // 8)[:3] or [""]
    top = _GAP + _LINE * len(lines) + _GAP
    row_height = _TILE + _LINE + 2 * _GAP
    canvas = Image.new("RGB", (width, top + row_height * -(-len(tiles) // _COLUMNS)), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LINE - 2)
    for number, line in enumerate(lines):
        draw.text((_GAP, _GAP + _LINE * number), line, fill=_INK, font=font)
    labels = ["true image", *(f"{place}: {score:.3f}" for place, score in enumerate(scores, start=1))]
    colours = [_INK, *(_RIGHT if right else _WRONG for right in is_right)]
    for number, (tile, label, colour) in enumerate(zip(tiles, labels, colours, strict=True)):
        row, column = divmod(number, _COLUMNS)
        left, upper = _GAP + (_TILE + _GAP) * column, top + row_height * row
        canvas.paste(tile, (left, upper))
        draw.rectangle((left - 2, upper - 2, left + _TILE + 1, upper + _TILE + 1), outline=colour, width=2)
        draw.text((left, upper + _TILE + 3), label, fill=colour, font=font)
    return np.asarray(canvas)


def tile(corpus: Corpus, sample: int) -> Image.Image:
    """A square thumbnail of a sample's image: the stored JPEG, or its regions as boxes if no JPEG can be decoded."""
    image = _jpeg(corpus, sample)
    if image is None:
        regions = corpus.read(sample).regions
        image = _draw_boxes(regions) if regions is not None else Image.new("RGB", (_TILE, _TILE), _BACKGROUND)
    scale = _TILE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    square = Image.new("RGB", (_TILE, _TILE), (235, 235, 235))
    square.paste(image, ((_TILE - image.width) // 2, (_TILE - image.height) // 2))
    return square


def _jpeg(corpus: Corpus, sample: int) -> Image.Image | None:
    """The stored image; None if there is none or it is damaged, because a picture is no reason to stop."""
    try:
        content = corpus.read_jpeg(sample)
        return None if content is None else decode(content, shrink_to=_TILE)
    except (BadImage, CorruptSample):
        return None


def _draw_boxes(regions: Regions) -> Image.Image:
    """Each region's outline in the colour of its most likely class, and a note why there is no more to see."""
    image = Image.new("RGB", (_TILE, _TILE), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    for box, classes in zip(regions.boxes, regions.class_ids, strict=True):
        hue = int(classes[0]) * 47 % 360
        left, top, right, bottom = (box * (_TILE - 1)).tolist()
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=f"hsl({hue}, 70%, 45%)", width=2)
    draw.text((_TILE / 2, _TILE / 2), "no image stored", fill=_INK, font=ImageFont.load_default(_LINE - 4), anchor="mm")
    return image


def to_png(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
