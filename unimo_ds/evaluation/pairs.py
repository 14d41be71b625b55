"""The pairs an evaluation looks at: which images, which of their texts, and a reader that opens only what it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.examples import ImageInput, clean_sequence, image_input, text_input
from unimo_ds.data.schema import Kind, Sample, SequenceInput, SequenceRole, TextRole
from unimo_ds.data.selection import NUM_TEXT_SPECIALS
from unimo_ds.data.storage.members import texts_of
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError

Integers = NDArray[np.int64]

_KEPT_SAMPLES = 64


class TokenEncoder(Protocol):
    def encode(self, text: str, /) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class PairTexts:
    """Some texts of the chosen images. n texts."""

    image_n: Integers
    """[n] number of the image (0, 1, ...) that each text belongs to."""
    number_n: Integers
    """[n] place among the sample's texts, in the index's canonical order."""
    caption_n: Integers
    """[n] which caption of its image it is, or was made from."""
    level_n: Integers
    """[n] Level"""
    tokens_n: Integers
    """[n] token counts without specials."""

    def __len__(self) -> int:
        return len(self.image_n)


@dataclass(frozen=True)
class PairSet:
    """The images of an evaluation with their captions and negative rewrites, from the index alone."""

    samples_I: Integers
    """[I] sample numbers in the corpus."""
    num_regions_I: Integers
    """[I] stored regions."""
    captions: PairTexts
    negatives: PairTexts


def choose_pairs(corpus: Corpus, *, num_pairs: int = 0) -> Integers:
    """Sample numbers of `num_pairs` pairs spread evenly over the corpus (0: all of them), always the same ones.

    Raises:
        UserError: the corpus holds no pairs.
    """
    pairs = np.flatnonzero(np.asarray(corpus.kinds) == Kind.PAIR).astype(np.int64)
    if not len(pairs):
        raise UserError(
            f"{corpus.location} holds no image-text pairs, so there is nothing to retrieve; give a folder with pairs"
        )
    return pairs[evenly(len(pairs), num_pairs)] if num_pairs > 0 else pairs


def evenly(total: int, number: int) -> Integers:
    """`number` numbers below `total`, evenly apart; all of them where there are no more."""
    chosen = min(total, number)
    return np.arange(chosen, dtype=np.int64) * total // max(chosen, 1)


def find_unreadable(corpus: Corpus, samples: Integers, communicator: Communicator) -> dict[int, str]:
    """Which of `samples` cannot be read, and why: each rank tries its share, and all learn of all.

    A long run outlives a damaged held-out sample only when every rank leaves it out before the first collective.
    """
    mine: dict[int, str] = {}
    for sample in samples[communicator.rank :: communicator.world_size].tolist():
        try:
            corpus.read(sample)
        except CorruptSample as error:
            mine[sample] = f"{error.key}: {error.reason}"
    everyone = communicator.all_gather_object(mine)
    return {sample: reason for found in everyone for sample, reason in found.items()}


def pair_set(corpus: Corpus, pairs: Integers) -> PairSet:
    """These pairs with their captions and negative rewrites."""
    starts = np.asarray(corpus.text_start, np.int64)
    counts = starts[pairs + 1] - starts[pairs]
    image = np.repeat(np.arange(len(pairs)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(starts[pairs], counts) + number
    roles = np.asarray(corpus.text_role)[at]

    def chosen(role: TextRole) -> PairTexts:
        here = roles == role
        return PairTexts(
            image_n=image[here],
            number_n=number[here],
            caption_n=np.asarray(corpus.text_caption)[at[here]].astype(np.int64),
            level_n=np.asarray(corpus.text_level)[at[here]].astype(np.int64),
            tokens_n=np.asarray(corpus.text_tokens)[at[here]].astype(np.int64),
        )

    return PairSet(
        samples_I=pairs,
        num_regions_I=np.asarray(corpus.num_regions)[pairs].astype(np.int64),
        captions=chosen(TextRole.TEXT),
        negatives=chosen(TextRole.NEGATIVE),
    )


def joint_sequences(image: ImageInput, text: NDArray[np.int32], *, shares_images: bool) -> tuple[SequenceInput, ...]:
    """An image with a text, as the model was trained to see them: in one sequence, or an image and a text that sees it.

    shares_images: the latter, what `contrast.joint_encoding=shared_image` trains.
    """
    if shares_images:
        alone = clean_sequence(role=SequenceRole.SINGLE_IMAGE, image=image)
        return alone, clean_sequence(role=SequenceRole.JOINT_PAIR, text=text, shares_prefix_at=-1)
    return (clean_sequence(role=SequenceRole.JOINT_PAIR, image=image, text=text),)


class PairReader:
    """Sequences of a `PairSet`, read when asked for. Neighbouring requests for one image read it once."""

    def __init__(
        self,
        corpus: Corpus,
        pairs: PairSet,
        tokenizer: TokenEncoder,
        *,
        max_regions: int,
        max_text_tokens: int,
        micro_batch_tokens: int,
        shares_images: bool = False,
    ) -> None:
        """micro_batch_tokens: into which the sequences are to be packed. shares_images: joint sequences are what
        `contrast.joint_encoding=shared_image` trains.
        """
        self.shares_images, self.micro_batch_tokens = shares_images, micro_batch_tokens
        self.corpus, self.pairs, self.tokenizer = corpus, pairs, tokenizer
        self.max_regions, self.max_text_tokens = max_regions, max_text_tokens
        self._samples: OrderedDict[int, Sample] = OrderedDict()

    def sample(self, image: int) -> Sample:
        if image not in self._samples:
            self._samples[image] = self.corpus.read(int(self.pairs.samples_I[image]))
            if len(self._samples) > _KEPT_SAMPLES:
                self._samples.popitem(last=False)
        return self._samples[image]

    def text(self, texts: PairTexts, index: int) -> str:
        return texts_of(self.sample(int(texts.image_n[index])))[int(texts.number_n[index])].text

    def image_lengths(self) -> Integers:
        """[I] lengths of the image sequences, [IMG] included."""
        lengths: Integers = 1 + np.minimum(self.pairs.num_regions_I, self.max_regions)
        return lengths

    def text_lengths(self, texts: PairTexts) -> Integers:
        """[n] lengths of the text sequences, specials included."""
        lengths: Integers = np.minimum(texts.tokens_n + NUM_TEXT_SPECIALS, self.max_text_tokens)
        return lengths

    def image_sequence(self, image: int) -> SequenceInput:
        return clean_sequence(role=SequenceRole.SINGLE_IMAGE, image=self._image_input(image))

    def text_sequence(self, texts: PairTexts, index: int) -> SequenceInput:
        return clean_sequence(role=SequenceRole.SINGLE_TEXT, text=self._text_input(texts, index))

    def joint_sequence(self, image: int, texts: PairTexts, index: int) -> tuple[SequenceInput, ...]:
        """Any image with any text; see `joint_sequences`."""
        return joint_sequences(
            self._image_input(image), self._text_input(texts, index), shares_images=self.shares_images
        )

    def _image_input(self, image: int) -> ImageInput:
        regions = self.sample(image).regions
        if regions is None:
            raise ValueError(f"pair {self.corpus.key(int(self.pairs.samples_I[image]))} has no regions")
        return image_input(regions, max_regions=self.max_regions)

    def _text_input(self, texts: PairTexts, index: int) -> NDArray[np.int32]:
        return text_input(self.tokenizer.encode(self.text(texts, index)), max_text_tokens=self.max_text_tokens)
