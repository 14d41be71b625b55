"""The officially released weights: a folder with one file per parameter, in PaddlePaddle 1.8's binary format. Needs no Paddle.

Names are from the release's code (encoder in PaddlePaddle/ERNIE, ernie-unimo/src/model). Its matrices are [inputs, outputs];
ours, as torch's, are [outputs, inputs].

A file: uint32 version 0; uint64 number of levels (of ragged sequences; parameters have none), each a uint64 size and that many
bytes; uint32 version 0; int32 size of a protocol-buffer description (field 1: type, field 2: one dimension each); data.
Numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unimo_ds.config import ModelConfig
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.errors import UserError

_DTYPES: dict[int, np.dtype[np.generic]] = {
    1: np.dtype("<i2"),
    2: np.dtype("<i4"),
    3: np.dtype("<i8"),
    4: np.dtype("<f2"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
}
"""Paddle's type number -> dtype."""
_MOST_DIMENSIONS = 9
_HEAD_SIZE = 64

_OUTSIDE_LAYERS = {
    "text_embedding.word.weight": "word_embedding",
    "text_embedding.position.weight": "pos_embedding",
    "text_embedding.norm": "pre_encoder_layer_norm",
    "region_embedding.feature": "image_emb",
    "region_embedding.location": "image_loc",
    "region_embedding.norm": "v_pre_encoder_layer_norm",
    "text_pooler.dense": "pooled_fc_text",
    "image_pooler.dense": "pooled_fc_image",
    "language_head.transform": "mask_lm_trans_fc",
    "language_head.norm": "mask_lm_trans_layer_norm",
    "language_head.bias": "mask_lm_out_fc.b_0",
}
_INSIDE_LAYERS = {
    "attention.output": "multi_head_att_output_fc",
    "attention_norm": "post_att_layer_norm",
    "feed_forward_in": "ffn_fc_0",
    "feed_forward_out": "ffn_fc_1",
    "feed_forward_norm": "post_ffn_layer_norm",
}


@dataclass(frozen=True)
class Report:
    """Result of an import."""

    matched: tuple[str, ...]
    """Parameters of the model that were filled."""
    missing: tuple[str, ...]
    """Parameters not provided, or only in part: unchanged."""
    extra: tuple[str, ...]
    """Files that belong to no parameter: a task's head, the optimizer's state."""
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """(file, its shape, the shape it should have); their parameters are among `missing`."""

    def text(self) -> str:
        """For display."""
        lines = [f"{len(self.matched)} parameters matched"]
        lines += [f"missing, left as it was: {name}" for name in self.missing]
        lines += [
            f"wrong shape, left out: {file} is {_shown(found)}, should be {_shown(wanted)}"
            for file, found, wanted in self.misshapen
        ]
        return "\n".join([*lines, *(f"not used: {name}" for name in self.extra)])


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def read_tensor(path: Path) -> torch.Tensor:
    """The tensor in a file, in its own dtype.

    Raises:
        UserError: not such a file, truncated, or a dtype that parameters do not have.
    """
    try:
        data = path.read_bytes()
        version, num_levels = struct.unpack_from("<IQ", data)
        at = 12
        if version != 0 or num_levels > 8:
            raise ValueError(f"version {version}, {num_levels} levels")
        for _ in range(num_levels):
            (size,) = struct.unpack_from("<Q", data, at)
            at += 8 + size
        version, description = struct.unpack_from("<Ii", data, at)
        at += 8
        if version != 0 or not 0 < description <= 128:
            raise ValueError(f"tensor version {version}, description of {description} bytes")
        kind, shape = _parse_description(data[at : at + description])
        at += description
    except (OSError, struct.error, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a parameter file of PaddlePaddle: {error}") from None
    if kind not in _DTYPES:
        raise UserError(f"{path} holds numbers of Paddle's type {kind}, which no parameter has")
    dtype = _DTYPES[kind]
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) - at != wanted:
        raise UserError(f"{path} is damaged: {len(data) - at} bytes of data instead of {wanted} for {_shown(shape)}")
    return torch.from_numpy(np.frombuffer(data, dtype, offset=at).reshape(shape).copy())


