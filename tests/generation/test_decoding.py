"""Cached decoding must give what the whole sequence gives, in the form that training uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import support
from tests.generation import small
from unimo_ds.data.fragments import sequence_to_sequence
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import CLS, SequenceInput, SequenceRole
from unimo_ds.generation.decoding import decode, encode_prefixes
from unimo_ds.generation.generate import Generator, make_prompt
from unimo_ds.utils.seed import generator


def packed(prompts: list[SequenceInput]):
    return pack_sequences(prompts, feature_size=support.FEATURES)


@torch.no_grad()
def test_steps_give_the_hidden_states_of_the_whole_sequence():
    model, prompts = small.make_model().double(), small.make_prompts()
    targets = torch.from_numpy(generator(5).integers(4, 49, (len(prompts), 9)))
    targets[:, 0] = CLS
    cache = encode_prefixes(model, packed(prompts))
    # One token, several at once, one again: a step may have any size.
    steps = [decode(model, part, cache) for part in targets.split([1, 4, 1, 3], dim=1)]
    found = torch.cat(steps, dim=1)
    for prompt, row, hidden in zip(prompts, targets.tolist(), found, strict=True):
        whole = model.encode(packed([small.with_target(prompt, row[1:])]))[prompt.length :]
        torch.testing.assert_close(hidden, whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_rows_of_one_prompt_share_its_prefix():
    model, prompts = small.make_model().double(), small.make_prompts(3)
    targets = torch.from_numpy(generator(6).integers(4, 49, (6, 5)))
    shared = encode_prefixes(model, packed(prompts))
    repeated = encode_prefixes(model, packed([prompt for prompt in prompts for _ in range(2)]))
    torch.testing.assert_close(decode(model, targets, shared), decode(model, targets, repeated), rtol=0, atol=1e-12)
    order = torch.tensor([1, 1, 2, 3, 5, 4])
    shared.reorder_cache(order)
    after = decode(model, targets[:, :1], shared)
    repeated = encode_prefixes(model, packed([prompt for prompt in prompts for _ in range(2)]))
    whole = decode(model, torch.cat([targets[order], targets[:, :1]], dim=1), repeated)
    torch.testing.assert_close(after, whole[:, -1:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_decoding_predicts_where_the_generative_objective_does():
    """A text whose end is its one fragment, as training lays it out, against prefix and steps."""
    model = small.make_model().double()
    tokens = generator(7).integers(4, 49, 20).astype(np.int32)
    cut = sequence_to_sequence(tokens, [(14, 20)])
    training = SequenceInput(
        role=SequenceRole.CORRUPTED,
        seed=0,
        token_ids=cut.token_ids,
        token_positions=cut.positions,
        prefix_length=cut.source_length,
        language_at=cut.predicts_at,
        language_targets=cut.targets,
    )
    trained_on = model.encode(packed([training]))[torch.from_numpy(cut.predicts_at).long()]
    cache = encode_prefixes(model, packed([make_prompt(source=tokens[:14])]))
    stepped = decode(model, torch.from_numpy(np.array([[CLS, *tokens[14:]]])), cache)
    torch.testing.assert_close(stepped[0], trained_on, rtol=0, atol=1e-12)


def test_a_cache_that_is_not_used_changes_nothing():
    model, prompts = small.make_model(), small.make_prompts()
    rows = [
        Generator(model).generate_from(
            encode_prefixes(model, packed(prompts)),
            num_beams=3,
            max_new_tokens=10,
            use_cache=use_cache,
            eos_token_id=2,
            pad_token_id=1,
        )
        for use_cache in (True, False)
    ]
    assert rows[0].tolist() == rows[1].tolist()


def test_bad_inputs_are_refused():
    model, prompts = small.make_model(), small.make_prompts(2)
    with pytest.raises(ValueError, match="see themselves whole"):
        encode_prefixes(model, packed([small.with_target(prompts[0], [5])]))
    with pytest.raises(ValueError, match="see themselves whole"):
        encode_prefixes(model, packed([]))
    with pytest.raises(ValueError, match="outside of 66 positions"):
        decode(model, torch.full((2, 65), 5), encode_prefixes(model, packed(prompts)))
