"""Sentences per second of text generation, compared with transformers' own encoder-decoder (BART) of about as many parameters.

    python -m benchmarks.generation --rounds 3 --json benchmarks/rows/generation_cpu_2026-11-26.json

Random weights: speed does not depend on them, and every text is forced to the same length. Both run in one process on the
same sources, interleaved, so that other load on the machine affects both alike; a row holds medians over rounds.
Processor seconds exclude the time in which other processes had the core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BartConfig, BartForConditionalGeneration

from benchmarks.measuring import interleaved, write
from unimo_ds.config import ModelConfig
from unimo_ds.data.masking import Vocabulary
from unimo_ds.generation.generate import GenerationSettings, generate, make_prompt
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.seed import generator

# Numbers of BART's layers are chosen so that both models have about as many parameters.
SIZES = {
    "small": (
        ModelConfig(num_layers=6, hidden_size=256, num_heads=4, feed_forward_size=1024, vocabulary_size=8000),
        3,
        2,
    ),
    "base": (ModelConfig(), 6, 6),
}


def unimo(config: ModelConfig) -> tuple[Unimo, int]:
    """The model, and the number of its parameters that generating text from text uses."""
    model = Unimo(config).eval()
    unused = ("region_", "text_pooler", "image_pooler", "temperature")
    return model, sum(p.numel() for name, p in model.named_parameters() if not name.startswith(unused))


def bart(config: ModelConfig, encoder_layers: int, decoder_layers: int) -> tuple[BartForConditionalGeneration, int]:
    sizes = {
        "d_model": config.hidden_size,
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.max_positions,
    }
    for side, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        sizes |= {
            f"{side}_layers": layers,
            f"{side}_ffn_dim": config.feed_forward_size,
            f"{side}_attention_heads": config.num_heads,
        }
    model = BartForConditionalGeneration(BartConfig(**sizes)).eval()
    return model, sum(p.numel() for p in model.parameters())


def make_sources(config: ModelConfig, count: int, shortest: int, longest: int) -> list[np.ndarray]:
    random = generator(1, count)
    lengths = random.integers(shortest, longest + 1, count)
    return [random.integers(4, config.vocabulary_size - 1, int(length)).astype(np.int32) for length in lengths]


def unimo_run(model: Unimo, sources: list[np.ndarray], *, num_beams: int, tokens: int) -> Callable[[int], None]:
    special = np.zeros(model.config.vocabulary_size, bool)
    special[[0, 1, 2, 3, -1]] = True
    ordinary = np.flatnonzero(~special).astype(np.int32)
    vocabulary = Vocabulary(special, special, ordinary, len(special) - 1, np.ones(len(special), np.int32))
    # The end token is never allowed, so that each text has its full length.
    settings = GenerationSettings(
        num_beams=num_beams, min_tokens=tokens, max_tokens=tokens, batch_prompts=len(sources), length_penalty=1.0
    )

    def run(_: int) -> None:
        found = generate(model, [make_prompt(source=source) for source in sources], vocabulary, settings)
        assert all(len(texts[0].tokens) == tokens for texts in found)

    return run


def bart_run(
    model: BartForConditionalGeneration, sources: list[np.ndarray], *, num_beams: int, tokens: int
) -> Callable[[int], None]:
    longest = max(map(len, sources)) + 2
    ids = torch.ones(len(sources), longest, dtype=torch.int64)
    for row, source in enumerate(sources):
        ids[row, : len(source) + 2] = torch.from_numpy(np.concatenate(([0], source, [2])).astype(np.int64))
    beams: dict[str, Any] = {"length_penalty": 1.0, "early_stopping": False} if num_beams > 1 else {}

    def run(_: int) -> None:
        found = model.generate(
            ids,
            attention_mask=(ids != 1).long(),
            num_beams=num_beams,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            forced_eos_token_id=None,
            forced_bos_token_id=None,
            no_repeat_ngram_size=0,
            **beams,
        )
        assert found[:, 1:].numel() == len(sources) * tokens

    return run


def measure(size: str, *, num_beams: int, sources: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    config, encoder_layers, decoder_layers = SIZES[size]
    texts = make_sources(config, sources, 16, 128)
    own, own_parameters = unimo(config)
    other, other_parameters = bart(config, encoder_layers, decoder_layers)
    runs = {
        "unimo_ds": unimo_run(own, texts, num_beams=num_beams, tokens=tokens),
        "transformers BART": bart_run(other, texts, num_beams=num_beams, tokens=tokens),
    }
    timings = interleaved(runs, rounds=rounds)
    rows = []
    for name, parameters in (("unimo_ds", own_parameters), ("transformers BART", other_parameters)):
        timing = timings[name].row()
        rows.append(
            {
                "what": name,
                "size": size,
                "parameters": parameters,
                "beams": num_beams,
                "sources": sources,
                "source_tokens": "16-128",
                "new_tokens": tokens,
                **timing,
                "sentences_per_second": sources / timing["seconds_median"],
                "sentences_per_processor_second": sources / timing["processor_seconds_median"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["small", "base"])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    rows = []
    for size in arguments.sizes:
        for num_beams in arguments.beams:
            new = measure(
                size, num_beams=num_beams, sources=arguments.sources, tokens=arguments.tokens, rounds=arguments.rounds
            )
            for row in new:
                print(json.dumps(row), flush=True)
            rows += new
            if arguments.json is not None:
                write("generation", rows, path=arguments.json)


if __name__ == "__main__":
    main()
