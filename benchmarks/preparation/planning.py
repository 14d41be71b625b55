"""Memory per image for planning an import: annotations with random words, and a tar of empty files.

python -m benchmarks.preparation.planning --images 100000
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

from unimo_ds.data.prepare import formats
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings

WORDS = (
    "a",
    "the",
    "dog",
    "man",
    "two",
    "red",
    "with",
    "on",
    "runs",
    "sits",
    "park",
    "street",
    "small",
    "playing",
    "standing",
)


def caption(random: random.Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(6, 16)))


def coco(folder: Path, number: int) -> tuple[list[str], str]:
    """Five captions per image, with the fields of captions_train2017.json. Returns the images' names and the options."""
    drawn = random.Random(1)
    names = [f"{7 * i:012d}.jpg" for i in range(number)]
    images = [
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/8186/{8119368305 + i}_4e622c8349_z.jpg",
            "id": 7 * i,
        }
        for i, name in enumerate(names)
    ]
    captions = [{"image_id": 7 * (i % number), "id": i, "caption": caption(drawn)} for i in range(5 * number)]
    content = json.dumps({"info": {}, "images": images, "licenses": [], "annotations": captions})
    (folder / "captions").write_text(content)
    return names, ""


def conceptual_captions(folder: Path, number: int) -> tuple[list[str], str]:
    drawn = random.Random(2)
    rows = (f"{caption(drawn)}\thttp://host{i % 977}.example.org/photos/2014/{i * 7919:x}.jpg" for i in range(number))
    (folder / "captions").write_text("\n".join(rows) + "\n")
    return [f"{i // 10000:05d}/{i:09d}" for i in range(number)], "{line:09d}"


def measure(format: str, number: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names, pattern = {"coco": coco, "conceptual-captions": conceptual_captions}[format](folder, number)
        with tarfile.open(folder / "images.tar", "w") as archive:
            for one in names:
                archive.addfile(tarfile.TarInfo(one), io.BytesIO())
        del names
        settings = ImportSettings(
            kind="pairs",
            output=folder / "data",
            format=format,
            images=(folder / "images.tar",),
            captions=(folder / "captions",),
            image_name=pattern or None,
        )
        report = Report()
        reader = formats.reader(settings)
        tracemalloc.start()
        items = sum(len(part["items"]) for part in reader.parts(report))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "format": format,
        "images": items,
        "peak_bytes_per_image": round(peak / number),
        "skipped": len(report.skipped),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    number = parser.parse_args().images
    for format in ("coco", "conceptual-captions"):
        print(json.dumps(measure(format, number)), flush=True)


if __name__ == "__main__":
    main()
