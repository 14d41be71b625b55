"""The same model and losses written the usual way: padded batches through Hugging Face's RoBERTa encoder with SDPA and a mask.

What "usual" means here, each time in its better variant:
- Sequences of one kind (texts, images, image with text, and the single encodings of CMCL) form a batch of their own, padded to
  the longest of that batch, not to the limit. Image and text of a pair are moved together, as in UNITER's code, so that padding
  is only at the end.
- Rewrites are joint sequences of their own in the padded batch, each with its image projected again.
- The language head runs on every text position of the corrupted batches and ignores those without a target, as in
  `RobertaForMaskedLM`; `head="masked"` selects those with one first, as in UNITER. Region heads run on masked regions.
- Dropout is torch's.

Letters: B sequences of a batch, L its padded length, R padded regions, W padded tokens, D hidden size, V vocabulary size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaEncoder, RobertaLMHead

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.heads import Pooler, Temperature
from unimo_ds.models.unimo import ModelOutput, Unimo
from unimo_ds.utils.moving import replaced

_IGNORED = -100


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences of one kind. A part that they lack has width 0."""

    token_ids: torch.Tensor
    """[B, W] int64"""
    token_positions: torch.Tensor
    """[B, W] int64"""
    features: torch.Tensor
    """[B, R, F] float16"""
    boxes: torch.Tensor
    """[B, R, 5] float32"""
    order: torch.Tensor | None
    """[B, L] int64: which of the R + W inputs is at each position; None if one part is missing."""
    mask: torch.Tensor
    """[B, 1, L, L] or [B, 1, 1, L] bool, True where a query sees a key."""
    language_targets: torch.Tensor | None
    """[B, L] int64, -100 at positions without a target; None for clean sequences."""

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.mask.shape[0]), int(self.mask.shape[-1])


