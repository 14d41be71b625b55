"""The data contract of fine-tuning: the global batch is a function of (examples, seed, step) alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.finetune import small
from unimo_ds.config import BatchConfig
from unimo_ds.finetune.reader import TaskReader
from unimo_ds.finetune.sentences import SentenceExamples, SentenceRow
from unimo_ds.finetune.task import spread
from unimo_ds.utils.errors import UserError

SIZE, NUMBER = 7, 23


@pytest.fixture(scope="module")
def examples() -> SentenceExamples:
    rows = [SentenceRow(f"f:{number}", (small.sentence(number)[0],), float(number)) for number in range(NUMBER)]
    return SentenceExamples.of(rows, small.train_tokenizer(), max_text_tokens=64, fingerprint="")


def config(**changes):
    base = small.run_config(320)
    return dataclasses.replace(base, batch=BatchConfig(global_samples=SIZE, micro_batch_tokens=40), **changes)


def visits(examples, world_size: int, steps: range, **changes) -> list[list[tuple]]:
    """Per step, (dropout seed, key, target, tokens) of every visit on any rank, sorted."""
    readers = [TaskReader(examples, config(**changes), rank=rank, world_size=world_size) for rank in range(world_size)]
    found = []
    for step in steps:
        batches = [reader.read(step) for reader in readers]
        assert len({len(batch.micro_batches) for batch in batches}) == 1
        seen = []
        for micro_batch in (one for batch in batches for one in batch.micro_batches):
            tokens = np.split(micro_batch.token_ids.numpy(), micro_batch.sequence_starts[1:-1].numpy())
            for row, key in enumerate(micro_batch.keys):
                seed, target = int(micro_batch.sequence_seeds[row]), float(micro_batch.targets[row, 0])
                seen.append((seed, key, target, tuple(tokens[row].tolist())))
        assert len(seen) == SIZE
        found.append(sorted(seen))
    return found


def test_every_number_of_ranks_reads_the_same_steps(examples):
    alone = visits(examples, 1, range(5))
    assert visits(examples, 2, range(5)) == alone
    assert visits(examples, 3, range(5)) == alone
    assert visits(examples, 1, range(3, 5)) == alone[3:], "no replay"


def test_an_epoch_visits_each_example_once_and_the_next_one_in_another_order(examples):
    # One visit a step, so that the order is seen.
    whole = dataclasses.replace(config(), batch=BatchConfig(global_samples=1, micro_batch_tokens=40))
    reader = TaskReader(examples, whole, rank=0, world_size=1)
    keys = [reader.read(step).micro_batches[0].keys[0] for step in range(2 * NUMBER)]
    epochs = [keys[:NUMBER], keys[NUMBER:]]
    assert all(len(set(epoch)) == NUMBER for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_steps_made_ahead_are_the_steps_in_order(examples):
    reader = TaskReader(examples, config(), rank=0, world_size=1)
    made = list(reader.steps(2, 9))
    assert [batch.step for batch in made] == list(range(2, 9))
    for batch in made:
        again = reader.read(batch.step)
        assert [one.keys for one in batch.micro_batches] == [one.keys for one in again.micro_batches]
    for batch in reader.steps(0, 100):
        if batch.step == 1:
            break  # the thread behind it ends as well


def test_another_seed_is_another_order(examples):
    assert visits(examples, 1, range(2)) != visits(examples, 1, range(2), seed=1)


def test_targets_stay_with_their_examples(examples):
    for step in visits(examples, 2, range(4)):
        assert all(key == f"f:{target:.0f}" for _, key, target, _ in step)


def test_some_examples_are_spread_evenly(examples):
    some = spread(examples, 4)
    assert [some.key(index) for index in range(len(some))] == ["f:0", "f:5", "f:11", "f:17"]
    assert spread(examples, 0) is examples
    assert some.fingerprint != examples.fingerprint


def test_no_examples_is_one_sentence(examples):
    with pytest.raises(UserError, match="holds no training example"):
        TaskReader(examples.select([]), config(), rank=0, world_size=1)


def test_an_empty_rank_has_empty_micro_batches_of_the_right_shapes(examples):
    batch = TaskReader(examples.select([0]), config(), rank=1, world_size=12).read(0).micro_batches[0]
    assert batch.targets.shape == (len(batch.keys), 1)
    assert batch.num_positions == int(batch.sequence_starts[-1])
    assert batch.targets.dtype == torch.float32
