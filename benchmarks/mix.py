"""Samples of the paper's length mix, drawn in memory: what benchmarks train on if there is no data folder.

images : texts : pairs = 1 : 1 : 5 (the recipe's mix). Lengths:
- regions of an image: detections with confidence at least 0.2, 10 to 100 of them (the rule of the released features);
  log-normal around 36, mean about 40. `regions="full"` gives every image 100 instead.
- captions: 5 to 40 tokens, log-normal around 13; a rewrite has its caption's length to within three tokens.
- texts: 16 to 510 tokens, log-normal around 220, longer ones cut at 510: about half of 512, as in English Wikipedia
  (Krell et al. 2021, arXiv 2107.02027, section 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.schema import Caption, Kind, Level, Regions, Rewrite, Sample
from unimo_ds.data.storage.members import texts_of

FEATURES, CLASSES, STORED_CLASSES, VOCABULARY = 2048, 1601, 8, 50265
_SPECIALS = (0, 1, 2, 3, VOCABULARY - 1)


class NumberTokenizer:
    """Texts are numbers separated by spaces, and the numbers are the ids."""

    vocabulary_size = VOCABULARY
    mask_id = VOCABULARY - 1
    special = np.isin(np.arange(VOCABULARY), _SPECIALS)
    # About three in four English words are a single token.
    starts_word = np.arange(VOCABULARY) % 4 != 0
    num_bytes = np.full(VOCABULARY, 4, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.array(text.split(), np.int32) for text in texts]


class MixCorpus:
    """An in-memory corpus with what `data.step_reader` needs."""

    classes_per_region, num_region_classes, vocabulary_size = STORED_CLASSES, CLASSES, VOCABULARY

    def __init__(
        self,
        *,
        images: int = 24,
        texts: int = 24,
        pairs: int = 96,
        regions: Literal["detected", "full"] = "detected",
        text_tokens: int | None = None,
        feature_size: int = FEATURES,
    ) -> None:
        """text_tokens: of every text, without special tokens; None draws lengths. feature_size: 1 if only lengths matter."""
        self.feature_size = feature_size
        self._random, self._regions, self._text_tokens = np.random.default_rng(0), regions, text_tokens
        image_samples = [Sample(f"image-0.tar:{i}", Kind.IMAGE, "images", self._image()) for i in range(images)]
        text_samples = [Sample(f"text-0.tar:{i}", Kind.TEXT, "texts", text=self._text()) for i in range(texts)]
        pair_samples = [self._pair(i, images) for i in range(pairs)]
        self.samples = [*image_samples, *text_samples, *pair_samples]
        self.bytes_read = 0
        self.kinds = np.array([sample.kind for sample in self.samples], np.uint8)
        self.source_names = ("images", "pairs", "texts")
        self.source_ids = np.array([self.source_names.index(sample.source) for sample in self.samples], np.int32)
        self.shard_of = self.source_ids.copy()
        self.num_regions = np.array([len(s.regions.boxes) if s.regions else 0 for s in self.samples], np.int32)
        stored = [texts_of(sample) for sample in self.samples]
        flat = [text for own in stored for text in own]
        self.text_start = np.cumsum([0, *map(len, stored)]).astype(np.int64)
        self.text_role = np.array([text.role for text in flat], np.uint8)
        self.text_level = np.array([text.level for text in flat], np.uint8)
        self.text_caption = np.array([text.caption for text in flat], np.int32)
        self.text_tokens = np.array([text.text.count(" ") + 1 for text in flat], np.int32)
        related = [[index for _, index in sample.related_images] for sample in self.samples]
        self.related_image_start = np.cumsum([0, *map(len, related)]).astype(np.int64)
        self.related_image_index = np.array([index for own in related for index in own], np.int64)

    def key(self, sample: int) -> str:
        return self.samples[sample].key

    def expect(self, samples: Iterable[int]) -> None:
        """Nothing to do: all samples are in memory."""

    def read(self, sample: int) -> Sample:
        return self.samples[sample]

    def _length(self, middle: float, spread: float, least: int, most: int) -> int:
        return int(np.clip(round(self._random.lognormal(np.log(middle), spread)), least, most))

    def _words(self, count: int) -> str:
        return " ".join(map(str, self._random.integers(4, VOCABULARY - 1, count)))

    def _text(self) -> str:
        return self._words(self._text_tokens or self._length(220, 0.9, 16, 510))

    def _image(self) -> Regions:
        count = 100 if self._regions == "full" else self._length(36, 0.45, 10, 100)
        corner, size = self._random.random((count, 2)) * 0.7, self._random.random((count, 2)) * 0.3
        shares = self._random.random((count, STORED_CLASSES))
        return Regions(
            boxes=np.concatenate([corner, corner + size], 1).astype(np.float32),
            features=self._random.random((count, self.feature_size), np.float32).astype(np.float16),
            class_ids=self._random.integers(0, CLASSES, (count, STORED_CLASSES)).astype(np.int32),
            class_probabilities=(shares / shares.sum(1, keepdims=True)).astype(np.float16),
        )

    def _pair(self, number: int, images: int) -> Sample:
        length = self._length(13, 0.4, 5, 40)

        def rewrite(level: Level) -> Rewrite:
            return Rewrite(self._words(max(3, length + int(self._random.integers(-3, 4)))), level)

        levels = (Level.SENTENCE, Level.PHRASE, Level.WORD)
        caption = Caption(
            self._words(length),
            positives=tuple(rewrite(Level.NONE) for _ in range(3)),
            negatives=tuple(rewrite(level) for level in levels for _ in range(6)),
        )
        chosen = self._random.integers(0, images, 2).tolist() if images else []
        return Sample(
            f"pair-0.tar:{number}",
            Kind.PAIR,
            "pairs",
            self._image(),
            captions=(caption,),
            related_texts=tuple(self._words(self._length(13, 0.4, 5, 40)) for _ in range(3)),
            related_images=tuple(("image-0.tar", image) for image in chosen),
        )
