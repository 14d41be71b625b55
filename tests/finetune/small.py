"""A tiny untrained checkpoint with its tokenizer, and tiny files in the official forms of the text tasks."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from tests import support
from tests.evaluation import small as pictures
from unimo_ds.config import RunConfig, to_dict
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.schema import Kind, Sample
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import tasks
from unimo_ds.finetune.model import TaskModel
from unimo_ds.finetune.settings import configure
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
    sizes = {"vocabulary_size": vocabulary_size, "region_feature_size": FEATURES, "num_region_classes": CLASSES}
    return RunConfig(recipe="test", model=support.model_config(feed_forward_size=48, **sizes, **changes))


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


def write_images(folder: Path, names: list[str], tokenizer: Tokenizer) -> Path:
    """A data folder of images alone, each under its file's name."""
    samples = (
        StoredSample(Sample("", Kind.IMAGE, "photographs", pictures.regions(number)), details={"file": name})
        for number, name in enumerate(names)
    )
    write_shards(folder, "images", samples, max_samples=5)
    tokenizer.save(folder)
    finish_folder(folder, tokenizer=tokenizer, num_region_classes=CLASSES, command="test")
    return folder


def write_pairs(folder: Path, *, train: int = 12, dev: int = 6) -> Tokenizer:
    """Data folders `train` and `dev` of pairs, with one tokenizer."""
    pictures.write_corpus(folder / "train", num_pairs=train)
    tokenizer = tokenizers.load(folder / "train")
    pairs = (StoredSample(pictures.pair(number)) for number in range(train, train + dev))
    write_shards(folder / "dev", "pairs", pairs, max_samples=5)
    tokenizer.save(folder / "dev")
    finish_folder(folder / "dev", tokenizer=tokenizer, num_region_classes=CLASSES, command="test")
    return tokenizer


def task_config(task_name: str, tokenizer: Tokenizer, *changes: str) -> RunConfig:
    """The configuration of a fine-tuning of the tiny model without dropout."""
    start = run_config(tokenizer.vocabulary_size, hidden_dropout=0.0, attention_dropout=0.0)
    return configure(
        tasks.load(task_name),
        "base",
        start,
        data=Path("nowhere"),
        run_dir=Path("nowhere"),
        start_name="",
        seed=0,
        overrides=("finetune.head_dropout=0", "batch.global_samples=4", *changes),
    )


def open_task(name: str, folder: Path, tokenizer: Tokenizer, split: str = "train", *changes: str) -> tuple:
    """A task, its configuration and the examples of a split."""
    task = tasks.load(name)
    config, assets = task.settle(task_config(name, tokenizer, *changes), folder)
    return task, config, task.open(folder, split, tokenizer=tokenizer, config=config, assets=assets)


def plain_engine(config: RunConfig) -> pictures.PlainEngine:
    """A task's model on the CPU."""
    task = tasks.load(config.finetune.task)
    return pictures.PlainEngine(TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes))
