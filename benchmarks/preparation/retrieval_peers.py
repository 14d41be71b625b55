"""One peer of the retrieval benchmark, run by its own interpreter: python retrieval_peers.py NAME FOLDER. Prints a row."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import load_npz

NUMBER = 100
SLOW_QUERIES = 100


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    peer: Callable[[Path], tuple[int, np.ndarray, float]] = {
        "sparse_dot_topn": sparse_dot_topn,
        "bm25s": bm25s_numba,
        "scikit-learn": scikit_learn,
    }[name]
    load = os.getloadavg()[0]
    queries, rows, seconds = peer(folder)
    exact = own(folder)
    shares = [len(np.intersect1d(exact[i], rows[i])) / len(exact[i]) for i in range(queries) if len(exact[i])]
    row = {
        "step": f"peer {name}",
        "queries": queries,
        "load": round(load, 1),
        "cpu_seconds": round(seconds, 1),
        "queries_per_cpu_second": round(queries / seconds, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "share_of_the_exact_hundred": round(float(np.mean(shares)), 4),
    }
    print(json.dumps(row))


def own(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "own-000000.npz", allow_pickle=False) as content:
        return np.split(content["rows"], np.cumsum(content["counts"])[:-1])


def sparse_dot_topn(folder: Path) -> tuple[int, np.ndarray, float]:
    from sparse_dot_topn import sp_matmul_topn, zip_sp_matmul_topn

    queries, documents = load_npz(folder / "queries.npz"), load_npz(folder / "documents.npz")
    start = time.process_time()
    parts = []
    for first in range(0, documents.shape[0], 200_000):
        part = documents[first : first + 200_000].T.tocsr()
        parts.append(sp_matmul_topn(queries, part, top_n=NUMBER, n_threads=1))
    found = zip_sp_matmul_topn(top_n=NUMBER, C_mats=parts)
    seconds = time.process_time() - start
    return queries.shape[0], np.split(found.indices, found.indptr[1:-1]), seconds


def bm25s_numba(folder: Path) -> tuple[int, np.ndarray, float]:
    """BM25 instead of TF-IDF: another ranking, so that the share says how near the two are."""
    import bm25s

    with open(folder / "texts.json", encoding="utf-8") as stream:
        tokens = bm25s.tokenize([json.loads(line) for line in stream], stopwords="en", show_progress=False)
    index = bm25s.BM25(backend="numba")
    index.index(tokens, show_progress=False)
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    wanted = bm25s.tokenize(captions, stopwords="en", show_progress=False)
    # The first call compiles.
    index.retrieve(
        bm25s.tokenize(captions[:2], stopwords="en", show_progress=False), k=NUMBER, n_threads=1, show_progress=False
    )
    start = time.process_time()
    found, _ = index.retrieve(wanted, k=NUMBER, n_threads=1, show_progress=False)
    return len(captions), found, time.process_time() - start


def scikit_learn(folder: Path) -> tuple[int, np.ndarray, float]:
    from sklearn.neighbors import NearestNeighbors

    queries, documents = load_npz(folder / "queries.npz")[:SLOW_QUERIES], load_npz(folder / "documents.npz")
    start = time.process_time()
    index = NearestNeighbors(n_neighbors=NUMBER, metric="cosine", algorithm="brute", n_jobs=1).fit(documents)
    found = index.kneighbors(queries, return_distance=False)
    return queries.shape[0], found, time.process_time() - start


if __name__ == "__main__":
    main()
