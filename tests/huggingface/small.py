"""A tiny run as the trainer leaves it, with a region extractor and a tokenizer in the folder of its data."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import safetensors.torch
import torch

from tests import support
from tests.data.prepare.raw import SMALL, picture
from unimo_ds.config import DataConfig, RunConfig, to_dict
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.schema import SEP
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.vision import grid
from unimo_ds.data.vision.grid import GridExtractor
from unimo_ds.models.unimo import Unimo

TEXTS = ("a red ball on green grass", "two dogs play in the snow", "a man rides a brown horse", "the boat is blue")


@functools.cache
def make_tokenizer() -> Tokenizer:
    return tokenizers.train(TEXTS, vocabulary_size=300)


@functools.cache
def make_extractor() -> GridExtractor:
    return grid.fit([picture(number) for number in range(8)], seed=0, settings=SMALL)


def run_config(**changes) -> RunConfig:
    model = support.model_config(
        feed_forward_size=48,
        vocabulary_size=make_tokenizer().vocabulary_size,
        region_feature_size=SMALL.feature_size,
        num_region_classes=SMALL.num_classes,
        # Small weights would make every text as likely as every other.
        initializer_range=0.3,
    )
    data = DataConfig(path="gone", max_text_tokens=64, max_regions=20)
    return RunConfig(recipe="test", model=model, data=data, **changes)


def write_run(run: Path, model: Unimo | None = None, config: RunConfig | None = None) -> Path:
    """A run of one checkpoint."""
    config = config or run_config()
    if model is None:
        model = Unimo(config.model, seed=4)
        torch.nn.init.constant_(model.language_head.bias[SEP : SEP + 1], 2.0)
    target = run / "checkpoints" / "step-7"
    target.mkdir(parents=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    safetensors.torch.save_file(weights, target / "model.safetensors")
    (run / "checkpoints" / "latest").write_text("step-7\n")
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    records = [
        {"step": 6, "time": 1.0, "held_out/loss": 9.0},
        {"step": 7, "time": 2.0, "held_out/retrieval/mean_recall": 0.125, "dev/accuracy": 0.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 8, "he')
    versions = {"torch": "2.0", "apex": "absent"}
    (run / "environment.json").write_text(json.dumps({"versions": versions, "revision": "abc123"}))
    make_tokenizer().save(run)
    make_extractor().save(run)
    return run
