"""`unimo export`: one folder with the weights in one safetensors file, the configuration and the tokenizer.

The folder is all that `unimo evaluate` and the fine-tuning tasks need of a run. Nothing in it is a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import safetensors.torch
import torch

from unimo_ds.config import to_dict
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.tokenizer import TOKENIZER_FILE
from unimo_ds.data.tokenizer import load as load_tokenizer
from unimo_ds.evaluation.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load
from unimo_ds.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(checkpoint: Path, to: Path, *, tokenizer: Path | None = None, dtype: str = "fp32") -> list[Path]:
    """Write the model at `checkpoint` (a run, a checkpoint or an export) into the new folder `to`. Returns the files written.

    tokenizer: file or folder; None: the one of the run's data. dtype: fp32, fp16 or bf16, of the stored weights.
    The folder appears whole or not at all.

    Raises:
        UserError: `to` holds something, no tokenizer is found, or it is not the model's; and as `checkpoint.load`.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} already holds something; give a new folder to --to")
    model = load(checkpoint, device=torch.device("cpu"))
    found = load_tokenizer(tokenizer if tokenizer is not None else _tokenizer_of(checkpoint, model.config.data.path))
    if found.vocabulary_size != model.config.model.vocabulary_size:
        raise UserError(
            f"the tokenizer has {found.vocabulary_size} pieces and the model {model.config.model.vocabulary_size}; "
            "give the model's own with --tokenizer"
        )
    # What the weights were started from does not matter to their users, and may not be there.
    config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, initialize_from=None))
    weights = {name: weight.detach().to(DTYPES[dtype]).contiguous() for name, weight in model.module.named_parameters()}
    aside = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        safetensors.torch.save_file(weights, aside / WEIGHTS_FILE, metadata={"format": "pt", "from": model.files.name})
        (aside / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2) + "\n")
        found.save(aside)
        if to.exists():
            to.rmdir()
        os.replace(aside, to)
    except OSError as error:
        raise UserError(f"cannot write {to}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [to / name for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)]


def _tokenizer_of(checkpoint: Path, data: str) -> Path:
    if (checkpoint / TOKENIZER_FILE).is_file():
        return checkpoint / TOKENIZER_FILE
    try:
        return Corpus.open(data).tokenizer_path
    except UserError as error:
        raise UserError(f"the run's data is not there any more ({error}); give --tokenizer FILE") from None