def _parse_description(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Type and shape; dimensions may be separate or packed."""
    kind, shape, at = -1, list[int](), 0
    while at < len(data):
        tag, at = _parse_number(data, at)
        if tag == 0x08:
            kind, at = _parse_number(data, at)
        elif tag == 0x10:
            dimension, at = _parse_number(data, at)
            shape.append(dimension)
        elif tag == 0x12:
            size, at = _parse_number(data, at)
            end = at + size
            while at < end:
                dimension, at = _parse_number(data, at)
                shape.append(dimension)
        else:
            raise ValueError(f"unknown field {tag}")
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) >= 1 << 40:
        raise ValueError(f"shape {shape}")
    return kind, tuple(shape)


def _parse_number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, and the offset after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number without an end")


def sources(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """For each parameter that the release may hold, its file or files (concatenated along the first dimension)."""
    result: dict[str, tuple[str, ...]] = {}

    def add(here: str, *there: str) -> None:
        if here.endswith((".weight", ".bias")):
            result[here] = there
            return
        is_norm = there[0].endswith("layer_norm")
        for last, ending in (("weight", "_scale" if is_norm else ".w_0"), ("bias", "_bias" if is_norm else ".b_0")):
            result[f"{here}.{last}"] = tuple(name + ending for name in there)

    for here, there in _OUTSIDE_LAYERS.items():
        add(here, there)
    for number in range(config.num_layers):
        ours, theirs = f"layers.{number}", f"encoder_layer_{number}_"
        parts = (f"{theirs}multi_head_att_{part}_fc" for part in ("query", "key", "value"))
        add(f"{ours}.attention.query_key_value", *parts)
        for here, there in _INSIDE_LAYERS.items():
            add(f"{ours}.{here}", theirs + there)
    return result


def load_paddle(model: Unimo, folder: Path) -> Report:
    """Fill `model` in place from the folder. Region heads and temperature are not in the release.

    Raises:
        UserError: no folder, a damaged file, or none of the model's parameters in it.
    """
    files = _files(folder)
    own = dict(model.named_parameters())
    matched: list[str] = []
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    used: set[str] = set()
    for name, names in sources(model.config).items():
        used.update(names)
        if not all(file in files for file in names):
            continue
        parts = [read_tensor(files[file]) for file in names]
        wanted = _wanted_shape(own[name], len(names), is_matrix=names[0].endswith(".w_0"))
        wrong = [
            (file, tuple(part.shape), wanted)
            for file, part in zip(names, parts, strict=True)
            if tuple(part.shape) != wanted
        ]
        misshapen += wrong
        if wrong:
            continue
        turned = [part.t() if names[0].endswith(".w_0") else part for part in parts]
        with torch.no_grad():
            own[name].copy_(torch.cat(turned))
        matched.append(name)
    if not matched:
        raise UserError(f"{folder} holds none of this model's parameters; give the folder with word_embedding in it")
    return Report(
        matched=tuple(matched),
        missing=tuple(sorted(own.keys() - set(matched))),
        extra=tuple(sorted(files.keys() - used)),
        misshapen=tuple(misshapen),
    )


def _wanted_shape(parameter: torch.Tensor, num_parts: int, *, is_matrix: bool) -> tuple[int, ...]:
    """Of each of a parameter's files."""
    first, *rest = parameter.shape
    shape = (first // num_parts, *rest)
    return shape[::-1] if is_matrix else shape


def read_sizes(folder: Path) -> ModelConfig:
    """The sizes of the model in the folder; the head size is 64, as in both released sizes.

    Raises:
        UserError: no folder, or a file that determines a size is missing or damaged.
    """
    files = _files(folder)

    def shape(name: str, *, dimensions: int = 2) -> tuple[int, ...]:
        if name not in files:
            raise UserError(f"{folder} has no file {name}; give the folder of the released parameters, one file each")
        found = tuple(read_tensor(files[name]).shape)
        if len(found) != dimensions:
            raise UserError(f"{files[name]} is {_shown(found)}, not a matrix")
        return found

    vocabulary_size, hidden_size = shape("word_embedding")
    if hidden_size % _HEAD_SIZE:
        raise UserError(f"{folder}: hidden size {hidden_size} is not a multiple of the heads' {_HEAD_SIZE}")
    layers = [int(found[1]) for name in files if (found := re.match(r"encoder_layer_(\d+)_ffn_fc_0\.w_0$", name))]
    if not layers:
        raise UserError(
            f"{folder} has no file encoder_layer_0_ffn_fc_0.w_0; give the folder of the released parameters"
        )
    return dataclasses.replace(
        ModelConfig(),
        num_layers=max(layers) + 1,
        hidden_size=hidden_size,
        num_heads=hidden_size // _HEAD_SIZE,
        feed_forward_size=shape("encoder_layer_0_ffn_fc_0.w_0")[1],
        vocabulary_size=vocabulary_size,
        max_positions=shape("pos_embedding")[0],
        region_feature_size=shape("image_emb.w_0")[0]
        if "image_emb.w_0" in files
        else ModelConfig().region_feature_size,
    )


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give the folder of the released parameters, one file each")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