@dataclass(frozen=True)
class PaddedStep:
    """The sequences of one packed micro-batch as padded batches."""

    batches: tuple[PaddedBatch, ...]
    place_of: torch.Tensor
    """[T] int64: index of each position of the packed stream among all padded positions."""
    packed: PackedBatch
    """Targets, rows to pool, and the contrast table; without the regions, which are in the batches."""

    @property
    def num_padded(self) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in self.batches)

    def to(self, device: torch.device) -> PaddedStep:
        """On `device`; copies are asynchronous if memory is pinned."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True), self.packed.to(device))

    def pin_memory(self) -> PaddedStep:
        return self._with(torch.Tensor.pin_memory, replaced(self.packed, torch.Tensor.pin_memory))

    def _with(self, function: Callable[[torch.Tensor], torch.Tensor], packed: PackedBatch) -> PaddedStep:
        def changed(batch: PaddedBatch) -> PaddedBatch:
            fields = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
            return PaddedBatch(**{name: None if x is None else function(x) for name, x in fields.items()})

        return PaddedStep(tuple(map(changed, self.batches)), function(self.place_of), packed)


def pad(batch: PackedBatch) -> PaddedStep:
    """The same sequences, padded. Corrupted and clean ones, and each kind, are in separate batches."""
    starts = batch.sequence_starts.numpy().astype(np.int64)
    lengths = np.diff(starts)
    num_regions = np.bincount(batch.position_sequence.numpy()[batch.region_at.numpy()], minlength=len(lengths))
    # Clean sequences are those with a pooled vector, and the ones that carry no target.
    asked = np.concatenate([batch.language_at.numpy(), batch.masked_region_at.numpy()])
    corrupted = np.zeros(len(lengths), bool)
    corrupted[batch.position_sequence.numpy()[asked]] = True
    has_text, has_image = lengths > num_regions, num_regions > 0
    make_up = corrupted * 4 + has_text * 2 + has_image
    place_of = np.zeros(int(starts[-1]), np.int64)
    batches, offset = [], 0
    for kind in np.unique(make_up):
        chosen = np.flatnonzero(make_up == kind)
        batches.append(_pad_one(batch, chosen, starts, lengths, num_regions, with_targets=bool(corrupted[chosen[0]])))
        longest = int(lengths[chosen].max())
        for row, sequence in enumerate(chosen):
            first = starts[sequence]
            place_of[first : first + lengths[sequence]] = offset + row * longest + np.arange(lengths[sequence])
        offset += len(chosen) * longest
    targets = dataclasses.replace(batch, region_features=batch.region_features[:0], region_boxes=batch.region_boxes[:0])
    return PaddedStep(tuple(batches), torch.from_numpy(place_of), targets)


def _pad_one(
    batch: PackedBatch,
    chosen: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    num_regions: NDArray[np.int64],
    *,
    with_targets: bool,
) -> PaddedBatch:
    num_tokens = lengths - num_regions
    rows, columns = len(chosen), int(lengths[chosen].max())
    width_regions, width_tokens = int(num_regions[chosen].max()), int(num_tokens[chosen].max())
    token_starts = np.concatenate([[0], np.cumsum(num_tokens)])
    region_starts = np.concatenate([[0], np.cumsum(num_regions)])
    token_ids = torch.ones(rows, width_tokens, dtype=torch.int64)  # 1: [PAD]
    token_positions = torch.ones(rows, width_tokens, dtype=torch.int64)
    features = batch.region_features.new_zeros(rows, width_regions, batch.region_features.shape[1])
    boxes = batch.region_boxes.new_zeros(rows, width_regions, 5)
    order = torch.zeros(rows, columns, dtype=torch.int64)
    mask = torch.zeros(rows, 1, columns, columns, dtype=torch.bool)
    targets = torch.full((rows, columns), _IGNORED)
    place = torch.arange(columns)
    for row, sequence in enumerate(chosen.tolist()):
        tokens, regions, length = int(num_tokens[sequence]), int(num_regions[sequence]), int(lengths[sequence])
        text = slice(int(token_starts[sequence]), int(token_starts[sequence]) + tokens)
        image = batch.region_row[int(region_starts[sequence]) : int(region_starts[sequence]) + regions]
        token_ids[row, :tokens] = batch.token_ids[text]
        token_positions[row, :tokens] = batch.token_positions[text]
        features[row, :regions], boxes[row, :regions] = batch.region_features[image], batch.region_boxes[image]
        order[row, :regions] = torch.arange(regions)
        order[row, regions:length] = width_regions + torch.arange(tokens)
        prefix = int(batch.prefix_lengths[sequence])
        mask[row, 0] = ((place < prefix) | (place <= place[:, None])) & (place < length)
    if with_targets:
        sequence_of = batch.position_sequence[batch.language_at].long()
        row_of = torch.full((len(lengths),), -1).index_copy(0, torch.from_numpy(chosen), torch.arange(rows))
        own = row_of[sequence_of] >= 0
        targets[row_of[sequence_of][own], batch.position_offset[batch.language_at].long()[own]] = (
            batch.language_targets[own]
        )
    is_bidirectional = bool((batch.prefix_lengths.numpy()[chosen] == lengths[chosen]).all())
    return PaddedBatch(
        token_ids=token_ids,
        token_positions=token_positions,
        features=features,
        boxes=boxes,
        order=order if width_regions and width_tokens else None,
        mask=mask[:, :, :1] if is_bidirectional else mask,
        language_targets=targets if with_targets and width_tokens else None,
    )


class UsualModel(nn.Module):
    """Takes padded batches and returns the outputs that the losses need; parameters have Hugging Face's names."""

    def __init__(self, config: ModelConfig, *, head: str = "all") -> None:
        super().__init__()
        sizes = RobertaConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feed_forward_size,
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.max_positions,
            layer_norm_eps=config.layer_norm_epsilon,
            attn_implementation="sdpa",
        )
        self.config, self.head = config, head
        self.word = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.feature = nn.Linear(config.region_feature_size, config.hidden_size)
        self.location = nn.Linear(5, config.hidden_size)
        self.image_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.encoder = RobertaEncoder(sizes)
        self.language_head = RobertaLMHead(sizes)
        self.language_head.decoder.weight = self.word.weight
        self.language_head.decoder.bias = self.language_head.bias
        self.text_pooler, self.image_pooler = Pooler(config), Pooler(config)
        self.region_regression = nn.Linear(config.hidden_size, config.region_feature_size)
        self.region_classification = nn.Linear(config.hidden_size, config.num_region_classes)
        self.temperature = Temperature(initial=0.07, minimum=0.001, maximum=0.5)

    def forward(self, step: PaddedStep) -> ModelOutput:
        packed, hidden, losses, correct = step.packed, [], [], []
        for batch in step.batches:
            states = self._encode(batch)
            hidden.append(states.flatten(0, 1))
            if batch.language_targets is not None and self.head == "all":
                loss, right = self._language(states, batch)
                losses.append(loss)
                correct.append(right)
            elif self.head == "all":
                empty = states.new_zeros(batch.shape[0] * batch.shape[1], dtype=torch.float32)
                losses.append(empty)
                correct.append(empty.bool())
        flat = torch.cat(hidden)

        def at(stream_positions: torch.Tensor) -> torch.Tensor:
            return flat.index_select(0, step.place_of[stream_positions])

        if self.head == "all":
            places = step.place_of[packed.language_at]
            language_losses, language_correct = torch.cat(losses)[places], torch.cat(correct)[places]
        else:
            logits = self.language_head(at(packed.language_at)).float()
            language_losses = functional.cross_entropy(logits, packed.language_targets, reduction="none")
            language_correct = logits.argmax(-1) == packed.language_targets
        regions = at(packed.masked_region_at)
        return ModelOutput(
            language_losses=language_losses,
            language_correct=language_correct,
            region_predictions=self.region_regression(regions),
            region_class_logits=self.region_classification(regions),
            pooled_images=self.image_pooler(at(packed.pooled_image_at)),
            pooled_texts=self.text_pooler(at(packed.pooled_text_at)),
            temperature=self.temperature(),
        )

    def _encode(self, batch: PaddedBatch) -> torch.Tensor:
        """[B, L, D]"""
        parts = []
        if batch.features.shape[1]:
            dtype = self.feature.weight.dtype
            image = self.feature(batch.features.to(dtype)) + self.location(batch.boxes.to(dtype))
            parts.append(self.dropout(self.image_norm(image)))
        if batch.token_ids.shape[1]:
            text = self.word(batch.token_ids) + self.position(batch.token_positions)
            parts.append(self.dropout(self.text_norm(text)))
        embedded = torch.cat(parts, 1)
        if batch.order is not None:
            embedded = embedded.gather(1, batch.order.unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))
        states: torch.Tensor = self.encoder(embedded, attention_mask=batch.mask).last_hidden_state
        return states

    def _language(self, states: torch.Tensor, batch: PaddedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and hits at every position of the batch, [B * L]: logits of every text position, most of them unused.

        In batches of pairs the image's positions are left out: text positions are gathered to [B, W] first.
        """
        targets = batch.language_targets
        assert targets is not None
        rows, columns = batch.shape
        if batch.order is None:
            logits = self.language_head(states)
            losses = functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="none"
            )
            return losses, logits.detach().argmax(-1).flatten() == targets.flatten()
        num_regions = (batch.order < batch.features.shape[1]).sum(1) - (batch.order == 0).sum(1) + 1
        width = batch.token_ids.shape[1]
        places = (num_regions[:, None] + torch.arange(width, device=states.device)).clamp(max=columns - 1)
        texts = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        wanted = targets.gather(1, places)
        logits = self.language_head(texts)
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        right = logits.detach().argmax(-1) == wanted
        # Positions past the end repeat the last one, which has no target if any sequence is shorter.
        flat = (places + torch.arange(rows, device=states.device)[:, None] * columns).flatten()
        all_losses = losses.new_zeros(rows * columns).index_add(0, flat, losses * (wanted.flatten() != _IGNORED))
        return all_losses, torch.zeros_like(all_losses, dtype=torch.bool).index_put((flat,), right.flatten())


_OUTSIDE = {
    "text_embedding.word": "word",
    "text_embedding.position": "position",
    "text_embedding.norm": "text_norm",
    "region_embedding.feature": "feature",
    "region_embedding.location": "location",
    "region_embedding.norm": "image_norm",
    "language_head.transform": "language_head.dense",
    "language_head.norm": "language_head.layer_norm",
    "text_pooler.dense": "text_pooler.dense",
    "image_pooler.dense": "image_pooler.dense",
    "region_regression": "region_regression",
    "region_classification": "region_classification",
}
_INSIDE = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


@torch.no_grad()
def copy_weights(source: Unimo, target: UsualModel) -> None:
    """Copy all weights of `source` to `target`."""
    theirs: dict[str, Any] = dict(source.named_modules())
    ours: dict[str, Any] = dict(target.named_modules())
    pairs = list(_OUTSIDE.items())
    for number in range(source.config.num_layers):
        pairs += [(f"layers.{number}.{name}", f"encoder.layer.{number}.{other}") for name, other in _INSIDE.items()]
        joined = theirs[f"layers.{number}.attention.query_key_value"]
        parts = [ours[f"encoder.layer.{number}.attention.self.{name}"] for name in ("query", "key", "value")]
        for part, weight, bias in zip(parts, joined.weight.chunk(3), joined.bias.chunk(3), strict=True):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    for name, other in pairs:
        for last, parameter in theirs[name].named_parameters(recurse=False):
            getattr(ours[other], last).copy_(parameter)
    target.language_head.bias.copy_(source.language_head.bias)
    target.temperature.raw.copy_(source.temperature.raw)
