"""Cost of opening a corpus of the paper's size: time and memory from nothing to the first planned step.

    python -m benchmarks.opening --share 0.2 --folder /tmp/opening

Writes a data folder with real indices of the paper's corpora (4 M pairs with 9.6 M captions, 28 rewrites per caption, 100
related texts and images per pair; 1.7 M images; 27 M texts), times --share, and with holes as shards. Then `--processes` ranks
open it at once, like those of a node, three times: the first time the indices are joined, later the joined ones are found.
If there are less than 256 MiB of indices, every process holds its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import measuring
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.schema import Kind, Level, TextRole
from unimo_ds.data.storage import index, manifest, members, shards
from unimo_ds.data.storage.folder import entry_of
from unimo_ds.utils.running import run_command

_PAIRS, _IMAGES, _TEXTS = 4_000_000, 1_700_000, 27_000_000
_A_SHARD = {Kind.IMAGE: 1000, Kind.PAIR: 1000, Kind.TEXT: 2000}
_SOURCES = {Kind.IMAGE: "openimages", Kind.PAIR: "cc", Kind.TEXT: "web"}
_RELATED = 100
# Per caption: itself, four other captions and three translations, seven negatives per level.
_ROLES = np.repeat([TextRole.TEXT, TextRole.POSITIVE, TextRole.NEGATIVE], [1, 7, 21])
_LEVELS = np.repeat([Level.NONE, Level.SENTENCE, Level.PHRASE, Level.WORD], [8, 7, 7, 7])


def write_folder(folder: Path, share: float) -> None:
    """A data folder whose shards are holes."""
    folder.mkdir(parents=True)
    tokenizer = tokenizers.train(["a dog and a cat"] * 9, vocabulary_size=300, output=folder)
    random = np.random.default_rng(0)
    entries = []
    for kind, whole in ((Kind.IMAGE, _IMAGES), (Kind.PAIR, _PAIRS), (Kind.TEXT, _TEXTS)):
        for number, start in enumerate(range(0, round(whole * share), _A_SHARD[kind])):
            count = min(_A_SHARD[kind], round(whole * share) - start)
            name = f"{_SOURCES[kind]}-{number:06d}.tar"
            one = _index(name, kind, count, random, num_images=round(_IMAGES * share), tokenizer=tokenizer)
            content = index.to_bytes(one)
            shards.index_path(folder / name).write_bytes(content)
            with (folder / name).open("wb") as file:
                file.truncate(one.shard_bytes)
            entries.append(entry_of(name, one, content))
    tokenizer_file = manifest.file_entry(folder / tokenizers.TOKENIZER_FILE)
    listed = manifest.Manifest(
        shards=tuple(entries),
        tokenizer=manifest.TokenizerEntry(tokenizer_file.file, tokenizer.fingerprint, tokenizer.vocabulary_size),
        extractor=manifest.ExtractorEntry("0" * 16),
        feature_size=2048,
        classes_per_region=4,
        num_region_classes=1601,
        files=(tokenizer_file,),
    )
    manifest.write_manifest(folder, listed)


def _index(
    name: str, kind: Kind, count: int, random: np.random.Generator, *, num_images: int, tokenizer: tokenizers.Tokenizer
) -> index.ShardIndex:
    samples = np.zeros(count, index.SAMPLE_RECORD)
    samples["kind"] = kind
    size = np.zeros((count, index.NUM_MEMBERS), np.int64)
    size[:, members.JSON] = 2000
    texts, related, shown = np.zeros(0, index.TEXT_RECORD), np.zeros(0, index.RELATED_RECORD), tuple[str, ...]()
    if kind is not Kind.TEXT:
        samples["num_regions"] = random.integers(10, 100, count)
        size[:, list(members.REGION_MEMBERS)] = 1000
        size[:, members.FEATURES] = 240_000
    if kind is Kind.TEXT:
        samples["num_texts"] = 1
        texts = np.zeros(count, index.TEXT_RECORD)
        texts["tokens"] = random.integers(30, 500, count)
    if kind is Kind.PAIR:
        captions = np.clip(random.geometric(1 / 2.4, count), 1, 48)
        samples["num_texts"], samples["num_related_images"] = len(_ROLES) * captions + _RELATED, _RELATED
        texts = np.concatenate([_texts_of(number) for number in captions.tolist()])
        texts["tokens"] = random.integers(6, 30, len(texts))
        shown = tuple(f"openimages-{number:06d}.tar" for number in range(min(20, num_images // 1000)))
        related = np.zeros(_RELATED * count, index.RELATED_RECORD)
        related["shard"], related["index"] = random.integers(0, (len(shown), 1000), (len(related), 2)).T
    samples["size"], samples["offset"][:, 1:] = size, np.cumsum(size, 1)[:, :-1]
    samples["start"] = np.cumsum(size.sum(1)) - size.sum(1)
    samples["crc32"] = random.integers(0, 2**32, size.shape)
    return index.ShardIndex(
        samples=samples,
        texts=texts,
        related_images=related,
        base_names="\n".join(f"{name[:-4]}-{number:06d}" for number in range(count)),
        source_names=(_SOURCES[kind],),
        related_shards=shown,
        shard_bytes=int(size.sum()) + 1024,
        shard_sha256=hashlib.sha256(name.encode()).hexdigest(),
        tokenizer_fingerprint=tokenizer.fingerprint,
        feature_size=0 if kind is Kind.TEXT else 2048,
        classes_per_region=0 if kind is Kind.TEXT else 4,
        largest_class=-1 if kind is Kind.TEXT else 1600,
    )


def _texts_of(num_captions: int) -> np.ndarray[Any, Any]:
    texts = np.zeros(len(_ROLES) * num_captions + _RELATED, index.TEXT_RECORD)
    own, related = texts[:-_RELATED], texts[-_RELATED:]
    own["role"], own["level"] = np.tile(_ROLES, num_captions), np.tile(_LEVELS, num_captions)
    own["caption"] = np.repeat(np.arange(num_captions), len(_ROLES))
    related["role"], related["caption"] = TextRole.RELATED, -1
    return texts


def open_once(folder: str, cache: str) -> dict[str, float]:
    """What a rank does before its first step, except for reading samples."""
    from unimo_ds import recipes
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.corpus_check import check_corpus
    from unimo_ds.data.step_plan import StepPlanner
    from unimo_ds.overrides import apply_overrides

    before = psutil.Process().memory_full_info().uss
    start = time.perf_counter()
    corpus = Corpus.open(folder, cache_dir=cache)
    opened = time.perf_counter()
    changes = ["data.source_weights=none", "model.vocabulary_size=0"]
    config = apply_overrides(recipes.with_data(recipes.load("base_32xv100"), folder), changes)
    config = recipes.fit_to_data(config, corpus)
    check_corpus(corpus, config)
    StepPlanner(corpus, config, world_size=32).plan(100_000)
    end = time.perf_counter()
    return {
        "seconds_to_open": opened - start,
        "seconds_to_first_plan": end - start,
        "own_bytes": psutil.Process().memory_full_info().uss - before,
        "peak_bytes": measuring.resident_bytes("VmHWM"),
    }


def _main(arguments: argparse.Namespace) -> None:
    data, cache = arguments.folder / "data", arguments.folder / "cache"
    if arguments.once:
        print(json.dumps(open_once(str(data), str(cache))))
        return
    if not (data / manifest.MANIFEST_FILE).is_file():
        write_folder(data, arguments.share)
    shutil.rmtree(cache, ignore_errors=True)
    listed = manifest.load_manifest(data)
    case = {
        "share": arguments.share,
        "shards": len(listed.shards),
        "samples": listed.num_samples,
        "index_bytes": sum(entry.index_bytes for entry in listed.shards),
        "processes": arguments.processes,
    }
    rows = []
    for start in ("first", "second", "third"):
        command = [sys.executable, "-m", "benchmarks.opening", "--folder", str(arguments.folder), "--once"]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(arguments.processes)]
        found = [json.loads(process.communicate()[0]) for process in started]
        rows.append({"start": start, **case, **{name: max(one[name] for one in found) for name in found[0]}})
    print(measuring.table(rows, list(rows[0])))
    print("wrote", measuring.write("opening", rows, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder; 28 GB times the share")
    parser.add_argument("--share", type=float, default=0.02, help="of the paper's corpora (default 0.02)")
    parser.add_argument("--processes", type=int, default=2, help="that open it at once (default 2)")
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
