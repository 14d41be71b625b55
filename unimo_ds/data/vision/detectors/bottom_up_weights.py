"""The public weights of bottom-up attention's detector under one set of names.

There are two families, both made from the Caffe release of Anderson et al.:
- of bottom-up-attention.pytorch (`bua-caffe-frcn-r101-*.pth`): as in Caffe, background is class 0, "no attribute" is attribute
  0, and every anchor has two scores, for background and for object;
- of detectron2 (py-bottom-up-attention, and LXMERT's `frcnn-vg-finetuned`): background and "no attribute" are last, and every
  anchor has one score, its logit.
The network here has them first, and one logit per anchor: the difference of the two scores.
"""

from __future__ import annotations

import math
import re

import torch

from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.bottom_up_network import STRIDE, NetworkSizes
from unimo_ds.data.vision.network_weights import State
from unimo_ds.utils.errors import UserError

_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_OBJECTNESS = "proposal_generator.rpn_head.objectness_logits"
_PREDICTOR = "roi_heads.box_predictor."
_OTHER_NAMES = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}
_UNUSED = re.compile(r"num_batches_tracked$|\.bbox_pred\.|^pixel_(mean|std)$")
"""Regions are the proposals themselves, as in the original extraction, so box regression is not needed."""
_RATIOS, _SCALES = (0.5, 1.0, 2.0), (4, 8, 16, 32)


def canonical(state: State, *, where: str) -> tuple[NetworkSizes, State]:
    """Sizes of the network, and the weights under its names.

    Raises:
        UserError: not this detector's weights.
    """
    state = {_renamed(name): value.float() for name, value in state.items() if not _UNUSED.search(name)}
    needed = ("backbone.stem.conv1.weight", f"{_OBJECTNESS}.weight", f"{_PREDICTOR}cls_score.weight")
    for name in needed:
        if name not in state:
            raise UserError(f"{where} is not bottom-up attention's Faster R-CNN: it has no {name}")
    num_anchors = len(state["proposal_generator.rpn_head.anchor_deltas.weight"]) // 4
    is_caffe = len(state[f"{_OBJECTNESS}.weight"]) == 2 * num_anchors
    if is_caffe:
        for part in ("weight", "bias"):
            background, thing = state[f"{_OBJECTNESS}.{part}"].chunk(2)
            state[f"{_OBJECTNESS}.{part}"] = thing - background
    else:
        for name in (
            "cls_score.weight",
            "cls_score.bias",
            "cls_embed.weight",
            "attr_linear2.weight",
            "attr_linear2.bias",
        ):
            if _PREDICTOR + name in state:
                state[_PREDICTOR + name] = state[_PREDICTOR + name].roll(1, 0)
    if _ANCHORS not in state:
        state[_ANCHORS] = boxes.cell_anchors(STRIDE, _RATIOS, _SCALES) if is_caffe else _centred_anchors()
    return _sizes(state, where), state


def _renamed(name: str) -> str:
    if not name.startswith(_PREDICTOR):
        return name
    layer, _, part = name.removeprefix(_PREDICTOR).partition(".")
    return f"{_PREDICTOR}{_OTHER_NAMES.get(layer, layer)}.{part}"


def _sizes(state: State, where: str) -> NetworkSizes:
    attributes = state.get(f"{_PREDICTOR}attr_linear2.weight")
    return NetworkSizes(
        blocks=tuple(_number_of_blocks(state, f"backbone.res{i}", where) for i in (2, 3, 4)),  # type: ignore[arg-type]
        head_blocks=_number_of_blocks(state, "roi_heads.res5", where),
        width=len(state["backbone.stem.conv1.weight"]),
        proposal_channels=state[f"{_OBJECTNESS}.weight"].shape[1],
        num_anchors=len(state[f"{_OBJECTNESS}.weight"]),
        num_classes=len(state[f"{_PREDICTOR}cls_score.weight"]),
        num_attributes=0 if attributes is None else len(attributes),
    )


def _number_of_blocks(state: State, stage: str, where: str) -> int:
    found = {name.removeprefix(f"{stage}.").partition(".")[0] for name in state if name.startswith(f"{stage}.")}
    if not found:
        raise UserError(f"{where} is not bottom-up attention's Faster R-CNN: it has no {stage}")
    return len(found)


def _centred_anchors() -> torch.Tensor:
    """[A, 4] detectron2's anchors, size by size, centred at the origin, not rounded."""
    rows = []
    for size in (scale * STRIDE for scale in _SCALES):
        for ratio in _RATIOS:
            width = size / math.sqrt(ratio)
            rows.append((-width / 2, -width * ratio / 2, width / 2, width * ratio / 2))
    return torch.tensor(rows)
