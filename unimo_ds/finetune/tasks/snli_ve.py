"""SNLI-VE, visual entailment: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl` (gold_label, sentence2,
Flickr30K_ID), and the photographs as a data folder `images`.

Recipe of the release: both pooled vectors added, a layer of 2048, three labels; rate 1e-5, 10 epochs, 12 (base)
or 4 (large) on each of 16 V100, no decay, second beta 0.999; four adversarial ascents of 0.05 with limit 0.4, which cost
twelve times as much: finetune.adversarial.steps=0 leaves them out. Published accuracy, development/test: 80.00/79.10 (base),
81.11/80.63 (large).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.files import first_file, label_of, read_json_lines, text_of
from unimo_ds.finetune.image_text import AnsweredRow, ImageTextExamples, ImageTextRow, find_images
from unimo_ds.finetune.images import ImageNames
from unimo_ds.finetune.labels import LabelTask
from unimo_ds.finetune.model import SumHead
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import AdversarialConfig, FinetuneConfig
from unimo_ds.utils.errors import UserError

_UNDECIDED = "-"
"""Label of lines on which annotators disagreed; these are left out."""
_MIDDLE = 2048


class SnliVe(LabelTask):
    name, title = "snli-ve", "SNLI-VE"
    labels = ("contradiction", "entailment", "neutral")

    def recipe(self, size: Size) -> Recipe:
        adversarial = AdversarialConfig(steps=4, initial_magnitude=0.4, step_size=0.05, limit=0.4)
        return Recipe(
            FinetuneConfig("snli-ve", size, epochs=10, num_outputs=len(self.labels), adversarial=adversarial),
            learning_rate=1e-5,
            global_examples=192 if size == "base" else 64,
            beta2=0.999,
        )

    def find_images(self, data: Path, split: str) -> Corpus:
        return find_images(data, split)

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> ImageTextExamples:
        path = first_file(data, (f"snli_ve_{split}.jsonl", f"{split}.jsonl"))
        read = functools.partial(self.read, path)
        found = ImageTextExamples.open(read, [path], data, split, tokenizer=tokenizer, config=config, target_size=1)
        if not len(found):
            raise UserError(f"{path} holds no example")
        return found

    def read(self, path: Path, names: ImageNames) -> Iterator[ImageTextRow]:
        """The lines of a file; those without a label have no targets."""
        for number, line in read_json_lines(path):
            where = f"{path}:{number}"
            label = line.get("gold_label")
            if label == _UNDECIDED:
                continue
            target = () if label is None else ((0, label_of(str(label), self.labels, where)),)
            image = names.find(str(line.get("Flickr30K_ID") or line.get("Flikr30kID", "")), where)
            text = text_of(line.get("sentence2", ""), where)
            yield ImageTextRow(AnsweredRow(where, target), image, text)

    def make_head(self, config: RunConfig) -> nn.Module:
        return SumHead(config, num_outputs=len(self.labels), middle=_MIDDLE)


TASK = SnliVe()
