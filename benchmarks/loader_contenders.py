"""Readers of the same samples: this project's, webdataset's, Megatron-Energon's, LitData's and MosaicML Streaming's.

Each writes or indexes the samples in its own way, streams one shuffled epoch of them with decoded arrays, and resumes in the
middle of one. All run in one process without workers, so samples per second are those of one core.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.config import BatchConfig, ContrastConfig, DataConfig, KindWeights, MaskingConfig, ModelConfig, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.step_plan import StepPlanner
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.storage import shards

BUFFER = 64
"""Samples in the shuffle buffer of webdataset and Energon: about as many as in this project's window of shards here."""
Stream = Iterator[Any]
Content = dict[str, Any]


def stored(folder: Path) -> list[Content]:
    """All samples of a folder of shards, as plain columns."""
    rows = []
    for path in shards.shard_files(folder):
        for one in shards.read_shard(path):
            regions = one.sample.regions
            row: Content = {"text": one.sample.text or (one.sample.captions[0].text if one.sample.captions else "")}
            if regions is not None:
                row |= {
                    "boxes": regions.boxes,
                    "class_ids": regions.class_ids,
                    "class_probabilities": regions.class_probabilities,
                    "features": regions.features,
                }
            if one.jpeg is not None:
                row["jpg"] = one.jpeg
            rows.append(
                {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in row.items()}
            )
    return rows


class Ours:
    """`Corpus.read` in the run's own order: positioned reads, checksums verified, arrays as views."""

    name = "ours"

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        weights = {"regions": KindWeights(1, 0, 0), "jpeg": KindWeights(0, 0, 1), "text": KindWeights(0, 1, 0)}[kind]
        self.config = RunConfig(
            recipe="benchmark",
            model=ModelConfig(),
            data=DataConfig(path=str(folder), kind_weights=weights, shuffle_window_shards=2),
            batch=BatchConfig(global_samples=32, micro_batch_tokens=1 << 20),
            masking=MaskingConfig(),
            contrast=ContrastConfig(enabled=False),
        )

    def prepare(self) -> None:
        """Nothing to do: the shards are in its own format."""

    def _open(self) -> tuple[Corpus, StepPlanner]:
        corpus = Corpus.open(self.folder)
        return corpus, StepPlanner(corpus, self.config, world_size=1)

    def epoch(self, start: int = 0) -> Stream:
        corpus, planner = self._open()
        size = self.config.batch.global_samples
        for first in range(start, start + len(corpus), size):
            samples = planner.order.samples_at(np.arange(first, first + size)).tolist()
            corpus.expect(samples)
            for sample in samples:
                read = corpus.read(sample)
                jpeg = corpus.read_jpeg(sample) if self.kind == "jpeg" else None
                yield read, jpeg, vars(read.regions) if read.regions is not None else None

    def resume(self, position: int) -> Stream:
        return self.epoch(position)


class OurSteps(Ours):
    """The whole path to packed micro-batches: tokens, masking, packing, the plan of ranks."""

    name = "ours, to packed batches"

    def epoch(self, start: int = 0) -> Stream:
        from benchmarks.mix import VOCABULARY
        from unimo_ds.data import tokenizer as tokenizers

        corpus = Corpus.open(self.folder)
        reader = StepReader(corpus, tokenizers.load(corpus.tokenizer_path), self.config, rank=0, world_size=1)
        assert corpus.vocabulary_size <= VOCABULARY
        size = self.config.batch.global_samples
        for step in range(start // size, (start + len(corpus)) // size):
            batch = reader.read(step)
            yield [micro_batch.region_features.numpy() for micro_batch in batch.micro_batches]
            yield from itertools.repeat(None, size - 1)


class WebDataset:
    name = "webdataset"

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def prepare(self) -> None:
        """Nothing to do: it reads the shards as they are."""

    def epoch(self) -> Stream:
        os.environ.setdefault("WDS_SECURE", "1")
        import webdataset

        urls = [str(path) for path in shards.shard_files(self.folder)]
        data = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=0)
        # Its decoder for .npy allows pickles and copies; its documentation recommends these two lines instead.
        return iter(data.shuffle(BUFFER).map(_decoded_members))

    def resume(self, position: int) -> Stream:
        """It cannot resume: samples are read and discarded."""
        return itertools.islice(self.epoch(), position, None)


def _decoded_members(sample: Content) -> Content:
    import io
    import json

    result: Content = {}
    for name, content in sample.items():
        if name.endswith("npy"):
            result[name] = np.load(io.BytesIO(content), allow_pickle=False)
        elif name == "json":
            result[name] = json.loads(content)
        else:
            result[name] = content
    return result


