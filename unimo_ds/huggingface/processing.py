"""Images and texts to the model's inputs, and tokens back to text."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from unimo_ds.data.conversation import lay_out
from unimo_ds.data.schema import CLS, NO_TAG, PAD, SEP, Regions
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.vision.object_words import words_of
from unimo_ds.huggingface.image_processing import UnimoImageProcessor


class UnimoProcessor(ProcessorMixin):  # type: ignore[misc]
    """`processor(images=..., text=...)` returns the inputs that every class of the family takes."""

    def __init__(
        self,
        image_processor: UnimoImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        object_names: Sequence[str] | None = None,
        min_confidence: float = 0.35,
        max_object_tokens: int = 100,
        **others: Any,
    ) -> None:
        """object_names: of the extractor's classes, for a model trained with the names of detected objects: these become the
        text of images without one, limited by `min_confidence` and `max_object_tokens` (`CaptioningConfig`).
        """
        super().__init__(image_processor, tokenizer, **others)
        self.object_names = None if object_names is None else list(object_names)
        self.min_confidence, self.max_object_tokens = min_confidence, max_object_tokens

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> BatchFeature:
        """options: of the tokenizer (padding, truncation, max_length); padding is on unless switched off.

        Raises:
            ValueError: neither images nor texts, or different numbers of them.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        values: dict[str, Any] = {}
        if images is not None:
            regions = self.image_processor.regions_of(images)
            values |= self.image_processor.prepared(regions, return_tensors)
            if text is None and self.object_names is not None:
                text = [self._objects_of(one) for one in regions]
                options = {"truncation": True, "max_length": self.max_object_tokens, **options}
        if text is not None:
            several = [text] if isinstance(text, str) else list(text)
            values |= self.tokenizer(several, return_tensors=return_tensors, **{"padding": True, **options})
        sizes = {len(values[name]) for name in ("input_ids", "region_features") if name in values}
        if len(sizes) > 1:
            raise ValueError(
                f"as many images as texts are wanted, not {' and '.join(map(str, sorted(sizes)))}; to compare images with texts, "
                "process each alone, for get_image_features and get_text_features"
            )
        return BatchFeature(values)

    def _objects_of(self, regions: Regions) -> str:
        return words_of(
            regions,
            self.object_names or (),
            min_confidence=self.min_confidence,
            max_regions=self.image_processor.max_regions,
        )

    def conversations(self, passages: Sequence[str], turns: Sequence[Sequence[str]]) -> BatchFeature:
        """Inputs for a model that answers a conversation's last question (CoQA): `input_ids`, `attention_mask`, `token_tags`.

        turns: for each passage: question, answer, ..., question.

        Raises:
            ValueError: different numbers of passages and turns, or a conversation that does not end in a question.
        """
        if len(passages) != len(turns):
            raise ValueError(f"{len(passages)} passages and {len(turns)} conversations; each passage has one")
        if not all(len(one) % 2 for one in turns):
            raise ValueError("turns are question, answer, ..., question: an odd number of them")
        inner: tokenizers.Tokenizer = self.tokenizer.backend_tokenizer
        rows = []
        for passage, said in zip(passages, turns, strict=True):
            pieces = [np.array(inner.encode(text, add_special_tokens=False).ids, np.int32) for text in (passage, *said)]
            rows.append(lay_out(pieces[0], pieces[1:], max_tokens=self.tokenizer.model_max_length))
        ids = pad_sequence([torch.from_numpy(text).long() for text, _ in rows], batch_first=True, padding_value=PAD)
        mask = pad_sequence([torch.ones(len(text)).long() for text, _ in rows], batch_first=True)
        tags = pad_sequence([torch.from_numpy(own.T).long() for _, own in rows], batch_first=True, padding_value=NO_TAG)
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "token_tags": tags.transpose(1, 2)})

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **others: Any) -> Any:
        # transformers writes the image processor's settings into its own file, but not its parameters.
        self.image_processor.save_pretrained(save_directory)
        return super().save_pretrained(save_directory, push_to_hub, **others)


def fast_tokenizer(tokenizer: Tokenizer, *, max_tokens: int) -> PreTrainedTokenizerFast:
    """The same tokenizer in transformers' form: the same ids for every text, with [CLS] and [SEP] around it.

    Names of special tokens inside a text stay ordinary characters, as in training.
    """
    inner: tokenizers.Tokenizer = copy.deepcopy(tokenizer.inner)
    inner.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", CLS), ("</s>", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    )
