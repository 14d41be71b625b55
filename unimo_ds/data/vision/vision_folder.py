"""A vision encoder from a folder saved by transformers: its configuration, weights, preprocessing of pixels, and patches.

Nothing is downloaded or unpickled, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from unimo_ds.data.vision.network_weights import State
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.foreign_models import WITHOUT_CODE, by_the_library

_NEEDED = "config.json, model.safetensors and preprocessor_config.json"
# Raised by the library on configurations and weights that it cannot handle.
_LIBRARY_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    IndexError,
    ZeroDivisionError,
    SafetensorError,
    StrictDataclassError,
)
_PRIVATE = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")
"""Entries of a configuration that say where it came from, not what is computed."""
_LARGEST_SIDE = 4096
_OWN_WAYS = ("include_top", "rescale_offset")
"""Entries of an image processor that does more than scale and normalise pixels (EfficientNet)."""


@dataclass(frozen=True)
class Pixels:
    """The preprocessing with which the encoder was trained."""

    height: int
    width: int
    resample: int
    """Pillow's code: 2 bilinear, 3 bicubic."""
    factor: float
    """Multiplies bytes before mean and deviation are applied."""
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    blue_first: bool = False

    def check(self, where: str) -> None:
        """
        Raises:
            UserError: impossible numbers.
        """
        sizes_fit = 1 <= min(self.height, self.width) <= max(self.height, self.width) <= _LARGEST_SIDE
        if not sizes_fit or self.resample not in list(Image.Resampling) or min(self.deviation) <= 0:
            raise UserError(f"{where} has a size, a resample or a deviation that is none: {self}")

    def of(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """[N, 3, height, width] float32 of RGB images of any sizes, each resized as a whole."""
        size, resample = (self.width, self.height), Image.Resampling(self.resample)
        arrays = np.stack([np.asarray(image.convert("RGB").resize(size, resample)) for image in images])
        mean, deviation = (torch.tensor(one)[:, None, None] for one in (self.mean, self.deviation))
        pixels = (torch.from_numpy(arrays).permute(0, 3, 1, 2) * self.factor - mean) / deviation
        return pixels.flip(1) if self.blue_first else pixels


def read(folder: Path) -> tuple[dict[str, Any], Pixels, State]:
    """The encoder's configuration, preprocessing and tensors; those missing in the folder are NaN.

    Raises:
        UserError: no such folder, files missing or damaged, or a model that takes no images.
    """
    _check_files(folder)
    with in_one_sentence(f"cannot read the model in {folder}"):
        whole = AutoConfig.from_pretrained(str(folder), **WITHOUT_CODE)
        if getattr(whole, "quantization_config", None):
            raise UserError(f"the model in {folder} is quantised; save it whole")
        model, found = AutoModel.from_pretrained(
            str(folder),
            config=by_the_library(whole),
            **WITHOUT_CODE,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    encoder = model.get_encoder("image")
    if not isinstance(encoder, PreTrainedModel) or encoder.main_input_name != "pixel_values":
        kind = model.config.model_type
        raise UserError(f"the model in {folder} ({kind}) takes no pictures; name a folder that holds a vision encoder")
    for name, value in model.state_dict().items():
        if name in found["missing_keys"] and value.is_floating_point():
            value.fill_(math.nan)
    config = json.loads(encoder.config.to_json_string(use_diff=False))
    kept = {name: value for name, value in config.items() if name not in _PRIVATE}
    return kept, _pixels(folder, config), encoder.state_dict()


def _check_files(folder: Path) -> None:
    """
    Raises:
        UserError: no folder, or one for which the library would look elsewhere or unpickle.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one that holds a vision encoder: {_NEEDED}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; name a folder that transformers wrote: {_NEEDED}")
    if not any(folder.glob("*.safetensors")):
        pickled = next((path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}")), None)
        if pickled is None:
            raise UserError(f"{folder} has no weights; name a folder that transformers wrote: {_NEEDED}")
        raise UserError(
            f"{folder} has its weights in {pickled} alone, a pickle, and reading that may run what it says; "
            "write them as safetensors with save_pretrained"
        )


def build(config: Mapping[str, Any], *, where: str) -> torch.nn.Module:
    """The encoder of a configuration, with random weights.

    Raises:
        UserError: not a configuration of this library, or not of an encoder that it can make by itself.
    """
    with in_one_sentence(f"cannot make the encoder of {where}"):
        own = copy.deepcopy(dict(config))  # some models write into it
        made = by_the_library(AutoConfig.for_model(**own))
        network: torch.nn.Module = AutoModel.from_config(made, trust_remote_code=False)
    return network


def patches(network: Any, pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """[N, F, rows, columns] last hidden states at each place of the images.

    Raises:
        UserError: the output is not a map. The library's errors on images of a wrong size are not caught here.
    """
    height, width = pixels_N3HW.shape[-2:]
    hidden = getattr(network(pixel_values=pixels_N3HW), "last_hidden_state", None)
    found = None
    if isinstance(hidden, torch.Tensor) and len(hidden) == len(pixels_N3HW):
        if hidden.ndim == 3:
            found = _without_prefix(hidden, height, width, network.config)
        elif hidden.ndim == 4:
            maps = (hidden, hidden.permute(0, 3, 1, 2))
            found = next((one for one in maps if one.shape[2] * width == one.shape[3] * height), None)
    if found is None or min(found.shape[2:]) < 2:
        raise UserError(
            f"the encoder ({network.config.model_type}) gives no map of patches ({tuple(getattr(hidden, 'shape', ()))} of a "
            f"picture of {height} x {width}); use another, or one with smaller patches"
        )
    return found


def _without_prefix(hidden_NLF: torch.Tensor, height: int, width: int, config: Any) -> torch.Tensor | None:
    """The map in a sequence of tokens, after one, no or two (distilled) class tokens and the registers that `config` states."""
    registers = getattr(config, "num_register_tokens", 0) or 0
    patch = getattr(config, "patch_size", 1)
    for num_classes in (1, 0, 2):
        places_NLF = hidden_NLF[:, registers + num_classes :]
        rows = math.isqrt(places_NLF.shape[1] * height // width)
        columns = rows * width // height
        # Tokens at the end (for detections) may look like a larger map, but no map is finer than its patches.
        is_too_fine = isinstance(patch, int) and rows * patch > height
        if rows * columns == places_NLF.shape[1] and rows * width == columns * height and not is_too_fine:
            return places_NLF.transpose(1, 2).reshape(len(hidden_NLF), -1, rows, columns)
    return None


def _pixels(folder: Path, config: Mapping[str, Any]) -> Pixels:
    """What the folder's image processor does to pixels, except cropping.

    Raises:
        UserError: it is not stated, or more than scaling and normalising.
    """
    told, where = _processor(folder), f"the image processor in {folder}"
    given = next((name for name in _OWN_WAYS if told.get(name)), None)
    if given is not None:
        raise UserError(f"{where} prepares pixels in a way of its own ({given}); use another encoder")
    blue_first = bool(told.get("do_flip_channel_order"))  # MobileViT, which normalises nothing
    normalises = told.get("do_normalize", not blue_first)
    height, width = _size(told, config, where)
    values = {
        "height": height,
        "width": width,
        "resample": told.get("resample", int(Image.Resampling.BILINEAR)),
        "factor": told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1,
        "mean": told.get("image_mean") if normalises else [0, 0, 0],
        "deviation": told.get("image_std") if normalises else [1, 1, 1],
        "blue_first": blue_first,
    }
    found: Pixels = strict_json.typed(Pixels, values, where=where)
    found.check(where)
    return found


def _size(told: Mapping[str, Any], config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Height and width after the processor has scaled and cropped, or else those in the encoder's configuration."""
    for size in (told.get("crop_size") if told.get("do_center_crop") else told.get("size"), config.get("image_size")):
        if isinstance(size, dict):
            side = size.get("shortest_edge")
            size = [size.get("height", side), size.get("width", side)]
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise UserError(f"{where} tells no size of pictures (size, crop_size); save it anew")


def _processor(folder: Path) -> dict[str, Any]:
    """Its JSON, which some versions of the library store within that of a processor for images and texts."""
    for file, key in (
        (folder / "preprocessor_config.json", None),
        (folder / "processor_config.json", "image_processor"),
    ):
        if file.is_file():
            content = strict_json.read(file, dict[str, Any], cure="save the image processor anew")
            found = content if key is None else content.get(key)
            if isinstance(found, dict):
                return found
    raise UserError(
        f"{folder} has no preprocessor_config.json, which says what the encoder's pixels are; save its image processor there too"
    )


@contextlib.contextmanager
def in_one_sentence(problem: str) -> Iterator[None]:
    """Turns the library's errors into one sentence each (UserError), with nothing else on the terminal."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except _LIBRARY_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{problem}: {reason[:300] or type(error).__name__}") from None
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
