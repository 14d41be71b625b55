"""The code of docs/extending.md as the modules that it says, for the tests that run it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from unimo_ds import config
from unimo_ds.config import LossWeights
from unimo_ds.data import schema
from unimo_ds.data.prepare import settings, sources
from unimo_ds.data.prepare.readers import protocol
from unimo_ds.data.vision import extractor_file
from unimo_ds.finetune import files, sentences, task
from unimo_ds.finetune.metrics import classification
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.models import heads, layers, unimo
from unimo_ds.recipes.demo import demo
from unimo_ds.tasks import objective

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
NAME = "image_text_matching"
IMPORTED = {
    name: value
    for module in (
        *(dataclasses, config, schema, settings, sources, protocol, files, sentences),
        *(task, classification, heads, layers, unimo, objective),
    )
    for name, value in vars(module).items()
    if not name.startswith("__")
} | {
    one.__name__.rpartition(".")[2]: one
    for one in (extractor_file, torch, functional, Image, Path, Sequence, Iterator, FinetuneConfig, demo)
}


def modules_of_page() -> dict[str, ModuleType]:
    """The page's files by name, each a module that can be imported from where the page puts it."""
    found: dict[str, ModuleType] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        path = Path(block.partition("\n")[0].removeprefix("# "))
        module = ModuleType(".".join(path.with_suffix("").parts))
        module.__dict__.update({**IMPORTED, **found, "np": np})
        sys.modules[module.__name__] = module
        exec(compile(block, f"{PAGE.name}: {path}", "exec"), module.__dict__)
        found[path.stem] = module
    return found


def weights_of(value: float, **others: float) -> LossWeights:
    """With the line of `config.py` that the page asks for."""
    made = dataclasses.make_dataclass("Weights", [(NAME, float, 0.0)], bases=(LossWeights,), frozen=True)
    result: LossWeights = made(**{NAME: value}, **others)
    return result
