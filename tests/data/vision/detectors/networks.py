"""Detectors with random weights, as users' files have them."""

import torch

from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.bottom_up import BottomUpExtractor, BottomUpSettings
from unimo_ds.data.vision.detectors.bottom_up_network import BottomUpNetwork, NetworkSizes
from unimo_ds.data.vision.detectors.choosing import Choosing
from unimo_ds.data.vision.network_weights import State

SMALL = NetworkSizes(blocks=(1, 1, 2), head_blocks=2, width=8, proposal_channels=16, num_classes=21, num_attributes=6)
PREDICTOR = "roi_heads.box_predictor."
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits"


def random_network(sizes: NetworkSizes, seed: int = 0) -> BottomUpNetwork:
    """Weights and statistics of a scale at which activations stay alive and classes differ."""
    torch.manual_seed(seed)
    network = BottomUpNetwork(sizes)
    randomness = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith(("running_var", "norm.weight")):
            value.uniform_(0.5, 1.5, generator=randomness)
        elif name.endswith(("running_mean", "norm.bias")):
            value.normal_(0, 0.1, generator=randomness)
        elif name.endswith("anchor_deltas.weight"):
            value.normal_(0, 0.003, generator=randomness)
        elif name.endswith("cls_score.weight"):
            value.normal_(0, 0.1, generator=randomness)
    network.anchors.copy_(boxes.cell_anchors(16, (0.5, 1.0, 2.0), (4, 8, 16, 32)))
    return network


def small_extractor(seed: int = 0, **changes: object) -> BottomUpExtractor:
    """A network of this family that takes milliseconds."""
    values = {
        "shorter_side": 64,
        "longest_side": 100,
        "proposals": 12,
        "choosing": Choosing(fewest=4, most=8),
        **changes,
    }
    return BottomUpExtractor(BottomUpSettings(SMALL, **values), random_network(SMALL, seed))


def as_in_caffe(state: State) -> State:
    """The names and order of bottom-up-attention.pytorch: two scores an anchor, the regression that is not used."""
    state = dict(state)
    for part in ("weight", "bias"):
        logits = state.pop(f"{OBJECTNESS}.{part}")
        background = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        # Whole numbers of a small unit add and subtract exactly.
        background, logits = (torch.round(one * 1024) / 1024 for one in (background, logits))
        state[f"{OBJECTNESS}.{part}"] = torch.cat([background, logits + background])
    num_classes, size = state[f"{PREDICTOR}cls_score.weight"].shape
    state[f"{PREDICTOR}bbox_pred.weight"] = torch.zeros(4 * num_classes, size)
    state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(5)
    return state


def as_in_detectron2(state: State) -> State:
    """The names and order of py-bottom-up-attention and LXMERT's detector."""
    state = dict(state)
    for part in ("weight", "bias"):
        state[f"{OBJECTNESS}.{part}"] = torch.round(state[f"{OBJECTNESS}.{part}"] * 1024) / 1024
    for name in ("cls_score.weight", "cls_score.bias", "cls_embed.weight", "attr_linear2.weight", "attr_linear2.bias"):
        state[PREDICTOR + name] = torch.cat([state[PREDICTOR + name][1:], state[PREDICTOR + name][:1]])
    names = {"cls_embed": "cls_embedding", "attr_linear1": "fc_attr", "attr_linear2": "attr_score"}
    for old, new in names.items():
        for part in ("weight", "bias"):
            value = state.pop(f"{PREDICTOR}{old}.{part}", None)
            if value is not None:
                state[f"{PREDICTOR}{new}.{part}"] = value
    return state
