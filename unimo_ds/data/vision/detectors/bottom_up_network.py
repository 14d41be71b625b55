"""The Faster R-CNN of bottom-up attention in plain torch: ResNet-101 to its fourth stage, proposals, fifth stage on regions.

Anderson et al. 2018 (bottom-up attention); Ren et al. 2015 (Faster R-CNN); He et al. 2016, with the stride in the first
convolution of a block. Trained on Visual Genome: 1600 classes and background (class 0), 400 attributes and none (attribute 0).
The fifth stage has no stride and dilation 2. Normalisation is frozen. Parameters are named as in the public conversions.

Letters: B images of one size, H and W cells of the map, A anchors of a cell, R regions, C classes, F feature size (2048).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn

STRIDE = 16
"""Pixels between cells of the fourth stage."""
POOLED_SIDE = 14
"""Bins per side of a pooled region."""
_EMBEDDED, _HIDDEN = 256, 512
"""Sizes in the attribute head."""
_REGIONS_AT_ONCE = 50


@dataclass(frozen=True)
class NetworkSizes:
    """What differs between networks of this family; the default is the usual one."""

    blocks: tuple[int, int, int] = (3, 4, 23)
    """In the second, third and fourth stage: ResNet-101."""
    head_blocks: int = 3
    width: int = 64
    """Channels of the first convolution; features have 32 times as many."""
    proposal_channels: int = 512
    num_anchors: int = 12
    num_classes: int = 1601
    num_attributes: int = 401
    """0: a network without attributes."""

    @property
    def feature_size(self) -> int:
        return 32 * self.width


class _FrozenNorm(nn.Module):
    """Batch normalisation with stored statistics."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + 1e-5)
        shift = self.bias - self.running_mean * scale
        return inputs * scale[:, None, None] + shift[:, None, None]


class _Convolution(nn.Conv2d):
    """Without bias, followed by normalisation."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (side // 2)
        super().__init__(inputs, outputs, side, stride=stride, padding=padding, dilation=dilation, bias=False)
        self.norm = _FrozenNorm(outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(super().forward(inputs))
        return normalised


class _Block(nn.Module):
    """Bottleneck with the stride in its first convolution."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = _Convolution(inputs, middle, 1, stride=stride)
        self.conv2 = _Convolution(middle, middle, 3, dilation=dilation)
        self.conv3 = _Convolution(middle, outputs, 1)
        self.shortcut = _Convolution(inputs, outputs, 1, stride=stride) if inputs != outputs else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.conv2(self.conv1(inputs).relu_()).relu_()
        kept = inputs if self.shortcut is None else self.shortcut(inputs)
        joined: torch.Tensor = self.conv3(hidden) + kept
        return joined.relu_()


def _stage(inputs: int, outputs: int, number: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = _Block(inputs, outputs, stride=stride, dilation=dilation)
    return nn.Sequential(first, *(_Block(outputs, outputs, stride=1, dilation=dilation) for _ in range(number - 1)))


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(3, width, 7, stride=2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Caffe's pooling: no padding; the last window may extend past the edge.
        return functional.max_pool2d(self.conv1(pixels).relu_(), 3, stride=2, ceil_mode=True)


class _Backbone(nn.Module):
    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        width = sizes.width
        self.stem = _Stem(width)
        self.res2 = _stage(width, 4 * width, sizes.blocks[0])
        self.res3 = _stage(4 * width, 8 * width, sizes.blocks[1], stride=2)
        self.res4 = _stage(8 * width, 16 * width, sizes.blocks[2], stride=2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.res4(self.res3(self.res2(self.stem(pixels))))
        return found


class _ProposalHead(nn.Module):
    def __init__(self, inputs: int, sizes: NetworkSizes) -> None:
        super().__init__()
        channels = sizes.proposal_channels
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, sizes.num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * sizes.num_anchors, 1)


class _Anchors(nn.Module):
    """[A, 4] anchors of the cell at the origin, in the order of the proposal head's channels, stored with the weights."""

    def __init__(self, num_anchors: int) -> None:
        super().__init__()
        self.cell_anchors = nn.ParameterList([nn.Parameter(torch.zeros(num_anchors, 4), requires_grad=False)])


class _ProposalGenerator(nn.Module):
    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.rpn_head = _ProposalHead(16 * sizes.width, sizes)
        self.anchor_generator = _Anchors(sizes.num_anchors)


class _Predictor(nn.Module):
    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.cls_score = nn.Linear(sizes.feature_size, sizes.num_classes)
        if sizes.num_attributes:  # unused here; kept, so that a stored network is complete
            self.cls_embed = nn.Embedding(sizes.num_classes, _EMBEDDED)
            self.attr_linear1 = nn.Linear(sizes.feature_size + _EMBEDDED, _HIDDEN)
            self.attr_linear2 = nn.Linear(_HIDDEN, sizes.num_attributes)


class _Heads(nn.Module):
    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.res5 = _stage(16 * sizes.width, 32 * sizes.width, sizes.head_blocks, dilation=2)
        self.box_predictor = _Predictor(sizes)


class BottomUpNetwork(nn.Module):
    """Map, proposals, features and scores; boxes are chosen elsewhere."""

    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.backbone = _Backbone(sizes)
        self.proposal_generator = _ProposalGenerator(sizes)
        self.roi_heads = _Heads(sizes)

    @property
    def anchors(self) -> torch.Tensor:
        """[A, 4]"""
        anchors: torch.Tensor = self.proposal_generator.anchor_generator.cell_anchors[0]
        return anchors

    def proposals(self, map_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Objectness logits [B, H * W * A] and regression [B, H * W * A, 4] of every anchor, in the order of `grid_anchors`."""
        head = self.proposal_generator.rpn_head
        hidden = head.conv(map_BCHW).relu_()
        objectness = head.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = head.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(len(map_BCHW), -1, 4)
        return objectness, deltas

    def features(self, pooled_RCSS: torch.Tensor) -> torch.Tensor:
        """[R, F] the fifth stage's mean over each pooled region; some regions at a time, as it is most of the work."""
        parts = [self.roi_heads.res5(part).mean((2, 3)) for part in torch.split(pooled_RCSS, _REGIONS_AT_ONCE)]
        return torch.cat(parts)

    def classes(self, features_RF: torch.Tensor) -> torch.Tensor:
        """[R, C] probabilities."""
        return torch.softmax(self.roi_heads.box_predictor.cls_score(features_RF), -1)
