"""Folders of vision encoders as transformers writes them: tiny networks of its own classes, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_LAYERS, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_VIT = {**_LAYERS, "image_size": 64, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
_WINDOWS = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2]}


@dataclass(frozen=True)
class Family:
    """A class of transformers, and what its output is known to be."""

    model: str
    config: transformers.PreTrainedConfig
    tower: str = ""
    """Attribute of the model that is its vision encoder; empty: itself."""
    prefix: int = 0
    """Tokens before those of patches."""
    patches: int = 8
    """Rows and columns of the map."""
    side: int = 64


FAMILIES = {
    "clip": Family(
        "CLIPModel", transformers.CLIPConfig(text_config=_TEXT, vision_config=_VIT), "vision_model", prefix=1
    ),
    "clip-vision": Family("CLIPVisionModelWithProjection", transformers.CLIPVisionConfig(**_VIT), "vision_model", 1),
    "siglip": Family("SiglipModel", transformers.SiglipConfig(text_config=_TEXT, vision_config=_VIT), "vision_model"),
    "dinov2": Family("Dinov2Model", transformers.Dinov2Config(**_VIT), prefix=1),
    "dinov2-registers": Family("Dinov2WithRegistersModel", transformers.Dinov2WithRegistersConfig(**_VIT), prefix=5),
    "dinov3": Family("DINOv3ViTModel", transformers.DINOv3ViTConfig(**_VIT, num_register_tokens=4), prefix=5),
    "vit-classifier": Family("ViTForImageClassification", transformers.ViTConfig(**_VIT), "vit", prefix=1),
    "deit": Family("DeiTModel", transformers.DeiTConfig(**_VIT), prefix=2),
    "beit": Family("BeitModel", transformers.BeitConfig(**_VIT), prefix=1),
    "swin": Family("SwinModel", transformers.SwinConfig(**_WINDOWS, window_size=2), patches=4),
    "convnext": Family(
        "ConvNextForImageClassification", transformers.ConvNextConfig(**_STAGES), "convnext", patches=3, side=96
    ),
    "dinov3-convnext": Family(
        "DINOv3ConvNextModel", transformers.DINOv3ConvNextConfig(**_STAGES), prefix=1, patches=3, side=96
    ),
    "resnet": Family("ResNetModel", transformers.ResNetConfig(embedding_size=8, **_STAGES), patches=3, side=96),
    "mobilenet": Family("MobileNetV2Model", transformers.MobileNetV2Config(depth_multiplier=0.1), patches=3, side=96),
}


def make(family: Family, seed: int = 0) -> transformers.PreTrainedModel:
    """The library's model, ready to be asked."""
    torch.manual_seed(seed)
    model = getattr(transformers, family.model)(family.config)
    # The library's own small numbers leave batch normalisation's statistics at their start; so would pictures look alike.
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("lambda1", "layer_scale_parameter")):
            value.fill_(0.5)
    return model.eval()


def write(folder: Path, model: transformers.PreTrainedModel, *, side: int = 64, crops: bool = False) -> Path:
    """The model and its image processor in a folder, as a user has them."""
    quiet(lambda: model.save_pretrained(folder))
    if crops:
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    else:
        processor = ViTImageProcessorPil(size={"height": side, "width": side})
    processor.save_pretrained(folder)
    return folder


def quiet(function):
    """The function's result, with nothing of the library on the terminal."""
    logging.disable_progress_bar()
    try:
        return function()
    finally:
        logging.enable_progress_bar()
