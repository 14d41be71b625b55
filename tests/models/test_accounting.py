"""Counts from sizes alone against the real model, and against the published sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import support
from unimo_ds.config import ModelConfig
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import SequenceRole
from unimo_ds.models.accounting import StreamShape, count_parameters, forward_flops, training_flops
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.seed import generator

BASE = ModelConfig()
LARGE = ModelConfig(num_layers=24, hidden_size=1024, num_heads=16, feed_forward_size=4096)


def test_published_sizes():
    """reference: 125.6 M and 356.4 M for embeddings, image inputs and encoder; 130.3 M and 363.4 M with heads."""
    assert count_parameters(BASE).encoder == pytest.approx(125.6e6, abs=0.05e6)
    assert count_parameters(BASE).total == pytest.approx(130.3e6, abs=0.05e6)
    assert count_parameters(LARGE).encoder == pytest.approx(356.4e6, abs=0.05e6)
    assert count_parameters(LARGE).total == pytest.approx(363.4e6, abs=0.05e6)


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        LARGE,
        support.model_config(),
        support.model_config(region_tag_sizes=(4, 5)),
        support.model_config(region_tag_sizes=(4, 5), num_image_layers=3),
    ],
    ids=["base", "large", "small", "with tags", "with image layers"],
)
def test_formula_equals_the_model(config):
    with torch.device("meta"):
        model = Unimo(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config).total


@pytest.mark.parametrize("num_image_layers", [0, 2])
def test_operations_equal_those_that_torch_counts(num_image_layers):
    config = support.model_config(
        hidden_dropout=0.0, attention_dropout=0.0, num_image_layers=num_image_layers, region_tag_sizes=(7,)
    )
    random = generator(3)
    # Lengths of exactly 8 and 16 positions, which the bucketed attention does not pad.
    sequences = [
        support.sequence(SequenceRole.CORRUPTED, 1, text=support.tokens(random, 6), corrupt=True),
        support.sequence(
            SequenceRole.CORRUPTED,
            2,
            image=support.regions(random, 7),
            text=support.tokens(random, 6),
            corrupt=True,
        ),
    ]
    batch = pack_sequences(sequences)
    batch = dataclasses.replace(batch, region_tags=torch.arange(-1, 7)[:, None])
    shape = StreamShape(
        num_positions=24,
        sum_squared_lengths=8 * 8 + 16 * 16,
        num_regions=8,
        sum_squared_images=8 * 8,
        num_language=len(batch.language_at),
        num_masked_regions=len(batch.masked_region_at),
        num_pooled=len(batch.pooled_image_at) + len(batch.pooled_text_at),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Unimo(config)(batch)
    assert forward_flops(config, shape) == counter.get_total_flops()
    assert training_flops(config, shape) == 3 * forward_flops(config, shape)
