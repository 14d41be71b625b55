"""A checkpoint in use: images and texts in, vectors and texts out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unimo_ds.data.inputs import ImageInput, clean_sequence, image_input, text_input
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.schema import Regions, SequenceInput, SequenceRole
from unimo_ds.data.vision import region_tags
from unimo_ds.evaluation.encode import Pooled, encode
from unimo_ds.evaluation.pair_reader import joint_sequences
from unimo_ds.export import source
from unimo_ds.export.source import Source
from unimo_ds.finetune import tasks
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune.writing import WritingTask
from unimo_ds.generation.generate import Generated, GenerationSettings, generate, make_prompt
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

Vectors = NDArray[np.float32]
_AT_ONCE = 32
"""Images whose regions are extracted together."""


class ServedModel:
    """Encodes single images and texts into one space, and generates texts."""

    def __init__(self, found: Source) -> None:
        self.source = found
        self.vocabulary = Vocabulary.of(found.tokenizer)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tokenizer: Path | None = None,
        extractor: Path | None = None,
        device: torch.device | None = None,
    ) -> ServedModel:
        """See `export.source.load`."""
        return cls(source.load(path, tokenizer=tokenizer, extractor=extractor, device=device))

    @property
    def size(self) -> int:
        """D, the size of a vector."""
        return self.source.config.model.hidden_size

    @property
    def shrink_to(self) -> int | None:
        """Shorter side, in pixels, beyond which a larger image adds nothing."""
        return None if self.source.extractor is None else self.source.extractor.working_side

    def regions(self, images: Sequence[Image.Image]) -> Sequence[Regions]:
        """Regions of RGB images.

        Raises:
            UserError: the model has no region extractor, or the extractor's regions have tags that do not fit it.
        """
        if self.source.extractor is None:
            raise UserError(
                "this model cannot look at images: no region extractor lies beside it or where its run's data was (the demo's "
                "regions are drawn, not extracted); give the one of its data with --extractor DATA/train"
            )
        found = self.source.extractor.extract(images)
        tables = self.source.config.model.region_tag_sizes
        for one in found:
            region_tags.check(region_tags.sizes_of(one), tables, whose="the regions of an image")
        return found

    def image_vectors(self, images: Sequence[Image.Image]) -> Vectors:
        """[n, D] of length 1, from RGB images encoded alone.

        Raises:
            UserError: as `regions`.
        """
        return self.region_vectors([self.input_of(one) for one in self.regions(images)])

    def input_of(self, regions: Regions) -> ImageInput:
        """What the encoder takes of an image's regions."""
        return image_input(regions, max_regions=self.source.config.data.max_regions)

    def region_vectors(self, inputs: Sequence[ImageInput]) -> Vectors:
        """[n, D] of length 1, from images encoded alone."""
        return self._vectors([clean_sequence(role=SequenceRole.SINGLE_IMAGE, image=image) for image in inputs])

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """[n, D] of length 1, from texts encoded alone.

        Raises:
            UserError: an empty text.
        """
        inputs = [self._text_input(text) for text in texts]
        return self._vectors([clean_sequence(role=SequenceRole.SINGLE_TEXT, text=text) for text in inputs])

    def joint_scores(self, pairs: Sequence[tuple[ImageInput, str]]) -> Vectors:
        """[n] cosines of the pooled [IMG] and [CLS] of images and texts that are encoded together.

        Raises:
            UserError: an empty text.
        """
        shares_images = self.source.config.contrast.joint_encoding == "shared_image"
        sequences = [
            joint_sequences(image, self._text_input(text), shares_images=shares_images) for image, text in pairs
        ]
        pooled = self._encode(sequences)
        scores: Vectors = torch.nn.functional.cosine_similarity(pooled.images_nD, pooled.texts_nD, dim=-1).cpu().numpy()
        return scores

    def write(
        self, images: Iterable[Image.Image | None], texts: Sequence[str | None], settings: GenerationSettings
    ) -> list[list[tuple[str, Generated]]]:
        """`settings.num_texts` texts, best first, for each (image, source text); either may be None, not both.

        images: read in batches and released, so that a folder of photographs needs the memory of a few. A model trained with
        the names of detected objects gets them if there is no source text.

        Raises:
            UserError: an empty source or one that lacks what the task needs, an image and text that are both None, or invalid
                settings.
        """
        tokenizer = self.source.tokenizer
        objects = ObjectWords.of(self.source.config, self.source.assets, tokenizer)
        prompts = []
        for regions, text in zip(self._regions_in_turn(images), texts, strict=True):
            shown = None if regions is None else self.input_of(regions)
            if objects is not None and regions is not None and text is None:
                words = objects.text(regions)
                prompts.append(clean_sequence(role=SequenceRole.JOINT_PAIR, image=shown, text=words))
                continue
            sources = [] if text is None else [tokenizer.encode(one.strip()) for one in self._sources_of(text)]
            prompts.append(
                make_prompt(
                    image=shown,
                    source=sources[0] if sources else None,
                    more_sources=sources[1:],
                    max_source_tokens=self.source.max_text_tokens,
                )
            )
        found = generate(self.source.module, prompts, self.vocabulary, settings)
        return [[(tokenizer.decode(one.tokens).strip(), one) for one in several] for several in found]

    def _sources_of(self, text: str) -> tuple[str, ...]:
        task = None if self.source.task is None else tasks.load(self.source.task)
        return task.sources_of(text) if isinstance(task, WritingTask) else (text,)

    def _regions_in_turn(self, images: Iterable[Image.Image | None]) -> Iterator[Regions | None]:
        for some in batched(images, _AT_ONCE):
            shown = [image for image in some if image is not None]
            found = iter(self.regions(shown) if shown else ())
            yield from (None if image is None else next(found) for image in some)

    def _text_input(self, text: str) -> NDArray[np.int32]:
        if not text.strip():
            raise UserError("a text is empty; give at least one word")
        return text_input(self.source.tokenizer.encode(text), max_text_tokens=self.source.max_text_tokens)

    def _vectors(self, sequences: list[SequenceInput]) -> Vectors:
        pooled = self._encode([(sequence,) for sequence in sequences])
        rows = pooled.images_nD if len(pooled.images_nD) else pooled.texts_nD
        vectors: Vectors = torch.nn.functional.normalize(rows, dim=-1).cpu().numpy()
        return vectors.reshape(len(sequences), -1)

    def _encode(self, items: list[tuple[SequenceInput, ...]]) -> Pooled:
        config = self.source.config
        return encode(
            self.source,
            np.array([sum(sequence.length for sequence in sequences) for sequences in items], np.int64),
            lambda index: items[index],
            micro_batch_tokens=config.batch.micro_batch_tokens,
            feature_size=config.model.region_feature_size,
        )


def own_settings(found: Source) -> GenerationSettings:
    """Generation settings of the task that the model was fine-tuned on; the defaults for a pre-trained model.

    Raises:
        UserError: the model is fine-tuned on a task that does not generate text, or reads more than a text and an image.
    """
    if found.config.finetune is None:
        return GenerationSettings()
    task = tasks.load(found.config.finetune.task)
    if not isinstance(task, WritingTask):
        raise UserError(
            f"{found.files.weights.parent} is fine-tuned on {task.name}, which does not write; give a pre-trained model, or one "
            "fine-tuned on captioning or a text task that writes"
        )
    if task.tag_sizes:
        raise UserError(
            f"{found.files.weights.parent} is fine-tuned on {task.name}: it answers in conversations, not to a text alone; "
            "export it and give its processor the `conversations` (docs/using.md)"
        )
    return task.generation_settings(found.config, found.tokenizer)
