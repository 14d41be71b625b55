"""Image captioning (COCO, Flickr): `train/`, `dev/`, `test/`, data folders of pairs made by `unimo prepare import` from the
official captions (`--format karpathy` for COCO's usual split).

The caption is written from [IMG] and the regions. The release's recipe: label smoothing 0.1, rate 7e-6, 4 (base) or 2 (large)
on each of 16 V100, 20 or 10 epochs, decay 0.01, beam 5, penalty 0.6, 5 to 50 tokens, four adversarial ascents (base: step
0.03 without limit; large: 0.05, limit 0.4), which cost twelve times as much: finetune.adversarial.steps=0 leaves them out.
Published on COCO, BLEU-4/CIDEr: 38.8/124.4 (base), 39.6/127.7 (large). The release's model also reads the names of objects
detected with confidence 0.35 (base) or 0.2 (large): finetune.captioning.object_names (`object_words.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.inputs import clean_sequence
from unimo_ds.data.masking import Tokens
from unimo_ds.data.schema import SEP, SequenceInput, SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.finetune import images, object_words
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.metrics import captions
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune.reads import CAPTIONING, WRITING
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.writing import WritingTask, with_target
from unimo_ds.finetune_config import AdversarialConfig, CaptioningConfig, FinetuneConfig, GenerationConfig
from unimo_ds.utils.errors import UserError

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d+)")


class CaptionExamples:
    """Training: one example per caption. Writing: one prompt per image, with all of its captions as references."""

    target_size = 0

    def __init__(self, pairs: PairReader, *, max_target_tokens: int, objects: ObjectWords | None = None) -> None:
        """max_target_tokens: including the end token. objects: None if the model reads no names of objects."""
        self.pairs, self.objects, self._max_target = pairs, objects, max_target_tokens
        self.feature_size = pairs.corpus.feature_size
        self.fingerprint = f"{pairs.corpus.fingerprint}/{pairs.num_images}"
        if objects is not None:
            self.fingerprint += f"/{objects.fingerprint}"
        self._object_texts: dict[int, Tokens] = {}

    def __len__(self) -> int:
        return self.pairs.num_texts

    @property
    def num_prompts(self) -> int:
        return self.pairs.num_images

    def key(self, index: int) -> str:
        return self.pairs.key(index)

    def prompt_key(self, number: int) -> str:
        return self.pairs.image_key(number)

    def select(self, indices: Sequence[int]) -> CaptionExamples:
        return CaptionExamples(self.pairs.select(indices), max_target_tokens=self._max_target, objects=self.objects)

    def lengths(self, index: int, seed: int) -> list[int]:
        caption = min(int(self.pairs.texts.tokens_n[index]) + 2, self._max_target + 1)
        return [self.prompt_length(int(self.pairs.image_of_C[index])) + caption]

    def make(self, index: int, seed: int) -> TaskExample:
        target = self.pairs.tokenizer.encode(self.pairs.text(index))[: self._max_target - 1]
        prompt = self.prompt(int(self.pairs.image_of_C[index]), seed=seed)
        return TaskExample(self.key(index), (with_target(prompt, target, end_id=SEP),))

    def prompt(self, number: int, *, seed: int = 0) -> SequenceInput:
        image, text = self.pairs.image(number), self.object_text(number)
        return clean_sequence(role=SequenceRole.JOINT_PAIR, seed=seed, image=image, text=text)

    def prompt_length(self, number: int) -> int:
        text = self.object_text(number)
        return int(self.pairs.image_lengths_I[number]) + (0 if text is None else len(text))

    def object_text(self, number: int) -> Tokens | None:
        """Of an image, cached: lengths are needed before the image is read, and the index does not have this one."""
        if self.objects is None:
            return None
        if number not in self._object_texts:
            regions = self.pairs.sample(number).regions
            assert regions is not None
            self._object_texts[number] = self.objects.text(regions)
        return self._object_texts[number]

    def references(self, number: int) -> list[str]:
        return [self.pairs.text(caption) for caption in self.pairs.captions_of(number)]

    def official(self, number: int, text: str) -> dict[str, Any] | None:
        """COCO's entry: the image is the number in its file's name; else that name, or its key if the name is not known."""
        name = images.name_of(self.pairs.corpus, int(self.pairs.samples_I[number])) or self.prompt_key(number)
        of_coco = _COCO_NAME.fullmatch(name)
        return {"image_id": int(of_coco[1]) if of_coco else name, "caption": text}


class Captioning(WritingTask):
    name, title, best_metric = "captioning", "COCO captions", "cider"
    official_form = ".json"
    reads = (*WRITING, *CAPTIONING)
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
                captioning=CaptioningConfig(min_confidence=0.35 if is_base else 0.2),
                generation=GenerationConfig(beams=5, length_penalty=0.6, min_tokens=5, max_tokens=50),
            ),
            learning_rate=7e-6,
            global_examples=64 if is_base else 32,
            weight_decay=0.01,
        )

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        """Read the names of objects if the recipe uses them.

        Raises:
            UserError: a file that does not name the detector's classes, pycocoevalcap is not installed, or Java fails.
        """
        captions.check_installed()
        captions.check_java()
        path = config.finetuning.captioning.object_names
        if not path:
            return config, {}
        corpus = images.open_split(data, "train", config, tokenizer=None)
        names = object_words.read_names(Path(path), num_classes=corpus.manifest.num_region_classes)
        return config, {object_words.ASSET: names}

    def find_images(self, data: Path, split: str) -> Corpus:
        return images.find_split(data, split)

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> CaptionExamples:
        pairs = images.open_pairs(data, split, config, tokenizer=tokenizer)
        empty = np.flatnonzero(pairs.texts.tokens_n == 0)
        if len(empty):
            raise UserError(
                f"{pairs.corpus.location}: caption {pairs.key(int(empty[0]))} is empty; give it a text or take it out"
            )
        return CaptionExamples(
            pairs,
            max_target_tokens=config.finetuning.max_target_tokens,
            objects=ObjectWords.of(config, assets, tokenizer),
        )

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        return captions.measure(written, references, meteor=not quick)


TASK = Captioning()