class Energon:
    name = "Megatron-Energon"

    def __init__(self, folder: Path, kind: str) -> None:
        self.shards, self.folder, self.kind = folder, folder.parent / f"energon-{folder.name}", kind

    def prepare(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir()
        for path in shards.shard_files(self.shards):
            os.link(path, self.folder / path.name)
        command = [str(Path(sys.executable).parent / "energon"), "prepare", str(self.folder), "--non-interactive"]
        command += ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
        subprocess.run(
            [*command, "--force-overwrite"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _loader(self) -> Any:
        from megatron import energon

        class Encoder(energon.DefaultTaskEncoder):
            cookers = (energon.Cooker(energon.stateless(_cooked)),)
            decoder = None

        workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
        data = energon.get_train_dataset(
            str(self.folder),
            worker_config=workers,
            batch_size=None,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=BUFFER,
            task_encoder=Encoder(),
        )
        return energon.get_savable_loader(data)

    def epoch(self) -> Stream:
        return iter(self._loader())

    def resume(self, position: int) -> Stream:
        loader = self._loader()
        for _ in itertools.islice(loader, position):
            pass
        state = loader.save_state_rank()
        return Resumed(lambda: self._resumed(state))

    def _resumed(self, state: Any) -> Stream:
        loader = self._loader()
        loader.restore_state_rank(state)
        return iter(loader)


class Resumed(Iterator[Any]):
    """A stream that starts at the first `next`: what comes before (making a state to resume from) is not timed."""

    def __init__(self, begin: Callable[[], Stream]) -> None:
        self._begin: Callable[[], Stream] | None = begin
        self._stream: Stream = iter(())

    def __next__(self) -> Any:
        if self._begin is not None:
            self._stream, self._begin = self._begin(), None
        return next(self._stream)


def _cooked(sample: Content) -> Content:
    from megatron import energon

    content = _decoded_members({key: value for key, value in sample.items() if isinstance(value, bytes)})
    return {**energon.basic_sample_keys(sample), **content}


class LitData:
    name = "LitData"

    def __init__(self, folder: Path, kind: str) -> None:
        self.shards, self.folder, self.kind = folder, folder.parent / f"litdata-{folder.name}", kind

    def prepare(self) -> None:
        from litdata.streaming.writer import BinaryWriter

        if self.folder.is_dir():
            return
        writer = BinaryWriter(str(self.folder), chunk_bytes=64 << 20)
        for number, row in enumerate(stored(self.shards)):
            writer.add_item(number, row)
        writer.done()
        writer.merge()

    def _data(self) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(str(self.folder), shuffle=True, max_cache_size="100GB")

    def epoch(self) -> Stream:
        return iter(self._data())

    def resume(self, position: int) -> Stream:
        from litdata import StreamingDataLoader

        def loader() -> Any:
            return StreamingDataLoader(self._data(), batch_size=1, num_workers=0, collate_fn=_first)

        first = loader()
        for _ in itertools.islice(first, position):
            pass
        state = first.state_dict()

        def begin() -> Stream:
            second = loader()
            second.load_state_dict(state)
            return iter(second)

        return Resumed(begin)


def _first(items: list[Any]) -> Any:
    return items[0]


class Mosaic:
    name = "MosaicML Streaming"

    def __init__(self, folder: Path, kind: str) -> None:
        self.shards, self.folder, self.kind = folder, folder.parent / f"mosaic-{folder.name}", kind

    def prepare(self) -> None:
        streaming = _import_streaming()
        if self.folder.is_dir():
            return
        rows = stored(self.shards)
        kinds = {bytes: "bytes", str: "str", np.ndarray: "ndarray"}
        columns = {key: kinds[type(value)] for key, value in rows[0].items()}
        with streaming.MDSWriter(out=str(self.folder), columns=columns, size_limit=64 << 20) as writer:
            for row in rows:
                writer.write(row)

    def _data(self) -> Any:
        streaming = _import_streaming()
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        return streaming.StreamingDataset(local=str(self.folder), shuffle=True, batch_size=1, shuffle_seed=0)

    def epoch(self) -> Stream:
        return iter(self._data())

    def resume(self, position: int) -> Stream:
        state = self._data().state_dict(num_samples=position, from_beginning=True)

        def begin() -> Stream:
            data = self._data()
            data.load_state_dict(state)
            return iter(data)

        return Resumed(begin)


def _import_streaming() -> Any:
    """`streaming` imports torchvision for datasets not used here, and the package index has no CPU build: stubs replace it."""
    if "torchvision" not in sys.modules:
        import transformers.feature_extraction_utils  # noqa: F401  (looks for torchvision, so import it before the stubs)

        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        modules = {name: types.ModuleType(name) for name in names}
        modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
        sys.modules.update(modules)
    import streaming

    return streaming


CONTENDERS: tuple[type[Any], ...] = (Ours, OurSteps, WebDataset, Energon, LitData, Mosaic)
