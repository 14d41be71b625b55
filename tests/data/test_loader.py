"""The data contract: the same global batch whatever the world size, workers and micro-batches; resume at any
step; every sample once an epoch; damaged samples replaced alike everywhere (R2, R3, R11, R13, R18, R19)."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import WordTokenizer, make_config, make_corpus, select
from unimo_ds.config import ContrastConfig, KindWeights, RunConfig
from unimo_ds.data.loader import BadSampleLimit, StepLoader
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import BadSample, Kind, PackedBatch, StepBatch
from unimo_ds.data.step_plan import StepPlanner
from unimo_ds.data.step_reader import NOTHING
from unimo_ds.data.transport import flatten, restore
from unimo_ds.data.viewing.inspect_order import inspect_order, parse_steps
from unimo_ds.utils.errors import UserError

TOKENIZER = WordTokenizer()
CORPUS = make_corpus()


def load(config: RunConfig, *, rank: int = 0, world_size: int = 1, steps: range = range(3), corpus=CORPUS) -> list:
    loader = StepLoader(corpus, config, rank, world_size, steps.start, steps.stop, tokenizer=TOKENIZER)
    return list(loader)


def sequences_of(batch: PackedBatch) -> dict[int, tuple]:
    """Everything a sequence brings, by its seed (which is unique in a step), whatever stream it lies in."""
    found = {}
    table = batch.contrast
    for index, seed in enumerate(batch.sequence_seeds.tolist()):
        start, stop = batch.sequence_starts[index : index + 2].tolist()
        inside = {
            name: (getattr(batch, name) >= start) & (getattr(batch, name) < stop)
            for name in ("token_at", "region_at", "language_at", "masked_region_at")
        }
        found[seed] = (
            int(batch.prefix_lengths[index]),
            batch.token_ids[inside["token_at"]].tolist(),
            batch.token_positions[inside["token_at"]].tolist(),
            batch.region_features[batch.region_row[inside["region_at"]]].numpy().tobytes(),
            batch.region_boxes[batch.region_row[inside["region_at"]]].numpy().tobytes(),
            (batch.language_at[inside["language_at"]] - start).tolist(),
            batch.language_targets[inside["language_at"]].tolist(),
            (batch.masked_region_at[inside["masked_region_at"]] - start).tolist(),
            batch.masked_region_features[inside["masked_region_at"]].numpy().tobytes(),
        )
    for pair, position in enumerate(table.pair_position.tolist()):
        scores = table.score_pair == pair
        seed_of = [
            batch.sequence_seeds[batch.position_sequence[at[rows[scores]]].long()].tolist()
            for at, rows in ((batch.pooled_image_at, table.score_image), (batch.pooled_text_at, table.score_text))
        ]
        keys = (int(table.pair_image_key[pair]), int(table.pair_text_key[pair]), int(table.pair_group[pair]))
        roles = table.score_role[scores].tolist(), table.score_level[scores].tolist()
        found[-1 - position] = (keys, *seed_of, *roles)
    return found


def global_step(batches: list[StepBatch]) -> dict[int, tuple]:
    """The step over all ranks."""
    parts = [sequences_of(micro) for batch in batches for micro in batch.micro_batches]
    merged: dict[int, tuple] = {}
    for part in parts:
        assert merged.keys().isdisjoint(part)
        merged.update(part)
    return merged


REFERENCE = {step: global_step([batch]) for step, batch in enumerate(load(make_config(), steps=range(3)))}


@given(
    world_size=st.integers(1, 8),
    micro_batch_tokens=st.sampled_from([700, 1500, 10**5]),
    first=st.integers(0, 2),
)
@settings(max_examples=12)
def test_global_batch_does_not_depend_on_the_machine(world_size: int, micro_batch_tokens: int, first: int) -> None:
    config = make_config(micro_batch_tokens=micro_batch_tokens)
    steps = range(first, first + 1)
    ranks = [load(config, rank=rank, world_size=world_size, steps=steps)[0] for rank in range(world_size)]
    assert len({len(batch.micro_batches) for batch in ranks}) == 1
    assert {batch.num_samples for batch in ranks} == {14}
    assert all(micro.num_positions <= micro_batch_tokens for batch in ranks for micro in batch.micro_batches)
    assert global_step(ranks) == REFERENCE[first]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_change_nothing(num_workers: int) -> None:
    batches = load(make_config(num_workers=num_workers))
    assert [batch.step for batch in batches] == [0, 1, 2]
    for step, batch in enumerate(batches):
        assert global_step([batch]) == REFERENCE[step]


def test_resume_begins_at_its_step_without_replay() -> None:
    corpus = make_corpus()
    (batch,) = load(make_config(), steps=range(2, 3), corpus=corpus)
    assert global_step([batch]) == REFERENCE[2]
    # 14 samples and their related images at most.
    assert corpus.num_reads <= 14 * 3
    assert batch.bytes_read == corpus.bytes_read > 0
    started = time.perf_counter()
    (far,) = load(make_config(), steps=range(10**9, 10**9 + 1), corpus=corpus)
    assert time.perf_counter() - started < 1.0
    assert batch.bytes_read + far.bytes_read == corpus.bytes_read


def test_an_epoch_holds_every_sample_once_over_ranks_and_micro_batches() -> None:
    config = make_config(kind_weights=KindWeights(0, 0, 1), global_samples=12, micro_batch_tokens=900)
    for world_size in (1, 2, 4):
        keys = [
            key
            for rank in range(world_size)
            for batch in load(config, rank=rank, world_size=world_size, steps=range(5))
            for micro in batch.micro_batches
            for key in micro.keys
        ]
        assert sorted(keys) == sorted(CORPUS.key(i) for i in np.flatnonzero(CORPUS.kinds == Kind.PAIR))


def test_contrast_groups_are_consecutive_pairs_of_the_global_batch() -> None:
    config = make_config(contrast=ContrastConfig(group_pairs=4), micro_batch_tokens=600)
    table = {}
    for rank in range(3):
        for micro in load(config, rank=rank, world_size=3, steps=range(1, 2))[0].micro_batches:
            table.update(zip(micro.contrast.pair_position.tolist(), micro.contrast.pair_group.tolist(), strict=True))
    assert [table[position] for position in sorted(table)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_damage_is_replaced_alike_everywhere() -> None:
    pairs = np.flatnonzero(CORPUS.kinds == Kind.PAIR)
    images = np.flatnonzero(CORPUS.kinds == Kind.IMAGE)
    config = make_config()
    first = StepPlanner(CORPUS, config, world_size=1).plan(0)
    # The shortest, so that most others would be too long in their place.
    rows = [row for row in np.argsort(first.selection.num_positions).tolist() if first.samples[row] in pairs][:3]
    broken = first.samples[rows].tolist() + images[:15].tolist()
    corpus = make_corpus(broken=broken)
    (whole,) = load(config, steps=range(1), corpus=corpus)
    ranks = [load(config, rank=rank, world_size=3, steps=range(1), corpus=corpus)[0] for rank in range(3)]
    assert global_step(ranks) == global_step([whole])
    found = {(bad.key, bad.substitute) for bad in whole.bad_samples}
    assert found == {(bad.key, bad.substitute) for batch in ranks for bad in batch.bad_samples}
    assert {corpus.key(sample) for sample in broken[:3]} <= {key for key, _ in found}
    broken_keys = {corpus.key(sample) for sample in broken}
    assert all("damaged" in bad.reason for bad in whole.bad_samples)
    for bad in whole.bad_samples:
        assert bad.substitute not in broken_keys
        assert bad.key.startswith("image") or bad.substitute.split("-")[0] == bad.key.split("-")[0]
    assert len({bad.substitute for bad in whole.bad_samples if bad.key.startswith("pair")}) > 1, "not one for all"
    assert any(bad.substitute == NOTHING for bad in whole.bad_samples), "a related image"
    assert not broken_keys & {key for micro in whole.micro_batches for key in micro.keys}
    substitutes = {bad.key: bad.substitute for bad in whole.bad_samples}
    number_of = {corpus.key(number): number for number in range(corpus.num_samples)}
    for row in rows:
        substitute = number_of[substitutes[corpus.key(first.samples[row])]]
        shown = select(corpus, substitute, row, config)
        assert shown.num_positions <= first.selection.num_positions[row], "there is no room for more"
    planned = first.selection.num_positions.sum()
    assert sum(micro.num_positions for micro in whole.micro_batches) <= planned


def test_damage_beyond_repair_is_left_out() -> None:
    images = np.flatnonzero(CORPUS.kinds == Kind.IMAGE).tolist()
    corpus = make_corpus(broken=images)
    config = make_config(contrast=ContrastConfig(group_pairs=4, related_images=0))
    (batch,) = load(config, steps=range(1), corpus=corpus)
    assert {bad.substitute for bad in batch.bad_samples} == {NOTHING}
    assert len(batch.bad_samples) == 2
    assert sum(len(micro.keys) for micro in batch.micro_batches) == 12
    groups = [
        {
            position: group
            for micro in one.micro_batches
            for position, group in zip(
                micro.contrast.pair_position.tolist(), micro.contrast.pair_group.tolist(), strict=True
            )
        }
        for one in (batch, *load(config, steps=range(1)))
    ]
    assert groups[0] == groups[1], "the others stay where they were"


def test_a_run_stops_beyond_the_agreed_share() -> None:
    bad = [BadSample("pair-3.tar:00007", "checksum", "pair-1.tar:1")]
    limit = BadSampleLimit(0.01)
    limit.add(bad, num_bad=10, num_samples=100)
    limit.add([], num_bad=0, num_samples=900)
    with pytest.raises(UserError, match=r"11 of 1001 .*pair-3\.tar.*checksum.*verify"):
        limit.add([], num_bad=1, num_samples=1)
    with pytest.raises(UserError, match="1 of 100"):
        BadSampleLimit(0.0).add(bad, num_bad=1, num_samples=100)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_refusals_are_plain_sentences(num_workers: int) -> None:
    config = make_config(micro_batch_tokens=60, num_workers=num_workers)
    with pytest.raises(UserError, match=r"^sample \S+ makes \d+ stream positions.*raise that"):
        load(config)


def test_an_index_of_another_tokenizer_is_refused() -> None:
    corpus = make_corpus()
    corpus.text_tokens = corpus.text_tokens // 2
    with pytest.raises(UserError, match="another tokenizer"):
        load(make_config(), corpus=corpus)


def test_workers_outlive_the_signals_of_a_job() -> None:
    others = set(multiprocessing.active_children())
    loader = iter(StepLoader(CORPUS, make_config(num_workers=2), 0, 1, 0, 12, tokenizer=TOKENIZER))
    next(loader)
    # The second worker may still be starting: it must be safe from its first instruction.
    workers = [process for process in multiprocessing.active_children() if process not in others]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
    assert [batch.step for batch in loader] == list(range(1, 12))
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("os.kill(workers[0].pid, signal.SIGSTOP); raise KeyError('trainer failed')", "trainer failed"),
        ("os.kill(workers[0].pid, signal.SIGKILL); list(loader)", "Traceback"),
    ],
)
def test_a_failed_run_ends_at_once(trouble: str, message: str) -> None:
    """Workers that ignore SIGTERM must not keep a failed trainer from exiting."""
    script = f"""
