"""Image captioning (COCO, Flickr): `train/`, `dev/`, `test/`, data folders of pairs made by `unimo prepare import` from the
official captions (`--format karpathy` for COCO's usual split).

The caption is written from [IMG] and the regions. Recipe of the release (unimo.md 6.6): label smoothing 0.1, rate 7e-6, 4 (base)
or 2 (large) on each of 16 V100, 20 or 10 epochs, decay 0.01, beam 5, penalty 0.6, 5 to 50 tokens, four adversarial ascents (base:
step 0.03 without limit; large: 0.05, limit 0.4), which cost twelve times as much: finetune.adversarial.steps=0 leaves them out.
Published on COCO, BLEU-4/CIDEr: 38.8/124.4 (base), 39.6/127.7 (large). The release also shows the model the detector's object
names, which shards of this project do not hold as words; they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import images
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.metrics import captions
from unimo_ds.finetune.pairs import Pairs
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.writing import Source, WritingExamples, WritingTask
from unimo_ds.finetune_config import AdversarialConfig, FinetuneConfig, GenerationConfig
from unimo_ds.utils.errors import UserError


class CaptionExamples:
    """Training: one example a caption. Writing: one prompt an image, all of its captions the references."""

    target_size = 0

    def __init__(self, pairs: Pairs, *, max_target_tokens: int) -> None:
        """max_target_tokens: with the end token."""
        self.pairs, self._max_target = pairs, max_target_tokens
        self.feature_size = pairs.corpus.feature_size
        self.fingerprint = f"{pairs.corpus.fingerprint}/{pairs.num_images}"

    def __len__(self) -> int:
        return self.pairs.num_captions

    @property
    def num_prompts(self) -> int:
        return self.pairs.num_images

    def key(self, index: int) -> str:
        return self.pairs.key(index)

    def prompt_key(self, number: int) -> str:
        return self.pairs.image_key(number)

    def select(self, indices: Sequence[int]) -> CaptionExamples:
        """The images of these captions, each with all of its captions."""
        chosen = np.unique(self.pairs.image_of_C[np.asarray(indices, np.int64)]).tolist()
        return CaptionExamples(self.pairs.select(chosen), max_target_tokens=self._max_target)

    def lengths(self, index: int, seed: int) -> list[int]:
        caption = min(int(self.pairs.captions.tokens_n[index]) + 2, self._max_target + 1)
        return [self.pairs.image_length(int(self.pairs.image_of_C[index])) + caption]

    def make(self, index: int, seed: int) -> TaskExample:
        target = self.pairs.tokenizer.encode(self.pairs.text(index))[: self._max_target - 1]
        source = self.prompt(int(self.pairs.image_of_C[index]))
        return TaskExample(self.key(index), (source.sequence(seed=seed, target=target),))

    def prompt(self, number: int) -> Source:
        return Source(image=self.pairs.image(number))

    def prompt_length(self, number: int) -> int:
        return self.pairs.image_length(number)

    def references(self, number: int) -> list[str]:
        return [self.pairs.text(caption) for caption in self.pairs.captions_of(number)]


class Captioning(WritingTask):
    name, title, best_metric = "captioning", "COCO captions", "cider"
    ends_with_mask = False

    def recipe(self, size: Size) -> Recipe:
        is_base = size == "base"
        adversarial = AdversarialConfig(
            steps=4, step_size=0.03 if is_base else 0.05, limit=0.0 if is_base else 0.4, divergence_weight=1.0
        )
        return Recipe(
            FinetuneConfig(
                "captioning",
                size,
                epochs=20 if is_base else 10,
                label_smoothing=0.1,
                max_target_tokens=50,
                adversarial=adversarial,
                generation=GenerationConfig(beams=5, length_penalty=0.6, min_tokens=5, max_tokens=50),
            ),
            learning_rate=7e-6,
            global_examples=64 if is_base else 32,
            weight_decay=0.01,
        )

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> CaptionExamples:
        assert config.finetune is not None
        corpus = images.open_split(data, split, config, tokenizer=tokenizer)
        pairs = Pairs(
            corpus, tokenizer, max_regions=config.data.max_regions, max_text_tokens=config.data.max_text_tokens
        )
        empty = np.flatnonzero(pairs.captions.tokens_n == 0)
        if len(empty):
            raise UserError(
                f"{corpus.location}: caption {pairs.key(int(empty[0]))} is empty; give it a text or take it out"
            )
        return CaptionExamples(pairs, max_target_tokens=config.finetune.max_target_tokens)

    def measure(
        self, written: Sequence[str], examples: WritingExamples, *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        references = [examples.references(number) for number in range(examples.num_prompts)]
        return captions.measure(written, references, meteor=not quick)


TASK = Captioning()
