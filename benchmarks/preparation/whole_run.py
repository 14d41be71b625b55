"""From photographs, captions and texts to finished shards, every stage measured: the run of docs/preparation.md.

    python benchmarks/preparation/whole_run.py --images train_images.tar --captions train_captions.tsv \\
        --held-out-images dev_images.tar --held-out-captions dev_captions.tsv \\
        --texts wikitext2_valid.txt --tables sst2_train.tsv --output photos --workers 2

Every stage is one `unimo prepare` command in a process of its own; the commands are printed, so that they can be run by
hand. The last `--image-only` photographs lose their captions and become the image-only source. Writes `stages.jsonl` into the
output folder, one line per stage: wall-clock seconds, processor seconds of all its processes, peak memory (summed over its
processes: each one's private memory plus its part of shared memory), and bytes of the folder it made.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_SAMPLING_SECONDS = 1.0


@dataclass(frozen=True)
class Stage:
    name: str
    folder: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Cost of one stage."""

    stage: str
    folder: str
    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: int
    folder_bytes: int
    load_before: float
    """Mean number of runnable processes on the whole machine in the minute before: shows other load."""
    command: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--held-out-images", type=Path, required=True)
    parser.add_argument("--held-out-captions", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="articles under headings")
    parser.add_argument("--tables", type=Path, nargs="*", default=[], help="TSVs with a column `sentence`")
    parser.add_argument("--output", type=Path, required=True, help="gets folders train and dev")
    parser.add_argument("--image-only", type=int, default=600, help="photographs whose captions are left out")
    parser.add_argument("--vocabulary-size", type=int, default=8192)
    parser.add_argument("--negatives", type=int, default=7, help="per caption and level: five captions make 105 a pair")
    parser.add_argument("--positives", type=int, default=4)
    parser.add_argument("--number", type=int, default=100, help="related texts and images per pair")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="run these stages alone")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    pairs = split_captions(options.captions, options.output / "pairs.tsv", options.image_only)
    with open(options.output / "stages.jsonl", "a", encoding="utf-8") as rows:
        for stage in stages(options, pairs):
            if options.only and stage.name not in options.only:
                continue
            row = measure(stage, options.output)
            rows.write(json.dumps(asdict(row)) + "\n")
            rows.flush()
            print(
                f"{row.stage}, {row.folder}: {row.wall_seconds:.0f} s, {row.cpu_seconds:.0f} s of processor time, "
                f"{row.peak_megabytes} MB, {row.folder_bytes} bytes",
                flush=True,
            )
    return 0


def split_captions(captions: Path, output: Path, image_only: int) -> Path:
    """The captions of all photographs except the last ones (in file order)."""
    lines = captions.read_text(encoding="utf-8").splitlines(keepends=True)
    names = list(dict.fromkeys(line.partition("\t")[0] for line in lines))
    kept = set(names[: len(names) - image_only])
    output.write_text("".join(line for line in lines if line.partition("\t")[0] in kept), encoding="utf-8")
    return output


def stages(options: argparse.Namespace, pairs: Path) -> list[Stage]:
    train, dev, tokenizer = (options.output / name for name in ("train", "dev", "tokenizer"))
    workers = ("--workers", options.workers)
    rewrites = ("--negatives", options.negatives, "--positives", options.positives)

    def stage(name: str, folder: Path, *arguments: object) -> Stage:
        return Stage(name, folder.name, tuple(map(str, arguments)))

    def importing(name: str, folder: Path, *arguments: object) -> Stage:
        return stage(name, folder, "import", *arguments, "--output", folder, *workers)

    photographs, more = ("--images", options.images), ("--images", options.held_out_images)
    source = ("--source", "photographs", "--keep-images")
    return [
        stage(
            *("tokenizer", tokenizer, "tokenizer", pairs, *options.texts, *options.tables),
            *("--output", tokenizer, "--vocabulary-size", options.vocabulary_size),
        ),
        importing(
            *("import pairs", train, "--kind", "pairs", *photographs, "--captions", pairs, *source),
            *("--tokenizer", tokenizer),
        ),
        importing(
            *("import images", train, "--kind", "images", *photographs, "--skip", pairs),
            *("--source", "photographs_alone", "--keep-images"),
        ),
        *(
            importing(f"import texts {path.stem}", train, "--format", "headings", "--input", path)
            for path in options.texts
        ),
        *(
            importing(f"import texts {path.stem}", train, "--kind", "texts", "--input", path, "--column", "sentence")
            for path in options.tables
        ),
        importing(
            *("import pairs", dev, "--kind", "pairs", *more, "--captions", options.held_out_captions, *source),
            *("--like", train),
        ),
        stage("retrieve", train, "retrieve", train, "--number", options.number, *workers),
        stage("rewrite", dev, "rewrite", dev, "--learn-from", train, *rewrites),
        stage("rewrite", train, "rewrite", train, *rewrites),
        stage("verify", train, "verify", train),
        stage("verify", dev, "verify", dev),
    ]


def measure(stage: Stage, output: Path) -> Row:
    """Run one stage to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "unimo_ds", "prepare", *stage.arguments]
    print(shlex.join(["unimo", "prepare", *stage.arguments]), flush=True)
    load = os.getloadavg()[0]
    before = os.times()
    started = time.monotonic()
    running = subprocess.Popen(command)
    peak = 0
    while running.poll() is None:
        peak = max(peak, memory_of(running.pid))
        time.sleep(_SAMPLING_SECONDS)
    after = os.times()
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    folder = output / stage.folder
    return Row(
        stage=stage.name,
        folder=stage.folder,
        wall_seconds=round(time.monotonic() - started, 1),
        cpu_seconds=round(
            after.children_user + after.children_system - before.children_user - before.children_system, 1
        ),
        peak_megabytes=round(peak / 1e6),
        folder_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        load_before=round(load, 1),
        command=shlex.join(["unimo", "prepare", *stage.arguments]),
    )


def memory_of(process_id: int) -> int:
    """Bytes of a process and its descendants; shared pages are divided among the processes that share them."""
    total = 0
    try:
        tree = [psutil.Process(process_id)]
        tree += tree[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