import multiprocessing, os, signal
from tests.data.corpora import WordTokenizer, make_config, make_corpus
from unimo_ds.data.loader import StepLoader
loader = iter(StepLoader(make_corpus(), make_config(num_workers=2), 0, 1, 0, 10**6, tokenizer=WordTokenizer()))
next(loader)
workers = multiprocessing.active_children()
{trouble}
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_step_travels_whole_in_one_block() -> None:
    (batch,) = load(make_config(), rank=0, world_size=2, steps=range(1))
    batch = dataclasses.replace(batch, micro_batches=(*batch.micro_batches, pack([], feature_size=3)))
    flat = flatten(batch)
    assert flat.block.dtype is torch.uint8
    back = restore(flat)
    for one, other in zip(back.micro_batches, batch.micro_batches, strict=True):
        for item in dataclasses.fields(PackedBatch):
            value, expected = getattr(one, item.name), getattr(other, item.name)
            if isinstance(expected, torch.Tensor):
                assert value.dtype == expected.dtype
                assert torch.equal(value, expected)
            elif item.name != "contrast":
                assert value == expected
        for item in dataclasses.fields(one.contrast):
            assert torch.equal(getattr(one.contrast, item.name), getattr(other.contrast, item.name))
    assert dataclasses.replace(back, micro_batches=()) == dataclasses.replace(batch, micro_batches=())


