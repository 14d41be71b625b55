"""One core's time for an image whose regions are patches of its JPEG, and the time that Pillow needs to decode and scale it.

    unimo prepare import --kind images --images photos.tar --extractor patches --output /tmp/patches
    python -m benchmarks.loader_patches --data /tmp/patches

For the whole path to packed batches: `python -m benchmarks.loader_steps --data /tmp/patches`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measuring
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import Kind, PatchGrid
from unimo_ds.data.vision import crops, extractors, patches
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import keep_freed_buffers
from unimo_ds.utils.running import run_command


def floor(jpeg: bytes, grid: PatchGrid) -> None:
    """Decode and scale with as few steps in Pillow as possible."""
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
    image.draft("RGB", (grid.working_side, grid.working_side))
    image.resize((grid.columns * grid.side, grid.rows * grid.side), Image.Resampling.BILINEAR)


def _main(arguments: argparse.Namespace) -> None:
    keep_freed_buffers()  # as in loader processes
    corpus = Corpus.open(arguments.data)
    extractor = extractors.load(arguments.data)
    if not isinstance(extractor, PatchExtractor):
        raise UserError(f"{arguments.data} holds other regions than patches; import it with --extractor patches")
    grid = extractor.grid
    chosen = np.flatnonzero(corpus.kinds != Kind.TEXT)[: arguments.images].tolist()
    jpegs = [corpus.read_jpeg(number) or b"" for number in chosen]
    crop = crops.draw(0, smallest=0.3)
    contenders: dict[str, Callable[[int], Any]] = {
        "Pillow: decode, scale": lambda _: [floor(jpeg, grid) for jpeg in jpegs],
        "decoded and cut": lambda _: [patches.of_jpeg(jpeg, grid) for jpeg in jpegs],
        "a crop, decoded and cut": lambda _: [patches.of_jpeg(jpeg, grid, crop) for jpeg in jpegs],
        "read from the shard, checked, decoded and cut": lambda _: [corpus.read(number) for number in chosen],
    }
    timings = measuring.interleaved(contenders, rounds=arguments.rounds, say=True)
    rows = [
        {
            "case": name,
            "images": len(chosen),
            "kilobytes_an_image": sum(map(len, jpegs)) / len(jpegs) / 1e3,
            "processor_microseconds_an_image": timing.row()["processor_seconds_median"] / len(chosen) * 1e6,
        }
        for name, timing in timings.items()
    ]
    print("\n" + measuring.table(rows, list(rows[0])))
    print("wrote", measuring.write("loader_patches", rows, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data folder of patches")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
