"""Reading: samples per second of one core, time to the first sample, resume and memory, beside four peers on the same data.

    python -m venv peers && peers/bin/pip install -r benchmarks/requirements.txt      once; `make bench` does it
    peers/bin/python -m benchmarks.loader --folder /tmp/loader_benchmark

Samples: region features of 100 x 2048 float16 (410 KB), JPEGs of about 100 KB, and texts. All contenders run in one process
without workers, in a new order each round; before "cold" rounds the files are dropped from the page cache, and every round
reads one epoch and touches every page of it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.loader_contenders import CONTENDERS
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.schema import Caption, Kind, Regions, Sample
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.utils.host_memory import keep_freed_buffers
from unimo_ds.utils.running import run_command

COUNTS = {"regions": 384, "jpeg": 128, "text": 1024}
PER_SHARD = {"regions": 32, "jpeg": 32, "text": 256}


def make_folder(folder: Path, kind: str) -> None:
    """Shards of one kind of sample; a finished folder is kept."""
    if (folder / "manifest.json").is_file():
        return
    for left in folder.glob(f"{kind}-*"):  # of a run that was killed
        left.unlink()
    random = np.random.default_rng(0)
    samples = (StoredSample(*_sample(random, kind, number)) for number in range(COUNTS[kind]))
    write_shards(folder, kind, samples, max_samples=PER_SHARD[kind])
    words = [f"word{number} and other{number % 97} things" for number in range(400)]
    tokenizer = tokenizers.train(words, vocabulary_size=400, output=folder)
    finish_folder(folder, tokenizer=tokenizer, num_region_classes=1601 if kind == "regions" else 16)


def _sample(random: np.random.Generator, kind: str, number: int) -> tuple[Sample, bytes | None]:
    if kind == "text":
        text = " ".join(f"word{word}" for word in random.integers(0, 400, 200))
        return Sample("", Kind.TEXT, "texts", text=text), None
    count, size, classes = (100, 2048, 8) if kind == "regions" else (1, 4, 1)
    corner, extent = random.random((count, 2)) * 0.7, random.random((count, 2)) * 0.3
    regions = Regions(
        boxes=np.concatenate([corner, corner + extent], 1).astype(np.float32),
        features=random.random((count, size), np.float32).astype(np.float16),
        class_ids=random.integers(0, 16, (count, classes)).astype(np.int32),
        class_probabilities=np.full((count, classes), 0.1, np.float16),
    )
    if kind == "regions":
        return Sample("", Kind.IMAGE, "images", regions), None
    from PIL import Image

    noise = random.integers(0, 255, (64, 64, 3), np.uint8)
    picture, buffer = Image.fromarray(noise).resize((480, 360)), io.BytesIO()
    picture.save(buffer, "JPEG", quality=97)
    return Sample("", Kind.PAIR, "pairs", regions, captions=(Caption(f"number {number}"),)), buffer.getvalue()


def evict(folders: list[Path]) -> None:
    """Drop the files' pages from the page cache."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def touch(item: Any) -> int:
    """Read a byte of every page, so that a mapped file counts as read."""
    if isinstance(item, np.ndarray):
        return int(item.reshape(-1).view(np.uint8)[::4096].sum()) if item.size else 0
    if isinstance(item, bytes):
        return sum(item[::4096])
    if isinstance(item, dict):
        return sum(map(touch, item.values()))
    if isinstance(item, tuple | list):
        return sum(map(touch, item))
    return 0


def read_epoch(contender: Any, count: int, first_seconds: list[float] | None = None) -> None:
    """One epoch, or `count` samples of an endless stream."""
    start = time.perf_counter()
    stream = contender.epoch()
    for number in range(count):
        touch(next(stream))
        if number == 0 and first_seconds is not None:
            first_seconds.append(time.perf_counter() - start)


def in_child(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The function's result from a forked process, which has its own memory and caches."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write_end, json.dumps(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {}


def memory_of(contender: Any, count: int) -> dict[str, Any]:
    """Growth of the resident set while an epoch is read, MiB."""
    before = measuring.resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    read_epoch(contender, count)
    return {"memory_mebibytes": (measuring.resident_bytes("VmHWM") - before) / 2**20}


def resume_of(contender: Any, position: int) -> dict[str, Any]:
    """Seconds until the first sample after a resume."""
    stream = contender.resume(position)
    start = time.perf_counter()
    touch(next(stream))
    return {"resume_seconds": time.perf_counter() - start, "resumed_at": position}


def measure(kind: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one kind of sample, warm and cold."""
    folder = Path(arguments.folder).resolve() / kind
    make_folder(folder, kind)
    contenders = {one.name: one(folder, kind) for one in CONTENDERS if one.name not in arguments.leave_out.split(";")}
    for contender in contenders.values():
        contender.prepare()
    folders, count = [path for path in folder.parent.iterdir() if path.name.endswith(kind)], COUNTS[kind]
    megabytes = sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6
    rows = []
    for temperature in ("warm", "cold"):
        first: dict[str, list[float]] = {name: [] for name in contenders}

        def run(
            name: str, temperature: str = temperature, first: dict[str, list[float]] = first
        ) -> Callable[[int], None]:
            def epoch(number: int) -> None:
                if temperature == "cold":
                    evict(folders)
                read_epoch(contenders[name], count, first[name])

            return epoch

        timings = measuring.interleaved({name: run(name) for name in contenders}, rounds=arguments.rounds, say=True)
        for name, timing in timings.items():
            row = timing.row()
            rows.append(
                {
                    "case": f"{kind}, {temperature}",
                    "contender": name,
                    "samples": count,
                    "samples_per_second": count / row["seconds_median"],
                    "samples_per_processor_second": count / row["processor_seconds_median"],
                    "megabytes_per_second": megabytes / row["seconds_median"],
                    "first_sample_seconds": sorted(first[name])[len(first[name]) // 2],
                    **row,
                    **{
                        f"ours_{key}": value
                        for key, value in measuring.ratio_of_rounds(timing, timings["ours"]).items()
                    },
                }
            )
    for name, contender in contenders.items():
        found = in_child(lambda contender=contender: memory_of(contender, count))
        position = 100_000 * 1024 if name.startswith("ours") else count // 2
        found |= in_child(lambda contender=contender, position=position: resume_of(contender, position))
        rows.append({"case": f"{kind}, memory and resume", "contender": name, **found})
    return rows


def _main(arguments: argparse.Namespace) -> None:
    # As in this project's loader processes, but for all contenders, since they share this process.
    keep_freed_buffers()
    rows = []
    for kind in arguments.kinds.split(","):
        rows += measure(kind, arguments)
    columns = ("case", "contender", "samples_per_second", "samples_per_processor_second", "first_sample_seconds")
    more = ("ours_ratio_median", "ours_processor_ratio_median", "memory_mebibytes", "resume_seconds")
    print("\n" + measuring.table(rows, (*columns, *more)))
    print("wrote", measuring.write("loader", rows, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the samples are written, in every contender's form")
    parser.add_argument("--kinds", default=",".join(COUNTS))
    parser.add_argument("--leave-out", default="", help="contenders to leave out, with semicolons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
