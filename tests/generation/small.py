"""A model with lively logits, prompts of every kind, and decoding by the book: everything anew for every token."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests import support
from unimo_ds.data.inputs import ImageInput
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import CLS, FIRST_POSITION, SEP, SequenceInput
from unimo_ds.generation.generate import make_prompt
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.seed import generator


def make_model(**changes) -> Unimo:
    # Initial weights of 0.02 would give nearly even distributions, under which everything looks alike.
    model = Unimo(support.model_config(initializer_range=0.3, **changes), seed=1).eval()
    # And without this, hardly a text would end by itself.
    torch.nn.init.constant_(model.language_head.bias[SEP : SEP + 1], 2.0)
    return model


def make_vocabulary(size: int = support.VOCABULARY) -> Vocabulary:
    """The first four ids and the last one are special; the lower half of the others begins words."""
    special = np.zeros(size, bool)
    special[[0, 1, 2, 3, size - 1]] = True
    starts_word = np.zeros(size, bool)
    starts_word[4 : 4 + (size - 5) // 2] = True
    ordinary = np.flatnonzero(~special).astype(np.int32)
    return Vocabulary(starts_word, special, ordinary, size - 1, np.ones(size, np.int32))


def make_prompts(count: int = 7, *, vocabulary_size: int = support.VOCABULARY) -> list[SequenceInput]:
    """Image and text, text alone, image alone, in turn; of different lengths."""
    random = generator(11, count)
    prompts = []
    for number in range(count):
        image = ImageInput(*support.regions(random, 3 + number)) if number % 3 != 1 else None
        source = random.integers(4, vocabulary_size - 1, 4 + 2 * number).astype(np.int32) if number % 3 != 2 else None
        prompts.append(make_prompt(image=image, source=source))
    return prompts


def with_target(prompt: SequenceInput, tokens: list[int]) -> SequenceInput:
    """The training form: the prompt as prefix, then [CLS] and the tokens."""
    target = np.array([CLS, *tokens], np.int32)
    old = [] if prompt.token_ids is None else [prompt.token_ids]
    old_positions = [] if prompt.token_positions is None else [prompt.token_positions]
    positions = np.arange(FIRST_POSITION, FIRST_POSITION + len(target), dtype=np.int32)
    return dataclasses.replace(
        prompt,
        token_ids=np.concatenate([*old, target]),
        token_positions=np.concatenate([*old_positions, positions]),
        prefix_length=prompt.length,
    )


@torch.no_grad()
def log_probabilities(model: Unimo, prompt: SequenceInput, *targets: list[int]) -> list[torch.Tensor]:
    """For each target, [1 + its tokens, V] of what follows [CLS] and each token, by one pass over all whole sequences."""
    sequences = [with_target(prompt, tokens) for tokens in targets]
    hidden = model.encode(pack_sequences(sequences, feature_size=support.FEATURES))
    parts = hidden.split([sequence.length for sequence in sequences])
    return [model.language_head(part[prompt.length :])[0].log_softmax(-1) for part in parts]
