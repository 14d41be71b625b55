"""Pairs of a data folder as encoder inputs. Letters: I images, C of their texts: captions unless stated otherwise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.inputs import ImageInput, PreparedSample, clean_sequence, text_input, text_key
from unimo_ds.data.masking import Tokens
from unimo_ds.data.sample_shelf import MAX_BYTES, SampleShelf
from unimo_ds.data.schema import NUM_TEXT_SPECIALS, SequenceInput, SequenceRole, TextRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.pairs import Integers, PairTexts, texts_of_pairs


@dataclass(frozen=True)
class PairReader:
    """Lengths come from the index only; samples are read when needed."""

    shelf: SampleShelf
    samples_I: Integers
    """Sample numbers in the corpus."""
    texts: PairTexts
    tokenizer: Tokenizer
    max_text_tokens: int
    micro_batch_tokens: int
    """Of the micro-batches that the sequences will be packed into."""
    shares_images: bool
    """Whether the model was trained with `contrast.joint_encoding=shared_image`."""
    _tokens: dict[int, Tokens] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        config: RunConfig,
        samples_I: Integers,
        *,
        tokenizer: Tokenizer,
        max_bytes: int = MAX_BYTES,
    ) -> PairReader:
        """These pairs with all their captions, within the run's limits on lengths. max_bytes: of cached samples."""
        return cls(
            SampleShelf(corpus, max_regions=config.data.max_regions, max_bytes=max_bytes),
            samples_I,
            texts_of_pairs(corpus, samples_I, TextRole.TEXT),
            tokenizer,
            config.data.max_text_tokens,
            config.batch.micro_batch_tokens,
            config.contrast.joint_encoding == "shared_image",
        )

    def select(self, captions: Sequence[int]) -> PairReader:
        """The images of these captions, each with all of its captions."""
        samples_I = self.samples_I[np.unique(self.image_of_C[np.asarray(captions, np.int64)])]
        return dataclasses.replace(
            self, samples_I=samples_I, texts=texts_of_pairs(self.corpus, samples_I, TextRole.TEXT)
        )

    def with_texts(self, texts: PairTexts) -> PairReader:
        """The same images with other texts of theirs."""
        return dataclasses.replace(self, texts=texts)

    @property
    def corpus(self) -> Corpus:
        return self.shelf.corpus

    @property
    def negatives(self) -> PairTexts:
        """Negative rewrites of the captions."""
        return texts_of_pairs(self.corpus, self.samples_I, TextRole.NEGATIVE)

    @property
    def num_images(self) -> int:
        return len(self.samples_I)

    @property
    def num_texts(self) -> int:
        return len(self.texts)

    @property
    def image_of_C(self) -> Integers:
        return self.texts.image_n

    def captions_of(self, image: int) -> range:
        """Numbers of an image's captions, which are consecutive."""
        return range(*np.searchsorted(self.image_of_C, (image, image + 1)).tolist())

    def key(self, caption: int) -> str:
        image = int(self.image_of_C[caption])
        return f"{self.image_key(image)}#{caption - self.captions_of(image).start}"

    def image_key(self, image: int) -> str:
        return self.corpus.key(int(self.samples_I[image]))

    def text_keys(self) -> Integers:
        """[C] equal for captions with the same text. Reads the captions of every image."""
        keys = [[text_key(one.text) for one in self.corpus.captions(sample)] for sample in self.samples_I.tolist()]
        places = zip(self.image_of_C.tolist(), self.texts.caption_n.tolist(), strict=True)
        return np.array([keys[image][number] for image, number in places], np.int64)

    @functools.cached_property
    def image_lengths_I(self) -> Integers:
        """Of the image sequences, including [IMG]."""
        num_regions = np.asarray(self.corpus.num_regions)[self.samples_I].astype(np.int64)
        lengths: Integers = 1 + np.minimum(num_regions, self.shelf.max_regions)
        return lengths

    @functools.cached_property
    def text_lengths_C(self) -> Integers:
        """Of the text sequences, including special tokens."""
        lengths: Integers = np.minimum(self.texts.tokens_n + NUM_TEXT_SPECIALS, self.max_text_tokens)
        return lengths

    def joint_length(self, image: int, text: int) -> int:
        return int(self.image_lengths_I[image] + self.text_lengths_C[text])

    def sample(self, image: int) -> PreparedSample:
        return self.shelf.sample(int(self.samples_I[image]))

    def image(self, image: int) -> ImageInput:
        return self.shelf.image(int(self.samples_I[image]))

    def text(self, text: int) -> str:
        return self.sample(int(self.image_of_C[text])).texts[int(self.texts.number_n[text])]

    def tokens(self, text: int) -> Tokens:
        """[CLS] ... [SEP], cached: a measurement may need each as often as there are images."""
        kept = self._tokens.get(text)
        if kept is None:
            kept = text_input(self.tokenizer.encode(self.text(text)), max_text_tokens=self.max_text_tokens)
            self._tokens[text] = kept
        return kept

    def image_sequence(self, image: int, *, seed: int = 0) -> SequenceInput:
        """An image alone."""
        return clean_sequence(role=SequenceRole.SINGLE_IMAGE, seed=seed, image=self.image(image))

    def text_sequence(self, text: int, *, seed: int = 0) -> SequenceInput:
        """A text alone."""
        return clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=seed, text=self.tokens(text))

    def joint_sequence(self, image: int, text: int, *, seed: int = 0) -> SequenceInput:
        """Any image with any text."""
        return clean_sequence(role=SequenceRole.JOINT_PAIR, seed=seed, image=self.image(image), text=self.tokens(text))

    def joint_sequences(self, image: int, text: int) -> tuple[SequenceInput, ...]:
        """The same, in the form that the model was trained on."""
        return joint_sequences(self.image(image), self.tokens(text), shares_images=self.shares_images)


def joint_sequences(image: ImageInput, text: Tokens, *, shares_images: bool) -> tuple[SequenceInput, ...]:
    """An image with a text, in the form that the model was trained on: one sequence, or an image and a text that attends to it.

    shares_images: the second form, trained by `contrast.joint_encoding=shared_image`.
    """
    if shares_images:
        alone = clean_sequence(role=SequenceRole.SINGLE_IMAGE, image=image)
        return alone, clean_sequence(role=SequenceRole.JOINT_PAIR, text=text, shares_prefix_at=-1)
    return (clean_sequence(role=SequenceRole.JOINT_PAIR, image=image, text=text),)
