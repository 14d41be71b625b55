"""Evaluation during training: held-out retrieval, rewrites and losses, with pictures and embeddings to look at."""

from __future__ import annotations

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_made_alike, check_regions
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.engine.metrics import Embeddings, Report
from unimo_ds.evaluation import pictures, retrieval
from unimo_ds.evaluation.encode import Evaluable, Integers
from unimo_ds.evaluation.losses import held_out_losses
from unimo_ds.evaluation.measure import SingleEncodings, encode_single, measure_retrieval, measure_rewrites
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import choose_pairs, evenly, find_unreadable
from unimo_ds.evaluation.pictures import Picture
from unimo_ds.utils.errors import UserError

BEST_METRIC = "held_out/retrieval/mean_recall"
"""Higher is better; chooses the best checkpoint."""
_RETRIEVED = 5
_KEPT_BYTES = 32 * 2**20


def make_reader(corpus: Corpus, config: RunConfig, samples: Integers, *, tokenizer: Tokenizer) -> PairReader:
    """A reader of these pairs that caches few of them: the trainer needs the memory."""
    return PairReader.of(corpus, config, samples, tokenizer=tokenizer, max_bytes=_KEPT_BYTES)


def evaluate_held_out(engine: Evaluable, corpus: Corpus, config: RunConfig) -> Report:
    """Measure the model on `config.evaluation.num_pairs` held-out pairs. A collective.

    Only the first caption of each image is compared with rewrites, one of each level: enough to follow, cheap to repeat.
    `unimo evaluate` uses all of them. Pairs that cannot be read are named, counted and left out: a damaged byte of its
    evaluation data must not end a run.

    Raises:
        UserError: the held-out data has no pairs, no readable ones, or does not fit the model.
    """
    check_fits(corpus, config)
    tokenizer = tokenizers.load(corpus.tokenizer_path)
    samples = choose_pairs(corpus, num_pairs=config.evaluation.num_pairs)
    unreadable = find_unreadable(corpus, samples, engine.communicator)
    samples = samples[~np.isin(samples, list(unreadable))]
    if not len(samples):
        raise UserError(f"no pair of {corpus.location} can be read; run `unimo prepare verify` on it")
    reader = make_reader(corpus, config, samples, tokenizer=tokenizer)
    single = encode_single(engine, reader)
    metrics = measure_retrieval(single, reader).metrics("held_out/retrieval")
    accuracies = measure_rewrites(engine, reader, single, captions_per_image=1, per_level=1)
    metrics |= accuracies.metrics("held_out/rewrites")
    losses = held_out_losses(engine, corpus, samples, tokenizer, config)
    metrics |= {f"held_out/{name}": value for name, value in losses.items()}
    if unreadable:
        metrics["held_out/unreadable_samples"] = float(len(unreadable))
    if engine.communicator.rank != 0:
        return Report(metrics)
    for reason in unreadable.values():
        print(f"unreadable held-out sample, left out: {reason}", flush=True)
    drawn = draw_pictures(reader, single, count=config.logging.num_pictures)
    return Report(metrics, drawn, make_embeddings(reader, single, count=config.logging.num_embeddings))


def check_fits(corpus: Corpus, config: RunConfig) -> None:
    """Refuse data without pairs, or prepared for another model.

    Raises:
        UserError: names what differs.
    """
    choose_pairs(corpus, num_pairs=1)
    if corpus.vocabulary_size != config.model.vocabulary_size:
        raise UserError(
            f"{corpus.location} has a tokenizer of {corpus.vocabulary_size} pieces, the model one of "
            f"{config.model.vocabulary_size}; prepare the data with `--like` the training data"
        )
    check_regions(corpus, config)
    check_made_alike(corpus, config.data.path, parts=("tokenizer", "extractor"), made_with=config.data.made_with)


def draw_pictures(reader: PairReader, single: SingleEncodings, *, count: int) -> list[Picture]:
    """Retrieval of `count` captions, spread evenly over the pairs."""
    result = []
    for caption in evenly(reader.num_texts, count).tolist():
        scores = single.scores_CI[caption]
        found = retrieval.best_candidates(scores[None], _RETRIEVED)[0]
        own = int(reader.image_of_C[caption])
        shown = [pictures.tile(reader.corpus, int(reader.samples_I[image])) for image in (own, *found.tolist())]
        result.append(
            pictures.compose(
                reader.text(caption), shown, is_right=(found == own).tolist(), scores=scores[found].tolist()
            )
        )
    return result


def make_embeddings(reader: PairReader, single: SingleEncodings, *, count: int) -> Embeddings:
    """Vectors of `count` images and of the first caption of each."""
    images = evenly(reader.num_images, count)
    _, first_caption_I = np.unique(reader.image_of_C, return_index=True)
    vectors = np.concatenate(
        [single.images_ID.cpu().numpy()[images], single.captions_CD.cpu().numpy()[first_caption_I[images]]]
    ).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [reader.text(int(caption)) for caption in first_caption_I[images]]
    labels = [f"{kind}: {' '.join(text.split())}" for kind in ("image", "text") for text in texts]
    return Embeddings(vectors / np.maximum(lengths, 1e-12), labels)
