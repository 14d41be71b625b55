"""Padded tensors, as users of transformers have them, to the packed stream and back. Only its sizes wait for the device.

Letters: B inputs, R image positions ([IMG] first), L text positions, M target positions, T stream positions, D hidden size,
G tags of a token or region.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from unimo_ds.data.contrast_table import empty_contrast_table
from unimo_ds.data.schema import FIRST_POSITION, NO_TAG, PackedBatch
from unimo_ds.utils import seed


@dataclass(frozen=True)
class PaddedInputs:
    """Image regions, then text, then target; any of the three may be absent, and each row may be padded anywhere."""

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    """[B, L], 0 at padding of `input_ids`; None: no padding."""
    region_features: torch.Tensor | None
    """[B, R, F], row 0 [IMG]."""
    region_boxes: torch.Tensor | None
    """[B, R, 5]"""
    region_mask: torch.Tensor | None
    """[B, R], 0 at padding of regions; None: no padding."""
    region_tags: torch.Tensor | None = None
    """[B, R, G] indices of further embeddings of regions."""
    target_ids: torch.Tensor | None = None
    """[B, M], right-padded with any ids: no target token attends to later ones."""
    token_tags: torch.Tensor | None = None
    """[B, G, L] indices of further embeddings of `input_ids`; targets have none."""


@dataclass(frozen=True)
class Grid:
    """Where the positions of the stream are among the padded ones."""

    is_there: torch.Tensor
    """[B, R + L + M] bool"""
    num_regions: int
    num_tokens: int
    """R and L."""

    def unpacked(self, stream_TD: torch.Tensor) -> torch.Tensor:
        """[B, R + L + M, D], zero at padding."""
        padded = stream_TD.new_zeros((*self.is_there.shape, stream_TD.shape[-1]))
        return padded.masked_scatter(self.is_there[..., None], stream_TD)

    def first_token(self, stream_TD: torch.Tensor) -> torch.Tensor:
        """[B, D] at the first token of each text, [CLS]; zero without texts."""
        texts = slice(self.num_regions, self.num_regions + self.num_tokens)
        is_token = self.is_there[:, texts]
        if not self.num_tokens:
            return stream_TD.new_zeros(len(is_token), stream_TD.shape[-1])
        rows = torch.arange(len(is_token), device=is_token.device)
        return self.unpacked(stream_TD)[:, texts][rows, is_token.int().argmax(1)]


def pack_padded(inputs: PaddedInputs, *, feature_size: int, max_positions: int) -> tuple[PackedBatch, Grid]:
    """The packed stream of these inputs, and where each position is among the padded ones.

    feature_size: F, for inputs without regions. max_positions: rows of the position table. Dropout masks follow torch's
    random state, one key per input.

    Raises:
        ValueError: neither ids nor regions, features without boxes, tags whose regions are not those of the features, an input
            without any position before its target, or a text longer than the position table.
    """
    features, tags = inputs.region_features, inputs.region_tags
    given = inputs.input_ids if inputs.input_ids is not None else features
    if given is None:
        raise ValueError("give input_ids, region_features, or both")
    if (features is None) != (inputs.region_boxes is None):
        raise ValueError("region_features and region_boxes belong together")
    if tags is not None and (features is None or tags.shape[:-1] != features.shape[:-1]):
        regions = "there are no region_features" if features is None else f"region_features are {tuple(features.shape)}"
        raise ValueError(f"region_tags, {tuple(tags.shape)}, must be [B, R, G], tags of each region; {regions}")
    device, num_inputs = given.device, len(given)

    def mask(tensor: torch.Tensor | None, own: torch.Tensor | None) -> torch.Tensor:
        if tensor is None:
            return torch.zeros((num_inputs, 0), dtype=torch.bool, device=device)
        return torch.ones(tensor.shape[:2], dtype=torch.bool, device=device) if own is None else own.to(device).bool()

    def rows(tensor: torch.Tensor | None, here: torch.Tensor, *size: int, dtype: torch.dtype) -> torch.Tensor:
        """[N, *size] at the positions in `here`; no rows if there is no tensor."""
        return torch.zeros((0, *size), dtype=dtype, device=device) if tensor is None else tensor[here]

    is_region = mask(features, inputs.region_mask)
    is_token, is_target = mask(inputs.input_ids, inputs.attention_mask), mask(inputs.target_ids, None)
    parts = (is_region, is_token, is_target)
    is_there = torch.cat(parts, dim=1)
    widths = [part.shape[1] for part in parts]
    prefix_lengths = is_region.sum(1) + is_token.sum(1)
    if bool((prefix_lengths == 0).any()):
        raise ValueError("an input has neither a region nor a token: its masks are all 0")
    lengths = prefix_lengths + widths[2]
    starts = torch.zeros(num_inputs + 1, dtype=torch.int64, device=device)
    starts[1:] = lengths.cumsum(0)
    place = torch.full(is_there.shape, -1, dtype=torch.int64, device=device)
    num_positions = int(starts[-1])
    place[is_there] = torch.arange(num_positions, device=device)
    region_place, token_place, target_place = torch.split(place, widths, dim=1)
    sequence = torch.repeat_interleave(torch.arange(num_inputs, device=device), lengths)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)

    most = max_positions - FIRST_POSITION
    for is_text in (is_token, is_target):
        if is_text.shape[1] > most and (longest := int(is_text.sum(1).max())) > most:
            raise ValueError(f"a text of {longest} tokens is longer than the model's {most} positions; truncate it")
    texts = ((inputs.input_ids, is_token), (inputs.target_ids, is_target))
    region_rows = rows(features, is_region, feature_size, dtype=torch.float32)
    rows_of_images = is_region.sum(1)
    rows_of_images = rows_of_images[rows_of_images > 0]
    no_tags = torch.zeros((len(region_rows), 0), dtype=torch.int64, device=device)
    seeds = torch.randint(2**62, (num_inputs,), device=device)
    offsets = torch.arange(num_positions, device=device) - starts[sequence]
    batch = PackedBatch(
        sequence_starts=starts.int(),
        prefix_lengths=prefix_lengths.int(),
        sequence_seeds=seeds,
        prefix_of=torch.full((num_inputs,), -1, dtype=torch.int32, device=device),
        position_sequence=sequence.int(),
        position_offset=offsets.int(),
        position_keys=seed.position_keys(seeds, sequence, offsets),
        token_ids=torch.cat([rows(ids, here, dtype=torch.int64) for ids, here in texts]).int(),
        token_at=torch.cat((token_place[is_token], target_place[is_target])),
        token_positions=torch.cat([(here.cumsum(1) - 1 + FIRST_POSITION)[here] for _, here in texts]).int(),
        region_features=region_rows,
        region_boxes=rows(inputs.region_boxes, is_region, 5, dtype=torch.float32),
        region_row=torch.arange(len(region_rows), device=device),
        region_at=region_place[is_region],
        language_at=nothing,
        language_targets=nothing,
        language_objectives=nothing,
        masked_region_at=nothing,
        masked_region_features=torch.zeros((0, feature_size), device=device),
        masked_region_class_ids=torch.zeros((0, 0), dtype=torch.int64, device=device),
        masked_region_class_probabilities=torch.zeros((0, 0), device=device),
        pooled_image_at=nothing,
        pooled_text_at=nothing,
        contrast=empty_contrast_table(),
        longest=int(lengths.max()),
        token_tags=_tags(inputs.token_tags, is_token, num_targets=is_target.numel()),
        region_tags=no_tags if tags is None else tags[is_region].long(),
        image_starts=functional.pad(rows_of_images.cumsum(0), (1, 0)).int(),
        longest_image=is_region.shape[1],
    )
    return batch, Grid(is_there, widths[0], widths[1])


def _tags(tags_BGL: torch.Tensor | None, is_token_BL: torch.Tensor, *, num_targets: int) -> torch.Tensor:
    """[G, N_text], tags of the source tokens, then `num_targets` times no tag; [0, 0] if there are no tags."""
    if tags_BGL is None:
        return torch.zeros(0, 0, dtype=torch.int64, device=is_token_BL.device)
    of_sources = tags_BGL.transpose(0, 1)[:, is_token_BL].long()
    return functional.pad(of_sources, (0, num_targets), value=NO_TAG)
