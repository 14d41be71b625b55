"""Raw corpora for tests: small drawn photographs, their captions, some lines of text."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unimo_ds.data.vision import grid
from unimo_ds.data.vision.images import encode_jpeg

COLOURS = ("red", "green", "blue", "black")
THINGS = ("dog", "cat", "horse", "bird")
PLACES = ("grass", "sand", "snow", "street")
SMALL = grid.GridSettings(feature_size=24, num_classes=10, image_side=48, num_patches=16)


def picture(number: int, *, width: int = 80, height: int = 60) -> Image.Image:
    """A coloured disc on a noisy ground; a function of the number."""
    noise = np.random.default_rng(number).integers(150, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    left = 5 + 7 * (number % 5)
    ImageDraw.Draw(image).ellipse((left, 10, left + 30, 45), fill=COLOURS[number % 4])
    return image


def captions(number: int) -> list[str]:
    """Two captions of picture `number`; of 64 pictures no two have the same ones."""
    colour, thing, place = COLOURS[number % 4], THINGS[number // 4 % 4], PLACES[number // 16 % 4]
    return [f"A {colour} {thing} runs over the {place} .", f"a {thing} that is {colour} stands on {place}"]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_photographs(folder: Path, count: int) -> tuple[Path, Path]:
    """A tar of pictures and the TSV of their captions."""
    tar = write_tar(folder / "photos.tar", {f"{i:03d}.jpg": encode_jpeg(picture(i)) for i in range(count)})
    lines = [f"{i:03d}.jpg\t{caption}" for i in range(count) for caption in captions(i)]
    tsv = folder / "captions.tsv"
    tsv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tar, tsv


def small_extractor(folder: Path) -> Path:
    """A quickly fitted extractor, saved."""
    return grid.fit([picture(i) for i in range(12)], seed=0, settings=SMALL).save(folder)
