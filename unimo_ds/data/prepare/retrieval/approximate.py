"""Approximate retrieval with FAISS, with the interface of exact retrieval: an index proposes rows, their scores are exact.

For millions of images, whose class vectors share most of their classes, so that scanning all postings costs too much.
(Sentences share few words: exact search is faster for them and loses nothing, see docs/experiments.md.) Rows are projected to a
few hundred dimensions by a sparse random matrix (Achlioptas 2003; Kane and Nelson 2014): unlike principal components, which
keep what is frequent, it keeps the rare words that make sentences similar. An inverted file of quantised vectors (`IVF, SQ8`)
then proposes ten times the wanted number. docs/experiments.md measures the loss.

One index holds about a million rows (whole blocks), so that a task's memory does not grow with the collection. Each index is
built on one thread and does not depend on the number of workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from unimo_ds.data.prepare.retrieval.collections_on_disk import Block, num_rows
from unimo_ds.data.prepare.retrieval.similarity import Nearest
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import whole_file

DIMENSIONS = 384
PROPOSED = 10
"""Rows that the index proposes, as a multiple of the wanted number."""
PROBED = 64
"""Lists searched per query, of at most `_MOST_LISTS`."""
INDEX_ROWS = 1_000_000
_MOST_LISTS, _ROWS_PER_LIST = 1024, 40
_TRAINING_ROWS_PER_LIST = 64
_ENTRIES = 16
"""Nonzero entries of the projection per word or class."""
_ROWS_AT_ONCE = 50_000
_SCORED_AT_ONCE = 200_000

Floats = NDArray[np.float32]
Group = Sequence[Block]
"""Consecutive blocks in one index."""


def require_faiss() -> Any:
    """
    Raises:
        UserError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError(
            "--approximate needs FAISS, which is not installed: pip install faiss-cpu, or leave the option out: "
            "the exact search needs nothing"
        ) from None
    faiss.omp_set_num_threads(1)
    return faiss


def groups_of(blocks: Sequence[Block]) -> list[Group]:
    """The blocks that have rows, grouped to about `INDEX_ROWS` rows."""
    groups: list[list[Block]] = []
    for block in blocks:
        if block.size:
            if not groups or num_rows(groups[-1]) >= INDEX_ROWS:
                groups.append([])
            groups[-1].append(block)
    return list(groups)


@functools.lru_cache(maxsize=2)
def projection(num_columns: int) -> csr_matrix:
    """[columns, DIMENSIONS] random signs, a few per row; depends only on the sizes."""
    random = np.random.default_rng(num_columns)
    places = random.integers(0, DIMENSIONS, (num_columns, _ENTRIES)).ravel()
    signs = random.integers(0, 2, num_columns * _ENTRIES).astype(np.float32) * 2 - 1
    starts = np.arange(num_columns + 1) * _ENTRIES
    return csr_matrix((signs, places, starts), (num_columns, DIMENSIONS))


def project(rows: csr_matrix) -> Floats:
    """[n, DIMENSIONS] unit vectors; zeros for empty rows."""
    dense: Floats = (rows @ projection(rows.shape[1])).toarray().astype(np.float32)
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    return dense


def build(group: Group, vectors: Callable[[int], csr_matrix], path: Path) -> None:
    """Write the index of a group atomically.

    vectors: block number -> its rows.
    """
    faiss = require_faiss()
    total = num_rows(group)
    num_lists = int(np.clip(total // _ROWS_PER_LIST, 1, _MOST_LISTS))
    index = faiss.index_factory(DIMENSIONS, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    step = max(1, total // (_TRAINING_ROWS_PER_LIST * num_lists))
    index.train(np.concatenate([project(vectors(block.number)[::step]) for block in group]))
    for block in group:
        rows = vectors(block.number)
        for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
            index.add(project(rows[start : start + _ROWS_AT_ONCE]))
    with whole_file(path) as stream:  # FAISS's own file writer ignores a full disk
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))


def search(
    nearest: Nearest, group: Group, vectors: Callable[[int], csr_matrix], path: Path, *, probed: int = PROBED
) -> None:
    """Offer `nearest` the rows that the group's index proposes for each query, with exact scores."""
    faiss = require_faiss()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    index.nprobe = probed
    number = min(PROPOSED * nearest.number, num_rows(group))
    _, proposed = index.search(project(nearest.queries), number)
    proposed += group[0].first
    for block in group:
        queries, places = np.nonzero((proposed >= block.first) & (proposed < block.first + block.size))
        if len(queries):
            rows = proposed[queries, places]
            scores = _scores(nearest.queries, queries, vectors(block.number), rows - block.first)
            ends = np.searchsorted(queries, np.arange(nearest.queries.shape[0] + 1))
            for query in np.unique(queries).tolist():
                part = slice(ends[query], ends[query + 1])
                nearest.offer(query, rows[part], scores[part])


def _scores(queries: csr_matrix, which: NDArray[np.int64], rows: csr_matrix, others: NDArray[np.int64]) -> Floats:
    """[n] dot products of queries `which` with rows `others`."""
    parts = [
        np.asarray(queries[which[part]].multiply(rows[others[part]]).sum(1), np.float32).ravel()
        for start in range(0, len(which), _SCORED_AT_ONCE)
        for part in (slice(start, start + _SCORED_AT_ONCE),)
    ]
    return np.concatenate(parts)
