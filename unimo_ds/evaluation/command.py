"""`unimo evaluate TASK`: zero-shot measurements of a checkpoint on a data folder, in full."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import PackedBatch
from unimo_ds.evaluation import checkpoint, retrieval
from unimo_ds.evaluation.checkpoint import LoadedModel
from unimo_ds.evaluation.held_out import check_fits, draw_pictures, make_reader
from unimo_ds.evaluation.losses import held_out_losses
from unimo_ds.evaluation.measure import (
    SingleEncodings,
    encode_single,
    measure_reranked,
    measure_retrieval,
    measure_rewrites,
)
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import choose_pairs
from unimo_ds.evaluation.pictures import to_png
from unimo_ds.models import positions
from unimo_ds.models.unimo import ModelOutput
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import device_of

_NUM_PICTURES = 8

Metrics = dict[str, float]
Measure = Callable[[LoadedModel, PairReader, SingleEncodings, int], Metrics]


def _retrieval(model: LoadedModel, reader: PairReader, single: SingleEncodings, rerank: int) -> Metrics:
    metrics = measure_retrieval(single, reader).metrics("retrieval")
    if rerank:
        joint = measure_reranked(model, reader, single, num_candidates=rerank)
        metrics |= joint.metrics("retrieval_reranked")
    return metrics


def _rewrites(model: LoadedModel, reader: PairReader, single: SingleEncodings, rerank: int) -> Metrics:
    if not len(reader.negatives):
        raise UserError(
            "the data holds no negative rewrites; `unimo prepare rewrite DATA --learn-from TRAINING` makes some"
        )
    return measure_rewrites(model, reader, single).metrics("rewrites")


def _zero_shot(model: LoadedModel, reader: PairReader, single: SingleEncodings, rerank: int) -> Metrics:
    metrics = _retrieval(model, reader, single, rerank)
    if len(reader.negatives):
        metrics |= _rewrites(model, reader, single, rerank)
    return metrics | held_out_losses(model, reader.corpus, reader.samples_I, reader.tokenizer, model.config)


TASKS: dict[str, Measure] = {"retrieval": _retrieval, "rewrites": _rewrites, "zero-shot": _zero_shot}


@dataclass(frozen=True)
class _WatchedModel(LoadedModel):
    """Reports how many sequences it has encoded."""

    tell: Callable[[int], None] = lambda _: None

    def forward(self, batch: PackedBatch, /) -> ModelOutput:
        output = super().forward(batch)
        self.tell(batch.num_sequences)
        return output


@contextlib.contextmanager
def _watched(model: LoadedModel) -> Iterator[LoadedModel]:
    """The model with a running count on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield model
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} sequences encoded"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        counter = progress.add_task("encoding", total=None)
        fields = {item.name: getattr(model, item.name) for item in dataclasses.fields(model)}
        yield _WatchedModel(**fields, tell=lambda count: progress.advance(counter, count))


def evaluate(
    task: str,
    *,
    path: Path,
    data: str,
    num_pairs: int = 0,
    rerank: int = 0,
    device: str | None = None,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Measure the model at `path` on the pairs at `data`, whose resolution may differ from that of its training data.

    num_pairs: spread evenly over the data; 0: all. rerank: candidates per query that are encoded jointly; 0: none.
    pictures: folder for PNGs of some retrievals.
    Returns task, checkpoint, data, counts, `metrics` and `notes`.

    Raises:
        UserError: bad paths, data of another model, a damaged sample, or a device that does not exist.
    """
    corpus = Corpus.open(data)
    model = checkpoint.load(path, device=device_of(device), images=corpus)
    check_fits(corpus, model.config)
    tokenizer = tokenizers.load(corpus.tokenizer_path)
    samples = choose_pairs(corpus, num_pairs=num_pairs)
    reader = make_reader(corpus, model.config, samples, tokenizer=tokenizer)
    with _watched(model) as watched:
        single = encode_single(watched, reader)
        metrics = TASKS[task](watched, reader, single, rerank)
    written = [] if pictures is None else _write_pictures(reader, single, pictures)
    note = positions.note(checkpoint.read_config(model.files.config).model, model.config.model)
    return {
        "task": task,
        "checkpoint": str(model.files.weights.parent),
        "data": data,
        "images": reader.num_images,
        "captions": reader.num_texts,
        "chance_mean_recall": _chance(reader.num_images, reader.num_texts),
        "metrics": metrics,
        "pictures": written,
        "notes": {"resolution": note} if note else {},
    }


def to_text(result: dict[str, Any]) -> str:
    """A table for people."""
    lines = [
        f"{result['checkpoint']} on {result['data']}: {result['images']:,} images, {result['captions']:,} captions"
    ]
    for name, value in result["metrics"].items():
        is_share = not name.endswith("median_rank") and not name.startswith("loss/")
        lines.append(f"  {name:<46} {f'{100 * value:7.2f} %' if is_share else f'{value:9.4g}'}")
    if "retrieval/mean_recall" in result["metrics"]:
        lines.append(f"  {'chance of mean recall':<46} {100 * result['chance_mean_recall']:7.2f} %")
    lines += [f"  {name}: {text}" for name, text in result["notes"].items()]
    return "\n".join([*lines, *(f"  wrote {name}" for name in result["pictures"])])


def _chance(num_images: int, num_captions: int) -> float:
    """Mean recall of a random order, if all images have about equally many captions."""
    captions_per_image = num_captions / num_images
    shares = []
    for k in retrieval.RECALL_AT:
        shares.append(min(1.0, k / num_images))
        missed = 1.0
        for place in range(min(k, num_captions)):
            missed *= max(0.0, 1 - captions_per_image / (num_captions - place))
        shares.append(1 - missed)
    return sum(shares) / len(shares)


def _write_pictures(reader: PairReader, single: SingleEncodings, folder: Path) -> list[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for number, picture in enumerate(draw_pictures(reader, single, count=_NUM_PICTURES)):
            target = folder / f"retrieval-{number:03d}.png"
            target.write_bytes(to_png(picture))
            written.append(str(target))
    except OSError as error:
        raise UserError(f"cannot write pictures into {folder}: {error.strerror}") from None
    return written
