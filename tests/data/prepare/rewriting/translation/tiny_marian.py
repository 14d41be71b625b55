"""A Marian model of two small layers with random weights and a real SentencePiece vocabulary, as a folder on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from tests.data.prepare.raw import captions


def write_model(folder: Path, seed: int) -> Path:
    """One direction; other seeds say other things."""
    folder.mkdir(parents=True)
    texts = [caption for i in range(64) for caption in captions(i)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "source"),
        vocab_size=60,
        hard_vocab_limit=False,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "source.model").rename(folder / "source.spm")
    shutil.copy(folder / "source.spm", folder / "target.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    known = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    ordered = ["</s>", "<unk>", *(one for one in known if one not in ("</s>", "<unk>")), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(ordered)}), encoding="utf-8")
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="en"
    )
    tokenizer.save_pretrained(folder)
    size, pad = len(ordered), len(ordered) - 1
    torch.manual_seed(seed)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=size,
            decoder_vocab_size=size,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=64,
            pad_token_id=pad,
            eos_token_id=0,
            decoder_start_token_id=pad,
            forced_eos_token_id=None,
            init_std=0.5,
        )
    )
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
    return folder
