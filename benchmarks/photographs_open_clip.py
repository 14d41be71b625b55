"""open_clip on the photographs of docs/experiments.md: from scratch, by its own trainer, on one thread; then retrieval among all
held-out photographs and captions, measured as `unimo evaluate retrieval` does.

    python -m venv peer && peer/bin/pip install open_clip_torch==3.3.0 braceexpand pandas tensorboard webdataset
    OMP_NUM_THREADS=1 PYTHONPATH=. peer/bin/python benchmarks/photographs_open_clip.py --epochs 3 --option lr=1e-3 \\
        --train-images train_images.tar --train-captions pairs.tsv --output runs/open_clip \\
        --held-out-images dev_images.tar --held-out-captions dev_captions.tsv

Prints one row of JSON. `cpu_seconds`: of training and its start, all processes together.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimo_ds.evaluation import retrieval

TOWERS = {
    # As wide and deep as the recipe `small`, one tower for each modality; photographs have 160 x 160 pixels.
    "vit": {"image_size": 160, "layers": 2, "width": 256, "head_width": 64, "patch_size": 16},
    "resnet": {"image_size": 160, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None},
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("train", "held-out"):
        parser.add_argument(f"--{part}-images", required=True, type=Path, metavar="TAR")
        parser.add_argument(
            f"--{part}-captions", required=True, type=Path, metavar="TSV", help="lines of file<TAB>caption"
        )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=TOWERS, default="vit")
    parser.add_argument(
        "--epochs", type=int, default=6, help="over all captions; each photograph comes once per caption"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="further options of open_clip's trainer"
    )
    print(json.dumps(measure(parser.parse_args())))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import open_clip
    from open_clip_train.main import main as train

    torch.set_num_threads(1)
    captions = read_captions(options.train_captions)
    table = options.output / "train.tsv"
    images = unpack(options.train_images, options.output / "train_images")
    with open(table, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title"])
        writer.writerows([images / name, caption] for name, caption in captions)

    name = f"{options.model}_small"
    configuration = options.output / f"{name}.json"
    configuration.write_text(json.dumps({"embed_dim": 256, "vision_cfg": TOWERS[options.model], "text_cfg": TEXT}))
    open_clip.add_model_config(configuration)
    run = "-".join([name, str(options.epochs), str(options.batch), *options.option]).replace("=", "_")
    start = time.monotonic()
    settings = {
        "dataset-type": "csv",
        "train-data": str(table),
        "csv-separator": "\t",
        "workers": "1",
        "model": name,
        "precision": "fp32",
        "batch-size": str(options.batch),
        "epochs": str(options.epochs),
        "warmup": "100",
        "logs": str(options.output),
        "name": run,
        **dict(one.split("=", 1) for one in options.option),
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    train([*words, "--save-most-recent"])
    seconds = time.monotonic() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    checkpoint = options.output / run / "checkpoints" / "epoch_latest.pt"
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(checkpoint))
    held_out = read_captions(options.held_out_captions)
    folder = unpack(options.held_out_images, options.output / "held_out_images")
    names = list(dict.fromkeys(name for name, _ in held_out))
    tokenizer = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        model.eval()
        pixels = (torch.stack([transform(Image.open(folder / one)) for one in part]) for part in parts_of(names))
        images_ID = torch.cat([model.encode_image(part, normalize=True) for part in pixels])
        words_of = (tokenizer([caption for _, caption in part]) for part in parts_of(held_out))
        texts_CD = torch.cat([model.encode_text(part, normalize=True) for part in words_of])
    place = {name: number for number, name in enumerate(names)}
    image_of_C = np.array([place[name] for name, _ in held_out])
    found = retrieval.from_scores((texts_CD @ images_ID.T).numpy(), image_of_C)
    return {
        "run": run,
        "visits": options.epochs * len(captions),
        "seconds": round(seconds),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in used)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **found.metrics("retrieval"),
    }


def parts_of(items: Sequence, size: int = 250) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def read_captions(path: Path) -> list[tuple[str, str]]:
    """(file, caption) of every line that has a caption."""
    lines = (line.rstrip("\n").split("\t", 1) for line in path.read_text().splitlines())
    return [(name, caption) for name, caption in lines if caption.strip()]


def unpack(tar: Path, folder: Path) -> Path:
    if not folder.exists():
        with tarfile.open(tar) as file:
            file.extractall(folder, filter="data")  # which refuses whatever would leave the folder
    return folder


if __name__ == "__main__":
    sys.exit(main())
