"""Regions from bottom-up attention (Anderson et al. 2018), the detector of UNIMO's paper: 2048-d features, 10 to 100 boxes.

As in the original extraction script, regions are the proposals themselves, not their regression, and a box is scored by its
best class after suppression within each class. An image's boxes do not depend on others in its batch: only images of one size
are batched, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

from unimo_ds.config import from_dict
from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.bottom_up_network import POOLED_SIDE, STRIDE, BottomUpNetwork, NetworkSizes
from unimo_ds.data.vision.detectors.bottom_up_weights import canonical
from unimo_ds.data.vision.detectors.choosing import Choosing, choose
from unimo_ds.data.vision.detectors.detector import Detector
from unimo_ds.data.vision.detectors.pooling import pool_regions
from unimo_ds.data.vision.extractor_file import StoredExtractor
from unimo_ds.data.vision.network_weights import fill, read_state
from unimo_ds.data.vision.region_extractor import Found
from unimo_ds.utils.errors import UserError

KIND = "bottom-up"
_MEAN_BGR = (102.9801, 115.9465, 122.7717)
_EXTRA = 1
"""Boxes include their last pixel, as in Caffe."""
_BACKGROUND = 0


@dataclass(frozen=True)
class BottomUpSettings:
    """Defaults are the original's."""

    sizes: NetworkSizes = field(default_factory=NetworkSizes)
    choosing: Choosing = field(default_factory=Choosing)
    shorter_side: int = 600
    longest_side: int = 1000
    """Pixels: an image is scaled to the first, or less if its longer side would exceed the second."""
    considered: int = 6000
    """Anchors with the highest objectness, whose regressed boxes are considered."""
    proposals: int = 300
    proposal_overlap: float = 0.7
    smallest: int = 16
    """Pixels of the original image: proposals with a smaller side are dropped."""
    stored_classes: int = 4


class BottomUpExtractor(Detector[BottomUpSettings, BottomUpNetwork]):
    """Regions of any image from this detector."""

    kind = KIND

    @property
    def feature_size(self) -> int:
        return self.settings.sizes.feature_size

    @property
    def num_classes(self) -> int:
        """Including background, class 0."""
        return self.settings.sizes.num_classes

    @property
    def working_side(self) -> int:
        """Images are decoded at full size and scaled only here, as in the network's training."""
        return 1 << 20

    def _detect(self, images: Sequence[Image.Image]) -> list[Found]:
        pixels_B3HW, scale = self._pixels(images)
        height, width = pixels_B3HW.shape[-2:]
        map_BCHW = self.network.backbone(pixels_B3HW)
        objectness, deltas = (one.cpu() for one in self.network.proposals(map_BCHW))
        return [
            self._regions(
                map_BCHW[i],
                self._proposals(objectness[i], deltas[i], map_BCHW.shape[-2:], height, width, scale),
                height,
                width,
            )
            for i in range(len(images))
        ]

    def _pixels(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, float]:
        """[B, 3, H, W] blue, green, red minus their means, resized without antialiasing as in the original; and the scale."""
        settings = self.settings
        width, height = images[0].size
        scale = settings.shorter_side / min(width, height)
        if round(scale * max(width, height)) > settings.longest_side:
            scale = settings.longest_side / max(width, height)
        # Even for a thin strip the map must have a row and a column.
        size = (max(STRIDE, round(height * scale)), max(STRIDE, round(width * scale)))
        arrays = np.stack([np.asarray(image.convert("RGB"))[:, :, ::-1] for image in images])
        pixels = torch.from_numpy(arrays).to(self.device).permute(0, 3, 1, 2).float()
        pixels -= torch.tensor(_MEAN_BGR, device=self.device)[:, None, None]
        return functional.interpolate(pixels, size, mode="bilinear", align_corners=False), scale

    def _proposals(
        self, objectness: torch.Tensor, deltas: torch.Tensor, cells: torch.Size, height: int, width: int, scale: float
    ) -> torch.Tensor:
        """[R, 4] the best proposals for one image, in pixels of the scaled image; the whole image if there are none."""
        settings = self.settings
        anchors = boxes.grid_anchors(self.network.anchors.cpu(), height=cells[0], width=cells[1], stride=STRIDE)
        all_boxes = boxes.clip(boxes.regress(anchors, deltas, extra=_EXTRA), height=height, width=width, extra=_EXTRA)
        large = ((all_boxes[:, 2:] - all_boxes[:, :2] + _EXTRA) >= settings.smallest * scale).all(1)
        logits = torch.where(large, objectness, float("-inf"))
        order = torch.argsort(logits, descending=True, stable=True)[: min(settings.considered, int(large.sum()))]
        if not len(order):
            return torch.tensor([[0.0, 0.0, width - _EXTRA, height - _EXTRA]])
        kept = boxes.suppress(
            all_boxes[order],
            logits[order],
            threshold=settings.proposal_overlap,
            most=settings.proposals,
            extra=_EXTRA,
        )
        return all_boxes[order[kept]]

    def _regions(self, map_CHW: torch.Tensor, proposals_R4: torch.Tensor, height: int, width: int) -> Found:
        network = self.network
        pooled = pool_regions(map_CHW, proposals_R4, side=POOLED_SIDE, scale=1 / STRIDE)
        features = network.features(pooled)
        probabilities = network.classes(features)
        kept = choose(proposals_R4, probabilities.cpu(), self.settings.choosing, background=_BACKGROUND, extra=_EXTRA)
        here = kept.to(self.device)
        return Found(
            boxes=proposals_R4[kept] / torch.tensor([width, height, width, height]),
            features=features[here].cpu(),
            probabilities=probabilities[here].cpu(),
        )


def from_weights(path: Path) -> BottomUpExtractor:
    """The extractor with the weights of one of the public conversions.

    Raises:
        UserError: missing, damaged, or not this detector's weights.
    """
    sizes, state = canonical(read_state(path), where=str(path))
    network = BottomUpNetwork(sizes)
    fill(network, state, where=str(path))
    return BottomUpExtractor(BottomUpSettings(sizes), network)


def of_stored(stored: StoredExtractor) -> BottomUpExtractor:
    """The extractor in a file.

    Raises:
        UserError: settings or parameters that do not fit.
    """
    settings = from_dict(BottomUpSettings, stored.settings, where=f"settings in {stored.file}")
    if min(settings.sizes.blocks) < 1:
        raise UserError(f"settings in {stored.file}: a stage without blocks")
    network = BottomUpNetwork(settings.sizes)
    fill(network, stored.tensors, where=str(stored.file))
    return BottomUpExtractor(settings, network)
