"""Turns images into the regions that a model was trained on: its data's extractor as a transformers image processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from unimo_ds.data.inputs import ImageInput, image_input
from unimo_ds.data.schema import NO_TAG, Regions
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.images import upright
from unimo_ds.data.vision.region_extractor import RegionExtractor
from unimo_ds.utils.errors import UserError


class UnimoImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Regions of PIL images, [IMG] first. The extractor's parameters: `extractor.safetensors` beside the configuration."""

    def __init__(self, max_regions: int = 100, *, extractor: RegionExtractor | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.model_input_names = ["region_features", "region_boxes", "region_mask", "region_tags"]
        self.max_regions = max_regions
        self.extractor = extractor

    def __call__(  # type: ignore[override]
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = "pt", **unused: Any
    ) -> BatchFeature:
        """region_features [B, R, F] float32, region_boxes [B, R, 5] float32 and region_mask [B, R] int64;
        region_tags [B, R, G] int64 if the extractor makes tags.

        Raises:
            UserError: as `regions_of`.
        """
        return self.prepared(self.regions_of(images), return_tensors)

    def prepared(self, regions: Sequence[Regions], return_tensors: str | None = "pt") -> BatchFeature:
        """Regions as model inputs."""
        inputs = [image_input(one, max_regions=self.max_regions) for one in regions]
        return BatchFeature(pad_images(inputs), tensor_type=return_tensors)

    def regions_of(self, images: Image.Image | Sequence[Image.Image]) -> Sequence[Regions]:
        """Each image's regions with their classes. Images are rotated according to their EXIF data, like the training data.

        Raises:
            TypeError: something that is not a PIL image.
            UserError: the model was trained on regions that no extractor here can make.
        """
        several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        for image in several:
            if not isinstance(image, Image.Image):
                raise TypeError(f"an image is a PIL image, as Image.open(PATH) gives, not {type(image).__name__}")
        if self.extractor is None:
            raise UserError(
                f"this model has no region extractor ({EXTRACTOR_FILE}): it was trained on regions that were given to it; "
                "give region_features and region_boxes of the same detector instead of images"
            )
        return self.extractor.extract([upright(image.copy()) for image in several])

    def to_dict(self) -> dict[str, Any]:
        return {"image_processor_type": type(self).__name__, "max_regions": self.max_regions}

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **others: Any) -> Any:
        written = super().save_pretrained(save_directory, push_to_hub, **others)
        if self.extractor is not None:
            self.extractor.save(save_directory)
        return written

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **others: Any
    ) -> Any:
        processor = super().from_pretrained(pretrained_model_name_or_path, **others)
        file = Path(pretrained_model_name_or_path) / EXTRACTOR_FILE
        processor.extractor = extractors.load(file) if file.is_file() else None
        return processor


def pad_images(images: Sequence[ImageInput]) -> dict[str, Any]:
    """The processor's tensors for some images."""
    padded = {
        "region_features": pad_sequence(
            [torch.from_numpy(image.features).float() for image in images], batch_first=True
        ),
        "region_boxes": pad_sequence([torch.from_numpy(image.boxes) for image in images], batch_first=True),
        "region_mask": pad_sequence([torch.ones(len(image.boxes)).long() for image in images], batch_first=True),
    }
    tags = [torch.from_numpy(image.tags).long() for image in images if image.tags is not None]
    if tags:
        padded["region_tags"] = pad_sequence(tags, batch_first=True, padding_value=NO_TAG)
    return padded
