"""Marian models (such as OPUS-MT) in PyTorch, from a folder that `transformers` can load: weights, spm files, vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unimo_ds.data.prepare.rewriting.translation.protocol import in_batches, one_line
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.foreign_models import WITHOUT_CODE, by_the_library

_LONGEST = 256
"""Limit on tokens of a text, and of its translation; lower if the model has fewer positions."""


class MarianTranslator:
    """One direction of translation. Beam search, so that results are deterministic."""

    def __init__(
        self, folder: Path, *, batch_size: int = 32, beams: int = 4, device: torch.device | None = None
    ) -> None:
        """
        device: None: a GPU if there is one. On GPUs in half precision.

        Raises:
            UserError: no such folder, not a Marian model, or `sentencepiece` is missing.
        """
        self._batch_size, self._beams = batch_size, beams
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(folder)
        self._model = _load_model(folder).to(self._device).eval()
        self._longest = min(_LONGEST, self._model.config.max_position_embeddings)
        if self._device.type == "cuda":
            self._model = self._model.half()

    @torch.inference_mode()
    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        return in_batches(texts, self._batch_size, lambda batch: self._translate(batch, number))

    def _translate(self, texts: list[str], number: int) -> list[list[str]]:
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self._longest)
        width = int(inputs["input_ids"].shape[1])
        made = self._model.generate(
            **inputs.to(self._device),
            num_beams=max(self._beams, number),
            num_return_sequences=number,
            # A translation more than twice as long does not mean the same.
            max_new_tokens=min(2 * width + 10, self._longest - 1),
            do_sample=False,
        )
        said = [one_line(text) for text in self._tokenizer.batch_decode(made, skip_special_tokens=True)]
        return list(batched(said, number))


def load_tokenizer(folder: Path) -> Any:
    """The folder's Marian tokenizer.

    Raises:
        UserError: it cannot be loaded; the message says what is missing.
    """
    from transformers import MarianTokenizer

    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder; name one with a Marian model (config.json, weights, *.spm, vocab.json)"
        )
    try:
        return MarianTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"no Marian tokenizer in {folder} (source.spm, target.spm, vocab.json): {_first_line(error)}"
        ) from None


def _load_model(folder: Path) -> Any:
    from transformers import AutoConfig, MarianMTModel

    try:
        config = AutoConfig.from_pretrained(folder, **WITHOUT_CODE)
        if config.model_type != "marian":
            raise UserError(f"{folder} holds a {config.model_type} model, not a Marian one")
        model = MarianMTModel.from_pretrained(folder, config=by_the_library(config), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"no Marian model in {folder}: {_first_line(error)}") from None
    # Each call gives the length; setting both would warn at every batch.
    model.generation_config.max_length = None
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
