"""The tokenizer of a checkpoint: stored with it, or that of its run's data, or a given one that must be the same."""

from __future__ import annotations

import os
from pathlib import Path

from unimo_ds.config import RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.storage import blend
from unimo_ds.data.tokenizer import TOKENIZER_FILE, Tokenizer
from unimo_ds.evaluation import run_paths
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError


def tokenizer_of(files: CheckpointFiles, config: RunConfig, given: Path | None) -> Tokenizer:
    """The given tokenizer (file or folder), after checking that it is the model's; None: the one that is found.

    Raises:
        UserError: not the model's, judged by the one stored with it or the recorded fingerprint, and always by size; and as
            `find_tokenizer`.
    """
    if given is None:
        return _checked(find_tokenizer(files, config), config, files.weights.parent)
    own = _beside(files.weights.parent, files.config.parent)
    known = config.data.made_with.get("tokenizer") if own is None else own.fingerprint
    return _checked(tokenizers.load(given), config, files.weights.parent, known)


def find_tokenizer(files: CheckpointFiles, config: RunConfig) -> Tokenizer:
    """From an export or a fine-tuning, which store it with the weights or the configuration, or from a run's data.

    Raises:
        UserError: the data is gone or damaged, or holds another tokenizer.
    """
    beside = _beside(files.weights.parent, files.config.parent)
    if beside is not None:
        return beside
    data = run_paths.from_here(config.data.path, files.config)
    if not data or not any("://" in place or os.path.exists(place) for place in locations.split(data)):
        where = f", and the run's data is not at {data} any more" if data else ""
        raise UserError(
            f"no tokenizer lies beside the model at {files.weights.parent}{where}; give the folder that has its own: "
            "--tokenizer DATA/train"
        )
    found = tokenizers.load(blend.still_there(data).tokenizer_path)
    made_with = config.data.made_with.get("tokenizer")
    if made_with is not None and found.fingerprint != made_with:
        raise UserError(
            f"the data at {data} has another tokenizer ({found.fingerprint}) than the model ({made_with}); give the model's own "
            "with --tokenizer"
        )
    return found


def _beside(*folders: Path) -> Tokenizer | None:
    """From the first folder that has one."""
    files = (folder / TOKENIZER_FILE for folder in folders)
    return next((tokenizers.load(file) for file in files if file.is_file()), None)


def _checked(found: Tokenizer, config: RunConfig, path: Path, known: str | None = None) -> Tokenizer:
    """path: the model's, for messages. known: fingerprint of its tokenizer.

    Raises:
        UserError: it is a different one.
    """
    cure = "give the model's own with --tokenizer"
    if found.vocabulary_size != config.model.vocabulary_size:
        pieces = f"{found.vocabulary_size} pieces and the model at {path} {config.model.vocabulary_size}"
        raise UserError(f"the tokenizer has {pieces}; {cure}")
    if known not in (None, found.fingerprint):
        raise UserError(f"the tokenizer {found.fingerprint} is not {known}, that of the model at {path}; {cure}")
    return found
