"""The training loader: steps in order, each a pure function of its number, prefetched by worker processes.

Workers share only the corpus on disk. Any of them can make any step, so their number changes neither the batches nor their
order, and a run resumes at any step without replay.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.process
import signal
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unimo_ds.config import RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import BadSample, StepBatch
from unimo_ds.data.step_reader import ReadableCorpus, StepReader, TextTokenizer
from unimo_ds.data.transport import FlatStep, flatten, restore
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.communicator import Communicator, SingleProcess
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import keep_freed_buffers

_IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StepLoader(Iterable[StepBatch]):
    """The batches of steps start_step .. stop_step - 1 for one rank, in order."""

    def __init__(
        self,
        corpus: ReadableCorpus,
        config: RunConfig,
        rank: int,
        world_size: int,
        start_step: int,
        stop_step: int,
        *,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        """Nothing is read yet.

        tokenizer: of the corpus; None loads it from `corpus.tokenizer_path`.

        Raises:
            UserError: a kind or source with weight but without samples (see also `corpus_check.check_corpus`).
        """
        if tokenizer is None:
            if not isinstance(corpus, Corpus):
                raise UserError("a corpus that is not a data folder needs its tokenizer given")
            tokenizer = tokenizers.load(corpus.tokenizer_path)
        self._reader = StepReader(corpus, tokenizer, config, rank=rank, world_size=world_size)
        self._steps = range(start_step, stop_step)
        self._num_workers = config.data.num_workers
        self._prefetch_steps = config.data.prefetch_steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[StepBatch]:
        """Raises:
        UserError: as `StepReader.read`, always in the trainer's own process.
        """
        if not self._num_workers:
            yield from map(self._reader.read, self._steps)
            return
        loader: DataLoader[FlatStep | str] = DataLoader(
            _Steps(self._reader),
            batch_size=None,
            sampler=self._steps,
            collate_fn=as_it_is,
            num_workers=self._num_workers,
            # Each worker prefetches at least one step; together as many as configured.
            prefetch_factor=max(1, -(-self._prefetch_steps // self._num_workers)),
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        with _running(loader) as items:
            for item in items:
                if isinstance(item, str):
                    raise UserError(item)
                yield restore(item)


@contextlib.contextmanager
def _running(loader: DataLoader[FlatStep | str]) -> Iterator[Iterator[FlatStep | str]]:
    """The loader's items, from workers that signals meant for the job cannot stop, and that never outlive their use.

    Workers that ignore SIGTERM also ignore Python's own request to end: at exit it would wait forever for one that is stuck
    (for example, because another was killed for memory while holding their queue) or idle. So they are killed, here or at exit.
    """
    others = set(multiprocessing.active_children())
    # Blocked during the fork, so that a worker is safe from its first instruction; it unblocks them once it ignores them.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    kill = functools.partial(_kill, workers)
    atexit.register(kill)
    try:
        yield items
    finally:
        # First torch's own shutdown (it runs when the iterator is released), then the workers left.
        del items
        kill()
        atexit.unregister(kill)


def _kill(workers: list[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


class _Steps(Dataset[FlatStep | str]):
    """Makes steps for transfer; a refusal is transferred as its sentence, since exceptions leave workers with a traceback."""

    def __init__(self, reader: StepReader) -> None:
        self._reader = reader

    def __getitem__(self, step: int) -> FlatStep | str:
        try:
            return flatten(self._reader.read(step))
        except UserError as error:
            return str(error)


def as_it_is(item: Any) -> Any:
    """Prevents collation by torch."""
    return item


def _start_worker(worker: int) -> None:
    """In a worker process, before its first step."""
    # Every sample is a buffer of some hundred kilobytes: a new mapping costs as much as reading it from the page cache.
    keep_freed_buffers()
    _ignore_signals()


def _ignore_signals() -> None:
    """Slurm and terminals signal every process of a step; if a worker died of it, the trainer could not save."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)


class BadSampleLimit:
    """Stops a run with too many bad samples. Give it the sums over all ranks, so that all ranks stop at the same step."""

    FREE = 10
    """Bad samples that are tolerated whatever their share, unless the share allowed is 0."""

    def __init__(self, max_share: float, communicator: Communicator | None = None) -> None:
        """communicator: None: a single process."""
        self._max_share, self._communicator = max_share, communicator or SingleProcess()
        self._num_bad = self._num_samples = 0
        self._keys: dict[str, str] = {}

    def add(self, bad_samples: Iterable[BadSample], *, num_bad: int, num_samples: int) -> None:
        """Count one step. bad_samples: this rank's, for the message; num_bad, num_samples: of the global batch.

        Raises:
            UserError: on all ranks, if more than the share was unreadable, naming shards found on any rank.
        """
        self._num_bad += num_bad
        self._num_samples += num_samples
        for sample in bad_samples:
            if len(self._keys) < 1000:
                self._keys[sample.key] = sample.reason
        allowed = max(self._max_share * self._num_samples, self.FREE if self._max_share else 0)
        if self._num_bad > allowed:
            of_ranks = self._communicator.all_gather_object((socket.gethostname(), self._keys))
            known = [(host, *one) for host, keys in of_ranks for one in keys.items()]
            shards = sorted({key.rpartition(":")[0] for _, key, _ in known})
            host, key, reason = known[0]
            fail_together(
                self._communicator,
                f"{self._num_bad} of {self._num_samples} samples could not be read in {', '.join(shards[:5])}, more than "
                f"data.max_bad_share={self._max_share} allows; for example, on {host}, {key}: {reason}; run `unimo prepare "
                "verify` on the data, or raise data.max_bad_share",
            )
