"""The nearest sentences of many captions in a large collection: time, memory, exactness, recall of the index, and peers.

    python benchmarks/preparation/retrieval.py --texts wikitext2_valid.txt sst2_train.tsv --captions train_captions.tsv \\
        --work /tmp/retrieval --sentences 1000000 --queries 30000 --json rows.json \\
        --peers PYTHON    # an interpreter that has sparse-dot-topn, bm25s, numba, scikit-learn, scipy, psutil

Sentences are made of pieces of the texts (`sentences.py`). Blocks, vectors, search and merging are those of `unimo prepare
retrieve`, over `--workers` processes. A sample of queries is answered by brute force in float64 as well, and the peers answer
another sample, one thread each. Rows say what each step cost; other work on the machine shows in `load`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, save_npz, vstack
from sentences import make, pieces_of
from whole_run import memory_of

from unimo_ds.data.prepare.journal import read_json_object, write_json
from unimo_ds.data.prepare.retrieval import approximate
from unimo_ds.data.prepare.retrieval import collections_on_disk as collections
from unimo_ds.data.prepare.retrieval.similarity import Nearest, tf_idf
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.utils.machine import processor_name

BLOCK = 50_000
QUERIES_PER_TASK = 1000
NUMBER = 100
PEER_QUERIES = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--captions", type=Path, required=True, help="file<TAB>caption")
    parser.add_argument("--work", type=Path, required=True, help="folder for blocks and results")
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--checked", type=int, default=200, help="queries answered by brute force too")
    parser.add_argument("--approximate", type=int, nargs="*", default=[16, 64], help="lists of the index looked into")
    parser.add_argument("--peers", help="interpreter that has the peers")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [machine(options)]

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        options.json.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")

    with Workers(options.workers) as workers:
        sizes = collection(options, workers, note)
        captions = [line.partition("\t")[2] for line in options.captions.read_text(encoding="utf-8").splitlines()]
        captions = captions[: options.queries]
        with measured("exact search", note) as row:
            starts = range(0, len(captions), QUERIES_PER_TASK)
            tasks = [(options.work, sizes, start, captions[start : start + QUERIES_PER_TASK]) for start in starts]
            for _ in workers.run(search, tasks, label="searching"):
                pass
            row |= {"queries": len(captions), "sentences": sum(sizes), "workers": options.workers}
        note({"step": "exactness", **check(options, sizes, captions)})
    if options.peers:
        prepare_peers(options, sizes, captions, note)
        peers(options, ("sparse_dot_topn", "scikit-learn"), note)
    for probed in options.approximate:
        recall(options, sizes, captions, probed, note)
    if options.peers:
        peers(options, ("bm25s",), note)
    return 0


def machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "step": "machine",
        "cores": os.cpu_count(),
        "processor": processor_name(),
        "memory_gigabytes": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "workers": options.workers,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def measured(step: str, note: Any) -> Iterator[dict[str, Any]]:
    """A row with seconds by the clock, processor seconds of this process and its children, and the highest memory of all."""
    row: dict[str, Any] = {"step": step, "load": round(os.getloadavg()[0], 1)}
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.5):
            peak = max(peak, memory_of(os.getpid()))

    watching = threading.Thread(target=watch)
    watching.start()
    before, started = processor_seconds(), time.monotonic()
    try:
        yield row
    finally:
        stop.set()
        watching.join()
    row |= {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(processor_seconds() - before, 1),
        "peak_megabytes": round(max(peak, memory_of(os.getpid())) / 1e6),
    }
    if "queries" in row:
        row["queries_per_cpu_second"] = round(row["queries"] / max(row["cpu_seconds"], 1e-9), 1)
    note(row)


def processor_seconds() -> float:
    """Of this process and its descendants, the living and the dead."""
    import psutil

    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


def collection(options: argparse.Namespace, workers: Workers, note: Any) -> list[int]:
    """Blocks of sentences and their vectors on disk; the sizes of the blocks. Done once for a folder."""
    done = read_json_object(options.work / "sizes.json")
    if done is not None:
        return list(done)
    with measured("making sentences", note):
        pieces = pieces_of(options.texts)
        made = make(pieces, options.sentences)
        numbers = []
        for number in itertools.count():
            block = list(itertools.islice(made, BLOCK))
            if not block:
                break
            write_json(options.work / f"sentences-{number:06d}.json", block)
            numbers.append(number)
    with measured("vectors", note):
        frequencies: Counter[str] = Counter()
        for _, counted in workers.run(count, [(options.work, number) for number in numbers], label="counting"):
            frequencies.update(counted)
        collections.write_vocabulary(options.work, frequencies, options.sentences)
        tasks = [(options.work, number, "benchmark") for number in numbers]
        found = dict(workers.run(collections.vectorise, tasks, label="vectors"))
        sizes = [found[number] for number in numbers]
    write_json(options.work / "sizes.json", sizes)
    return sizes


def count(work: Path, number: int) -> Counter[str]:
    from unimo_ds.data.prepare.retrieval.similarity import content_words

    return Counter(word for text in collections.sentences(work, number) for word in set(content_words(text)))


def query_rows(work: Path, captions: list[str]) -> csr_matrix:
    return tf_idf(captions, collections.read_vocabulary(work, "benchmark"))


def search(work: Path, sizes: list[int], start: int, captions: list[str]) -> None:
    """The exact search of some captions, kept on disk."""
    nearest = Nearest(query_rows(work, captions), number=NUMBER)
    first = 0
    for number, size in enumerate(sizes):
        nearest.search(collections.vectors(work, "texts", number), first=first)
        first += size
    save(work, "exact", start, nearest)


def save(work: Path, name: str, start: int, nearest: Nearest) -> None:
    counts = np.array([len(rows) for rows in nearest.rows])
    rows, scores = np.concatenate(nearest.rows), np.concatenate(nearest.scores)
    np.savez(work / f"{name}-{start:06d}.npz", counts=counts, rows=rows, scores=scores)


def stored(work: Path, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(work / f"exact-{start:06d}.npz", allow_pickle=False) as content:
        ends = np.cumsum(content["counts"])[:-1]
        return list(zip(np.split(content["rows"], ends), np.split(content["scores"], ends), strict=True))


def whole(work: Path, sizes: list[int]) -> csr_matrix:
    return vstack([collections.vectors(work, "texts", number) for number in range(len(sizes))]).tocsr()


def check(options: argparse.Namespace, sizes: list[int], captions: list[str]) -> dict[str, Any]:
    """Evenly spaced queries against every sentence in float64, by a product that knows of no blocks."""
    chosen = np.linspace(0, len(captions) - 1, options.checked).astype(int)
    documents = whole(options.work, sizes).astype(np.float64)
    queries = query_rows(options.work, [captions[i] for i in chosen]).astype(np.float64)
    equal, largest, same_rows = 0, 0.0, 0
    for i, query in enumerate(chosen.tolist()):
        scores = (documents @ queries[i].T).toarray().ravel()
        near = np.flatnonzero(scores >= np.partition(scores, -NUMBER)[-NUMBER] - 1e-6)
        best = near[np.lexsort((near, -np.round(scores[near], 6)))[:NUMBER]]
        best = best[scores[best] > 0]
        rows, found = stored(options.work, query // QUERIES_PER_TASK * QUERIES_PER_TASK)[query % QUERIES_PER_TASK]
        same = len(rows) == len(best)
        difference = float(np.abs(scores[best] - found).max()) if same and len(best) else 0.0
        equal += same and difference < 2e-6
        same_rows += set(rows.tolist()) == set(best.tolist())
        largest = max(largest, difference)
    return {
        "queries": len(chosen),
        "equal_scores": int(equal),
        "same_sentences": int(same_rows),
        "largest_difference": largest,
    }


def recall(options: argparse.Namespace, sizes: list[int], captions: list[str], probed: int, note: Any) -> None:
    """Share of the exact hundred that the index finds, for a sample of the queries."""
    vectors = functools.partial(collections.vectors, options.work, "texts")
    groups = approximate.groups_of(sizes)
    paths = [options.work / f"texts-{group.number:06d}.faiss" for group in groups]
    if not all(path.exists() for path in paths):
        with measured("building the index", note) as row:
            for group, path in zip(groups, paths, strict=True):
                approximate.build(group, vectors, path)
            row["bytes"] = sum(path.stat().st_size for path in paths)
    step = max(1, len(captions) // PEER_QUERIES)
    chosen = list(range(0, len(captions), step))[:PEER_QUERIES]
    nearest = Nearest(query_rows(options.work, [captions[i] for i in chosen]), number=NUMBER)
    with measured(f"index, {probed} lists", note) as row:
        for group, path in zip(groups, paths, strict=True):
            approximate.search(nearest, group, vectors, path, probed=probed)
        shares = []
        for i, query in enumerate(chosen):
            rows, _ = stored(options.work, query // QUERIES_PER_TASK * QUERIES_PER_TASK)[query % QUERIES_PER_TASK]
            if len(rows):
                shares.append(len(np.intersect1d(rows, nearest.rows[i])) / len(rows))
        row |= {"queries": len(chosen), "recall_at_100": round(float(np.mean(shares)), 4)}


def prepare_peers(options: argparse.Namespace, sizes: list[int], captions: list[str], note: Any) -> None:
    """The same vectors and a sample of the queries on disk, and this project's own answers to them."""
    step = max(1, len(captions) // PEER_QUERIES)
    chosen = list(range(0, len(captions), step))[:PEER_QUERIES]
    save_npz(options.work / "documents.npz", whole(options.work, sizes), compressed=False)
    save_npz(options.work / "queries.npz", query_rows(options.work, [captions[i] for i in chosen]), compressed=False)
    with open(options.work / "texts.json", "w", encoding="utf-8") as stream:
        for number in range(len(sizes)):
            for sentence in collections.sentences(options.work, number):
                stream.write(json.dumps(sentence) + "\n")
    write_json(options.work / "captions.json", [captions[i] for i in chosen])
    own = Nearest(query_rows(options.work, [captions[i] for i in chosen]), number=NUMBER)
    with measured("exact search, the peers' queries", note) as row:
        first = 0
        for number, size in enumerate(sizes):
            own.search(collections.vectors(options.work, "texts", number), first=first)
            first += size
        row["queries"] = len(chosen)
    save(options.work, "own", 0, own)


def peers(options: argparse.Namespace, names: Sequence[str], note: Any) -> None:
    """Other programs, one thread each, in their own environment."""
    script = Path(__file__).with_name("retrieval_peers.py")
    for name in names:
        done = subprocess.run(
            [options.peers, str(script), name, str(options.work)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        note(json.loads(done.stdout) if done.returncode == 0 else {"step": name, "failed": done.stderr[-400:]})


if __name__ == "__main__":
    sys.exit(main())
