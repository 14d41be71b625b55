"""Regions from a Faster R-CNN of torchvision (ResNet-50 or MobileNet with a feature pyramid): 1024-d features of its box head.

torchvision is not a requirement of this project; it is imported only here, when such an extractor is made. The network is
torchvision's own; boxes follow the rule in `choosing`: a proposal has the regressed box of its most probable object class, and
is scored by its best class after suppression. Features are pooled again, to show what the boxes kept hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimo_ds.config import from_dict
from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.choosing import Choosing, choose
from unimo_ds.data.vision.detectors.detector import Detector
from unimo_ds.data.vision.extractor_file import StoredExtractor
from unimo_ds.data.vision.network_weights import State, fill, read_state
from unimo_ds.data.vision.region_extractor import Found
from unimo_ds.utils.errors import UserError

KIND = "torchvision"
ARCHITECTURES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_BACKGROUND = 0
_EXTRA = 0
"""Coordinates lie between pixels."""


@dataclass(frozen=True)
class TorchvisionSettings:
    """Which network, and which boxes are kept."""

    architecture: str
    num_classes: int
    """Including background, class 0: 91 for COCO's weights."""
    choosing: Choosing = field(default_factory=Choosing)
    stored_classes: int = 4


class TorchvisionExtractor(Detector[TorchvisionSettings, Any]):
    """Regions of any image from one of torchvision's networks."""

    kind = KIND

    @property
    def feature_size(self) -> int:
        size: int = self.network.roi_heads.box_predictor.cls_score.in_features
        return size

    @property
    def num_classes(self) -> int:
        return self.settings.num_classes

    @property
    def working_side(self) -> int:
        return int(self.network.transform.min_size[0])

    def _detect(self, images: Sequence[Image.Image]) -> list[Found]:
        network = self.network
        pixels = [
            torch.from_numpy(np.array(image.convert("RGB"))).to(self.device).permute(2, 0, 1).float() / 255
            for image in images
        ]
        scaled, _ = network.transform(pixels)
        maps = network.backbone(scaled.tensors)
        proposals, _ = network.rpn(scaled, maps)
        sizes = scaled.image_sizes
        features = self._features(maps, proposals, sizes)
        scores, deltas = network.roi_heads.box_predictor(features)
        things = self._boxes_of_things(proposals, scores, deltas, sizes)
        probabilities = torch.split(torch.softmax(scores, -1).cpu(), [len(one) for one in proposals])
        kept = [
            choose(rows, chances, self.settings.choosing, background=_BACKGROUND, extra=_EXTRA)
            for rows, chances in zip(things, probabilities, strict=True)
        ]
        chosen = [rows[index] for rows, index in zip(things, kept, strict=True)]
        again = self._features(maps, [rows.to(self.device) for rows in chosen], sizes).cpu()
        parts = torch.split(again, [len(rows) for rows in chosen])
        return [
            Found(
                boxes=rows / torch.tensor([width, height, width, height]),
                features=part,
                probabilities=chances[index],
            )
            for rows, part, chances, index, (height, width) in zip(
                chosen, parts, probabilities, kept, sizes, strict=True
            )
        ]

    def _features(self, maps: Any, rows: list[torch.Tensor], sizes: Any) -> torch.Tensor:
        heads = self.network.roi_heads
        found: torch.Tensor = heads.box_head(heads.box_roi_pool(maps, rows, sizes))
        return found

    def _boxes_of_things(
        self, proposals: list[torch.Tensor], scores: torch.Tensor, deltas: torch.Tensor, sizes: Any
    ) -> list[torch.Tensor]:
        """The box of each proposal's most probable object class, clipped to the image, on the CPU."""
        decoded = self.network.roi_heads.box_coder.decode(deltas, proposals)
        likeliest = scores[:, 1:].argmax(1) + 1
        rows = decoded[torch.arange(len(decoded), device=decoded.device), likeliest].cpu()
        return [
            boxes.clip(part, height=height, width=width, extra=_EXTRA)
            for part, (height, width) in zip(torch.split(rows, [len(one) for one in proposals]), sizes, strict=True)
        ]


def from_weights(path: Path) -> TorchvisionExtractor:
    """The extractor with weights of one of torchvision's detectors, identified by names and shapes.

    Raises:
        UserError: no torchvision, no such file, or other weights.
    """
    state = read_state(path)
    if _CLASSES not in state:
        raise UserError(f"{path} is no Faster R-CNN of torchvision: it has no {_CLASSES}")
    num_classes = len(state[_CLASSES])
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            own = _builder(architecture)(weights=None, weights_backbone=None, num_classes=num_classes).state_dict()
        if {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in state.items()}:
            return _made(TorchvisionSettings(architecture, num_classes), state, where=str(path))
    raise UserError(f"{path} fits none of torchvision's {', '.join(ARCHITECTURES)}")


def of_stored(stored: StoredExtractor) -> TorchvisionExtractor:
    """The extractor in a file.

    Raises:
        UserError: no torchvision, or settings or parameters that do not fit.
    """
    settings = from_dict(TorchvisionSettings, stored.settings, where=f"settings in {stored.file}")
    return _made(settings, stored.tensors, where=str(stored.file))


def _made(settings: TorchvisionSettings, state: State, *, where: str) -> TorchvisionExtractor:
    if settings.architecture not in ARCHITECTURES:
        raise UserError(f"{where}: architecture {settings.architecture!r} is none of {', '.join(ARCHITECTURES)}")
    build = _builder(settings.architecture)
    network = build(weights=None, weights_backbone=None, num_classes=settings.num_classes)
    fill(network, state, where=where)
    return TorchvisionExtractor(settings, network)


def _builder(architecture: str) -> Callable[..., Any]:
    """
    Raises:
        UserError: torchvision is missing, or does not fit the installed torch.
    """
    try:
        from torchvision.models import detection
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the extractor torchvision needs torchvision beside the torch it was built for ({error}); "
            "docs/preparation.md says how, or use --extractor bottom-up, which needs none"
        ) from None
    builder: Callable[..., Any] = getattr(detection, architecture)
    return builder
