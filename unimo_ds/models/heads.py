"""Heads on the hidden states. Each also runs on zero rows, so that all ranks run the same modules (ZeRO-3).

Letters: N rows of a head, D hidden size, V vocabulary size.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import nn
from torch.nn import functional

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.embeddings import TextEmbedding
from unimo_ds.models.layers import Linear, LinearGelu
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.linear import linear


class LanguageHead(nn.Module):
    """FC, gelu, layer norm, then the word table as output matrix, with its own bias.

    The text embedding owns the table. It is held here outside the module tree, and is not an argument of `forward` either:
    ZeRO-3 wraps tensor arguments, which would keep a gathered copy of the table until the backward pass.
    """

    def __init__(self, config: ModelConfig, text_embedding: TextEmbedding) -> None:
        super().__init__()
        self._tied = (text_embedding.word,)
        self.smoothing = 0.0
        """Label smoothing of the losses; fine-tuning sets it."""
        self.transform = LinearGelu(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))

    def forward(
        self, hidden_ND: torch.Tensor, targets_N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """With targets: losses [N] fp32 and, except in training, is_correct [N] bool. Without: logits [N, V] and None."""
        word_weight_VD = self._tied[0].weight
        transformed = self.norm(self.transform(hidden_ND))
        if targets_N is None:
            return linear(transformed, word_weight_VD, self.bias), None
        return tied_cross_entropy(
            transformed,
            word_weight_VD,
            self.bias,
            targets_N,
            smoothing=self.smoothing,
            tells_correct=not self.training,
        )


class Pooler(nn.Module):
    """FC and ReLU on [IMG] or [CLS]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.dense(hidden_ND))


class Temperature(nn.Module):
    """Learned temperature of the contrastive loss: an unconstrained number mapped into [minimum, maximum] by a sigmoid.

    Clamping the parameter in place, as UNIMO-2 does, would be undone by the fp32 master copy that ZeRO steps.
    """

    def __init__(self, *, initial: float, minimum: float, maximum: float) -> None:
        super().__init__()
        # Equal limits make the temperature constant; the parameter remains, so that all runs have the same ones.
        share = (initial - minimum) / (maximum - minimum) if maximum > minimum else 0.5
        # The ends of the range are reached only at infinity; start just inside.
        share = min(max(share, 1e-4), 1 - 1e-4)
        # One dimension, because DeepSpeed 0.19.8 cannot broadcast a 0-d parameter.
        self.raw = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))
        self.minimum, self.maximum = minimum, maximum

    def forward(self) -> torch.Tensor:
        """Scalar fp32."""
        return self.minimum + (self.maximum - self.minimum) * torch.sigmoid(self.raw[0].float())


class ObjectiveHead(nn.Module, abc.ABC):
    """An objective's own head (`tasks/objective.py`). `forward` takes the hidden states [N, D] at `positions`; without
    gradients, none (N = 0): only training steps use it."""

    @abc.abstractmethod
    def positions(self, batch: PackedBatch) -> torch.Tensor:
        """[N] int64, stream positions that it reads, in any order, possibly repeated, on the batch's device."""
