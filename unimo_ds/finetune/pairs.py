"""Image-text pairs of a data folder as examples: the captions of one split, their images, their lengths from the index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.corpus import Corpus
from unimo_ds.data.examples import ImageInput, clean_sequence, text_input, text_key
from unimo_ds.data.schema import SequenceInput, SequenceRole
from unimo_ds.data.selection import NUM_TEXT_SPECIALS
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.pairs import choose_pairs, pair_set
from unimo_ds.finetune.images import SampleShelf

Integers = NDArray[np.int64]


class Pairs:
    """The captions (C) and images (I) of some pairs."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        max_regions: int,
        max_text_tokens: int,
        samples: Integers | None = None,
    ) -> None:
        """samples: of the pairs; None: all of the corpus.

        Raises:
            UserError: no pairs.
        """
        self.corpus, self.tokenizer, self.max_text_tokens = corpus, tokenizer, max_text_tokens
        self.max_regions = max_regions
        self.samples_I = choose_pairs(corpus) if samples is None else samples
        self.captions = pair_set(corpus, self.samples_I).captions
        self.image_of_C = self.captions.image_n
        self.shelf = SampleShelf(corpus, max_regions=max_regions)
        self._tokens: dict[int, NDArray[np.int32]] = {}
        self._first_of_I = np.searchsorted(self.image_of_C, np.arange(len(self.samples_I) + 1))

    def select(self, images: Sequence[int]) -> Pairs:
        """These images with all their captions."""
        return Pairs(
            self.corpus,
            self.tokenizer,
            max_regions=self.max_regions,
            max_text_tokens=self.max_text_tokens,
            samples=self.samples_I[np.asarray(images, np.int64)],
        )

    @property
    def num_captions(self) -> int:
        return len(self.captions)

    @property
    def num_images(self) -> int:
        return len(self.samples_I)

    def captions_of(self, image: int) -> range:
        """Numbers of an image's captions, which are neighbours."""
        return range(int(self._first_of_I[image]), int(self._first_of_I[image + 1]))

    def key(self, caption: int) -> str:
        image = int(self.image_of_C[caption])
        return f"{self.image_key(image)}#{caption - self.captions_of(image).start}"

    def image_key(self, image: int) -> str:
        return self.corpus.key(int(self.samples_I[image]))

    def image_length(self, image: int) -> int:
        return self.shelf.length(int(self.samples_I[image]))

    def text_length(self, caption: int) -> int:
        return min(int(self.captions.tokens_n[caption]) + NUM_TEXT_SPECIALS, self.max_text_tokens)

    def image(self, image: int) -> ImageInput:
        return self.shelf.image(int(self.samples_I[image]))

    def text(self, caption: int) -> str:
        sample = self.shelf.sample(int(self.samples_I[self.image_of_C[caption]]))
        return sample.texts[int(self.captions.number_n[caption])]

    def text_keys(self) -> Integers:
        """[C] equal for captions of equal texts. Reads the captions of every image."""
        keys = [[text_key(one.text) for one in self.corpus.captions(sample)] for sample in self.samples_I.tolist()]
        places = zip(self.image_of_C.tolist(), self.captions.caption_n.tolist(), strict=True)
        return np.array([keys[image][number] for image, number in places], np.int64)

    def tokens(self, caption: int) -> NDArray[np.int32]:
        """[CLS] ... [SEP], kept once made: a measurement asks for each as often as there are images."""
        kept = self._tokens.get(caption)
        if kept is None:
            kept = text_input(self.tokenizer.encode(self.text(caption)), max_text_tokens=self.max_text_tokens)
            self._tokens[caption] = kept
        return kept

    def image_sequence(self, image: int, *, seed: int = 0) -> SequenceInput:
        """An image alone."""
        return clean_sequence(role=SequenceRole.SINGLE_IMAGE, seed=seed, image=self.image(image))

    def text_sequence(self, caption: int, *, seed: int = 0) -> SequenceInput:
        """A caption alone."""
        return clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=seed, text=self.tokens(caption))

    def joint_sequence(self, image: int, caption: int, *, seed: int = 0) -> SequenceInput:
        """Any image with any caption."""
        return clean_sequence(
            role=SequenceRole.JOINT_PAIR, seed=seed, image=self.image(image), text=self.tokens(caption)
        )
