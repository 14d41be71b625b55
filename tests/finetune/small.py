"""A tiny untrained checkpoint with its tokenizer, and tiny files in the official forms of the text tasks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import safetensors.torch

from unimo_ds.config import ModelConfig, RunConfig, to_dict
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.models.unimo import Unimo

FEATURES, CLASSES = 8, 6
GOOD, BAD = ("good", "fine", "lovely", "great"), ("bad", "dull", "awful", "weak")
THINGS = ("film", "plot", "cast", "ending", "score")


def sentence(number: int) -> tuple[str, int]:
    """A sentence and whether it praises."""
    label = number % 2
    word = (BAD, GOOD)[label][number // 2 % 4]
    return f"the {THINGS[number % 5]} is {word}" + " indeed" * (number % 3), label


def train_tokenizer(folder: Path | None = None) -> Tokenizer:
    texts = [sentence(number)[0] for number in range(60)] + ["a red ball and a blue box number 1 2 3 4 5 6 7 8 9"]
    return tokenizers.train(texts, vocabulary_size=320, output=folder)


def run_config(vocabulary_size: int, **changes) -> RunConfig:
    model = ModelConfig(
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        feed_forward_size=48,
        vocabulary_size=vocabulary_size,
        max_positions=66,
        region_feature_size=FEATURES,
        num_region_classes=CLASSES,
    )
    return RunConfig(recipe="test", model=dataclasses.replace(model, **changes))


def write_checkpoint(folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    """A pre-trained model's export, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or train_tokenizer()
    tokenizer.save(folder)
    config = run_config(tokenizer.vocabulary_size)
    weights = {name: value.detach().contiguous() for name, value in Unimo(config.model, seed=4).named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


def write_sst2(folder: Path, *, train: int = 40, dev: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", range(train)), ("dev", range(train, train + dev))):
        lines = ["sentence\tlabel", *(f"{text} \t{label}" for text, label in map(sentence, numbers))]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder
