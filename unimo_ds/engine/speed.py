"""Speed of a run: tokens and operations per second, and the share of time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import PackedBatch, StepBatch
from unimo_ds.engine.stragglers import Stopwatch
from unimo_ds.models.accounting import StreamShape, training_flops
from unimo_ds.utils.machine import PEAK_TERAFLOPS


class SpeedMeter:
    """Sums over the steps since the last reading."""

    def __init__(self, config: ModelConfig, *, device: torch.device, forward_time: Stopwatch) -> None:
        self._config = config
        self._forward_time = forward_time
        self._is_cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if self._is_cuda else ""
        self._peak = next((peak for key, peak in PEAK_TERAFLOPS.items() if key in name), None)
        self._bad = 0
        self.reset()

    def reset(self) -> None:
        """Restart the measurement, to exclude work between steps. Keeps bad samples, which are no rate."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._forward_time.read()
        self._steps = self._positions = self._flops = self._bytes = 0

    def waiting(self, batches: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """The same batches; the time the trainer waits for them is counted."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, batch: StepBatch, *, positions: int, bytes_read: int, bad_samples: int) -> None:
        """Count one step. positions, bytes_read, bad_samples: of all ranks; batch: this rank's."""
        self._steps += 1
        self._positions += positions
        self._bytes += bytes_read
        self._bad += bad_samples
        # Ranks are balanced by cost, so this rank's operations represent all.
        self._flops += training_flops(self._config, stream_shape(batch.micro_batches))

    def read(self) -> dict[str, float]:
        """Averages since the last reading or reset; restarts the measurement."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        teraflops = self._flops / seconds / 1e12
        values = {
            "speed/seconds_per_step": seconds / max(self._steps, 1),
            "speed/tokens_per_second": self._positions / seconds,
            "speed/data_wait_share": self._waited / seconds,
            "speed/forward_seconds": self._forward_time.read() / max(self._steps, 1),
            "speed/teraflops_per_rank": teraflops,
            "data/bytes_per_second": self._bytes / seconds,
            "data/bad_samples": float(self._bad),
        }
        if self._peak is not None:
            values["speed/model_flops_utilisation"] = teraflops / self._peak
        if self._is_cuda:
            values["memory/peak_gibibytes"] = torch.cuda.max_memory_allocated() / 2**30
        self._bad = 0
        self.reset()
        return values


def stream_shape(batches: Sequence[PackedBatch]) -> StreamShape:
    """The sizes that determine the total cost of some micro-batches."""
    lengths = [torch.diff(batch.sequence_starts.to(torch.int64)) for batch in batches]
    attended = [own + _shared_lengths(batch) for own, batch in zip(lengths, batches, strict=True)]
    return StreamShape(
        num_positions=sum(batch.num_positions for batch in batches),
        sum_squared_lengths=sum(int((own * seen).sum()) for own, seen in zip(lengths, attended, strict=True)),
        num_regions=sum(len(batch.region_features) for batch in batches),
        sum_squared_images=sum(int((batch.image_starts.long().diff() ** 2).sum()) for batch in batches),
        num_language=sum(len(batch.language_at) for batch in batches),
        num_masked_regions=sum(len(batch.masked_region_at) for batch in batches),
        num_pooled=sum(len(batch.pooled_image_at) + len(batch.pooled_text_at) for batch in batches),
    )


def _shared_lengths(batch: PackedBatch) -> torch.Tensor:
    """[S] how many positions of another sequence each one attends to."""
    if not batch.shares_prefixes:
        return torch.zeros_like(batch.prefix_lengths, dtype=torch.int64)
    owners = batch.prefix_of.to(torch.int64)
    return batch.prefix_lengths.to(torch.int64)[owners.clamp(min=0)] * (owners >= 0)
