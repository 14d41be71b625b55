"""Marian models run by CTranslate2, several times as fast on a CPU. Convert a Marian folder once:

    ct2-transformers-converter --model opus-mt-en-de --output_dir en-de --quantization int8 \
      --copy_files source.spm target.spm vocab.json tokenizer_config.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from unimo_ds.data.prepare.rewriting.translation.marian import load_tokenizer
from unimo_ds.data.prepare.rewriting.translation.protocol import in_batches, one_line
from unimo_ds.utils.errors import UserError

_LONGEST = 256


class CTranslate2Translator:
    """One direction of translation. Needs `pip install ctranslate2`; uses as many threads as PyTorch (in a worker: one)."""

    def __init__(
        self, folder: Path, *, batch_size: int = 32, beams: int = 4, device: torch.device | None = None
    ) -> None:
        """
        device: None: a GPU if CTranslate2 can use one.

        Raises:
            UserError: the package or the model is missing.
        """
        try:
            import ctranslate2
        except ImportError:
            raise UserError("--translator ctranslate2 needs the package: pip install ctranslate2") from None
        if device is None:
            device = torch.device("cuda" if ctranslate2.get_cuda_device_count() else "cpu")
        self._batch_size, self._beams = batch_size, beams
        self._tokenizer = load_tokenizer(folder)
        try:
            self._model = ctranslate2.Translator(
                str(folder), device=device.type, device_index=device.index or 0, intra_threads=torch.get_num_threads()
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"no CTranslate2 model in {folder}: {error}") from None

    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        return in_batches(texts, self._batch_size, lambda batch: self._translate(batch, number))

    def _translate(self, texts: list[str], number: int) -> list[list[str]]:
        ids = self._tokenizer(texts, truncation=True, max_length=_LONGEST)["input_ids"]
        pieces = [self._tokenizer.convert_ids_to_tokens(row) for row in ids]
        results = self._model.translate_batch(
            pieces,
            beam_size=max(self._beams, number),
            num_hypotheses=number,
            max_decoding_length=2 * max(map(len, pieces)) + 10,
        )
        return [[self._text(hypothesis) for hypothesis in result.hypotheses] for result in results]

    def _text(self, pieces: list[str]) -> str:
        ids = self._tokenizer.convert_tokens_to_ids(pieces)
        return one_line(self._tokenizer.decode(ids, skip_special_tokens=True))
