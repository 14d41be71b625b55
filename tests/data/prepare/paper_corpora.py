"""The raw corpora that slurm/corpus.toml and slurm/held_out.toml name, a dozen drawn photographs each, where they name them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.data.prepare import foreign, raw
from unimo_ds.data.vision.images import encode_jpeg

ROOT = Path(__file__).parents[3]
SPLITS = ("train", "train", "restval", "val", "test")
"""Of COCO's images, in turn."""
NUM_COCO = 40


def write_paper_corpora(folder: Path) -> tuple[Path, Path]:
    """`folder/raw` and, beside it, both files in `folder/slurm`, changed where they ask for weights that nobody has here: the
    built-in grid is the detector, a tokenizer is trained, and nothing is translated. Returns the two files."""
    write_raw(folder / "raw")
    files = []
    for name in ("corpus.toml", "held_out.toml"):
        text = (ROOT / "slurm" / name).read_text()
        text = re.sub(r'^extractor = "bottom-up".*\n^weights = .*\n', "", text, flags=re.MULTILINE)
        text = text.replace('tokenizer = "../pretrained/roberta-base"', "vocabulary_size = 400")
        text = re.sub(r"^(translator|to_pivot|from_pivot) = .*\n", "", text, flags=re.MULTILINE)
        assert "pretrained" not in text
        (folder / "slurm").mkdir(exist_ok=True)
        files.append(folder / "slurm" / name)
        files[-1].write_text(text)
    return files[0], files[1]


def write_raw(folder: Path) -> None:
    coco, genome = folder / "coco", folder / "visual_genome"
    listed = []
    for number in range(NUM_COCO):
        split = SPLITS[number % len(SPLITS)]
        year = "train2014" if split == "train" else "val2014"
        name = f"COCO_{year}_{number:012d}.jpg"
        _write(coco / year / name, number)
        sentences = [{"raw": caption} for caption in raw.captions(number)]
        listed.append(
            {
                "filepath": year,
                "filename": name,
                "cocoid": number,
                "split": split,
                "imgid": number,
                "sentences": sentences,
            }
        )
    foreign.write_json(coco / "dataset_coco.json", {"dataset": "coco", "images": listed})
    regions, about = [], []
    for number in range(1000, 1012):
        # Image 1004 is COCO's image 3, which is in its val split.
        about.append({"image_id": number, "coco_id": 3 if number == 1004 else None})
        phrases = [
            {"region_id": 10 * number + at, "phrase": text} for at, text in enumerate(raw.captions(number - 980))
        ]
        regions.append({"id": number, "regions": phrases})
        _write(genome / ("VG_100K" if number % 2 else "VG_100K_2") / f"{number}.jpg", number)
    foreign.write_json(genome / "region_descriptions.json", regions)
    foreign.write_json(genome / "image_data.json", about)
    for start, name in ((200, "cc3m"), (300, "sbu")):
        (folder / name).mkdir()
        samples = {
            f"{number:09d}": {
                "jpg": encode_jpeg(raw.picture(start + number)),
                "txt": raw.captions(start + number)[0].encode(),
                "json": json.dumps({"key": f"{number:09d}"}).encode(),
            }
            for number in range(12)
        }
        foreign.write_samples(folder / name / "00000.tar", samples)
    for number in range(12):
        _write(folder / "openimages" / f"{number:016x}.jpg", number + 400)
        _write(coco / "unlabeled2017" / f"{number + 900:012d}.jpg", number + 500)
    texts = [" ".join(raw.captions(number)) for number in range(30)]
    (folder / "bookcorpus.txt").write_text("\n\n".join(texts[:10]))
    (folder / "wikipedia.txt").write_text("\n\n".join(texts[10:20]))
    (folder / "openwebtext.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[20:]))


def _write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(raw.picture(number)))