def test_shared_memory_that_is_too_small_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.UntypedStorage._new_shared
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", lambda size: real(size + 2**50))
    with pytest.raises(UserError, match=r"^a step of 0 MiB finds no room in /dev/shm .*data\.num_workers=0$"):
        load(make_config(num_workers=1))


def test_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """R18: caches are bounded whatever the number of epochs; here so tightly that every step overflows them."""
    from unimo_ds.data import step_reader

    monkeypatch.setattr(step_reader, "_SAMPLE_CACHE_BYTES", 5000)
    monkeypatch.setattr(step_reader, "_TEXT_CACHE_TOKENS", 300)
    reader = step_reader.StepReader(CORPUS, TOKENIZER, make_config(), rank=0, world_size=1)
    for step in range(30):
        batch = reader.read(step)
        if step < 3:
            assert global_step([batch]) == REFERENCE[step]
        assert sum(sample.num_bytes for sample in reader._samples.values()) == reader._samples_bytes <= 5000
        assert reader._texts._num_tokens < 300 + 2500


@pytest.mark.parametrize("num_workers", [0, 2])
def test_inspect_order_tells_what_the_loader_reads(num_workers: int) -> None:
    config = make_config(micro_batch_tokens=900)
    told = inspect_order(CORPUS, config, steps=range(1, 3), world_size=3, num_workers=num_workers)
    alone = inspect_order(CORPUS, config, steps=range(1, 3), world_size=1)
    assert [step["step"] for step in told["steps"]] == [1, 2]
    for index, step in enumerate(told["steps"]):
        assert step["global_batch"] == alone["steps"][index]["global_batch"] == alone["steps"][index]["ranks"][0]
        assert sorted(key for rank in step["ranks"] for key in rank) == sorted(step["global_batch"])
        for rank in range(3):
            (batch,) = load(config, rank=rank, world_size=3, steps=range(1 + index, 2 + index))
            assert sorted(step["ranks"][rank]) == sorted(key for micro in batch.micro_batches for key in micro.keys)


def test_inspect_order_refuses_nonsense() -> None:
    assert parse_steps("3:7") == range(3, 7)
    for text in ("3", "7:3", "a:b", "-1:4", "3:3"):
        with pytest.raises(UserError, match="--steps"):
            parse_steps(text)
    with pytest.raises(UserError, match="--world-size"):
        inspect_order(CORPUS, make_config(), steps=range(1), world_size=0)
    with pytest.raises(UserError, match=r"0:99999999999999999999 must be A:B .* 2\*\*62"):
        inspect_order(CORPUS, make_config(), steps=parse_steps("0:99999999999999999999"), world_size=1)
    with pytest.raises(UserError, match="stream positions"):
        inspect_order(CORPUS, make_config(micro_batch_tokens=50), steps=range(1), world_size=1)
