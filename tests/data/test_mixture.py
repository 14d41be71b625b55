"""The order mixes exactly, sees every sample once an epoch, needs no replay, and stays within windows of shards."""

from __future__ import annotations

import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import KindWeights
from unimo_ds.data.mixture import Order
from unimo_ds.data.schema import Kind
from unimo_ds.utils.errors import UserError


def make_corpus(sizes: list[tuple[Kind, int, int]], *, shard_size: int = 10) -> tuple[np.ndarray, ...]:
    """kinds, source ids, shards of samples for (kind, source, count) in turn; a shard holds one source."""
    kinds, sources, shards, shard = [], [], [], 0
    for kind, source, count in sizes:
        kinds += [kind] * count
        sources += [source] * count
        shards += [shard + index // shard_size for index in range(count)]
        shard = shards[-1] + 1 if shards else 0
    return np.array(kinds, np.uint8), np.array(sources), np.array(shards)


@given(seed=st.integers(0, 2**40), size=st.integers(1, 200), window=st.integers(1, 5), epochs=st.integers(1, 3))
@settings(max_examples=25)
def test_one_source_is_seen_once_an_epoch(seed: int, size: int, window: int, epochs: int) -> None:
    order = Order(*make_corpus([(Kind.TEXT, 0, size)], shard_size=7), KindWeights(0, 1, 0), {}, window, seed)
    for epoch in range(epochs):
        samples = order.samples_at(np.arange(epoch * size, (epoch + 1) * size))
        assert sorted(samples.tolist()) == list(range(size))


@given(
    seed=st.integers(0, 2**40),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 5.0])] * 3),
    start=st.integers(0, 10**12),
)
@settings(max_examples=25)
def test_every_cycle_holds_the_stated_mix(seed: int, weights: tuple[float, float, float], start: int) -> None:
    kinds, sources, shards = make_corpus([(Kind.IMAGE, 0, 13), (Kind.TEXT, 1, 29), (Kind.PAIR, 2, 41)])
    order = Order(kinds, sources, shards, KindWeights(*weights), {}, 2, seed)
    cycle = round(2 * sum(weights))
    counts = np.bincount(kinds[order.samples_at(np.arange(start, start + cycle))], minlength=3)
    assert counts.tolist() == [round(2 * weight) for weight in weights]


@given(
    sources=st.tuples(*[st.lists(st.integers(1, 60), min_size=1, max_size=3)] * 3),
    step=st.integers(1, 100),
    start=st.integers(0, 10**12),
)
@settings(max_examples=50)
def test_pairs_of_a_step_vary_by_as_many_as_streams_stand_before_them(
    sources: tuple[list[int], list[int], list[int]], step: int, start: int
) -> None:
    sizes = [(kind, size) for kind, sizes in zip(Kind, sources, strict=True) for size in sizes]
    corpus = make_corpus([(kind, source, size) for source, (kind, size) in enumerate(sizes)])
    order = Order(*corpus, KindWeights(), {}, 2, 0)
    is_pair = corpus[0][order.samples_at(np.arange(start, start + 50 * step))] == Kind.PAIR
    of_steps = is_pair.reshape(50, step).sum(1)
    assert of_steps.max() - of_steps.min() <= len(sources[0]) + len(sources[1])
    # In the long run the ratio is what was asked.
    assert abs(is_pair.sum() - 50 * step * 5 / 7) <= len(sources[0]) + len(sources[1])


def test_sources_of_a_kind_share_an_epoch_unless_they_are_weighed() -> None:
    corpus = make_corpus([(Kind.PAIR, 0, 37), (Kind.PAIR, 1, 101), (Kind.PAIR, 2, 62)])
    order = Order(*corpus, KindWeights(0, 0, 1), {}, 3, 5)
    assert sorted(order.samples_at(np.arange(200, 400)).tolist()) == list(range(200))
    names = ("coco", "sbu", "vg")
    weighed = Order(*corpus, KindWeights(0, 0, 1), {"coco": 163.0, "sbu": 101.0, "vg": 62.0}, 3, 5, source_names=names)
    samples = weighed.samples_at(np.arange(2 * 326))
    assert (corpus[1][samples] == 0).sum() == 326
    # Each source still runs through its own epochs.
    for source, size in enumerate((37, 101, 62)):
        own = samples[corpus[1][samples] == source]
        for first in range(0, len(own) - size + 1, size):
            assert len(set(own[first : first + size].tolist())) == size


@given(weights=st.tuples(*[st.sampled_from([0, 0.5, 1, 3])] * 2), start=st.integers(0, 10**12))
@settings(max_examples=25)
def test_folders_share_each_kind_by_their_weights(weights: tuple[float, float], start: int) -> None:
    """Texts lie in both folders, pairs in the second alone, and one source in both."""
    corpus = make_corpus([(Kind.TEXT, 0, 24), (Kind.TEXT, 1, 8), (Kind.TEXT, 0, 30), (Kind.PAIR, 2, 41)])
    folders = np.repeat([0, 1], [32, 71])

    def order() -> Order:
        by_name = dict(zip(("here", "there"), weights, strict=True))
        return Order(*corpus, KindWeights(0, 1, 1), {}, 2, 4, folder_ids=folders, folder_weights=by_name)

    if not weights[1]:
        with pytest.raises(UserError, match=r"every folder that has (text|pair) samples has data.folder_weights 0"):
            order()
        return
    # Sources of the first folder are seen by their sizes, 3 : 1.
    cycle = round(2 * 8 * sum(weights))
    samples = order().samples_at(np.arange(start, start + cycle))
    counts = {(int(folder), int(source)): 0 for folder, source in zip(folders, corpus[1], strict=True)}
    for sample in samples.tolist():
        counts[int(folders[sample]), int(corpus[1][sample])] += 1
    here, there = (round(8 * weight) for weight in weights)
    assert counts == {(0, 0): here * 3 // 4, (0, 1): here // 4, (1, 0): there, (1, 2): here + there}
    shares = [float(one.share) * cycle for one in order().mix]
    assert shares == pytest.approx([count for count in (here * 3 // 4, here // 4, there, here + there) if count])
    assert order().is_read().tolist() == np.repeat([weights[0] > 0, True], [32, 71]).tolist()


def test_one_folder_with_a_weight_is_read_as_one_without() -> None:
    corpus = make_corpus([(Kind.IMAGE, 0, 50), (Kind.TEXT, 1, 60), (Kind.TEXT, 2, 30), (Kind.PAIR, 2, 300)])
    plain = Order(*corpus, KindWeights(), {}, 2, 9)
    folder = np.zeros(len(corpus[0]), np.int32)
    weighed = Order(*corpus, KindWeights(), {}, 2, 9, folder_ids=folder, folder_weights={"here": 0.3})
    positions = np.arange(3000)
    assert weighed.samples_at(positions).tolist() == plain.samples_at(positions).tolist()


@pytest.mark.parametrize("names", [("wiki", "rare"), ("rare", "wiki")])
@pytest.mark.parametrize("weight", [3.14159e-6, 3.14159e-7, 3.14159e-8, 2.7e-11])
def test_a_rare_source_is_seen_as_often_as_its_weight_says(names: tuple[str, str], weight: float) -> None:
    order = Order(
        *make_corpus([(Kind.TEXT, 0, 5), (Kind.TEXT, 1, 5)]),
        KindWeights(0, 1, 0),
        {"wiki": 1.0, "rare": weight},
        source_names=names,
    )
    position = 10**14
    (stream,), (count,) = order.streams_at(np.array([position]))
    of_rare = count if names[stream] == "rare" else position - count
    assert of_rare == pytest.approx(position * weight / (1 + weight), rel=1e-6, abs=1)


def test_an_ordinary_share_is_rounded_as_it_always_was() -> None:
    corpus = make_corpus([(Kind.TEXT, 0, 5), (Kind.TEXT, 1, 5)])
    weights = {"wiki": 1.0, "news": 3.1415926535e-3}
    order = Order(*corpus, KindWeights(0, 1, 0), weights, source_names=("wiki", "news"))
    (stream,), (count,) = order.streams_at(np.array([10**15]))
    assert (int(stream), int(count)) == (0, 10**15 * 167431 // 167957)


def test_a_position_has_the_samples_of_its_stream() -> None:
    corpus = make_corpus([(Kind.TEXT, 0, 24), (Kind.TEXT, 1, 8), (Kind.TEXT, 0, 30)])
    folders = np.repeat([0, 1], [32, 30])
    for folder_ids in (None, folders):
        weights = None if folder_ids is None else {"here": 1.0, "there": 1.0}
        order = Order(*corpus, KindWeights(0, 1, 0), {}, 2, 4, folder_ids=folder_ids, folder_weights=weights)
        for position, sample in enumerate(order.samples_at(np.arange(40)).tolist()):
            is_like = corpus[1] == corpus[1][sample]
            if folder_ids is not None:
                is_like &= folders == folders[sample]
            like = np.flatnonzero(is_like)
            expected = like[np.random.default_rng(position).integers(0, len(like), 50)]
            drawn = order.drawn_like(position, 50, np.random.default_rng(position))
            assert drawn.tolist() == expected.tolist()


@pytest.mark.parametrize("is_scattered", [False, True])
def test_a_draw_among_millions_makes_no_list_of_them(is_scattered: bool) -> None:
    kinds = np.full(2_000_000, Kind.TEXT, np.uint8)
    kinds[1 :: 3 if is_scattered else 2_000_000] = Kind.IMAGE
    order = Order(kinds, np.zeros(len(kinds), np.int32), np.arange(len(kinds)) // 1000, KindWeights(0, 1, 0))
    tracemalloc.start()
    drawn = order.drawn_like(7, 64, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (kinds[drawn] == Kind.TEXT).all()
    assert peak < 100_000


def test_any_position_is_reached_alone() -> None:
    order = Order(*make_corpus([(Kind.IMAGE, 0, 50), (Kind.TEXT, 1, 60), (Kind.PAIR, 2, 300)]), KindWeights(), {}, 2, 9)
    block = order.samples_at(np.arange(5000, 5100))
    other = Order(*make_corpus([(Kind.IMAGE, 0, 50), (Kind.TEXT, 1, 60), (Kind.PAIR, 2, 300)]), KindWeights(), {}, 2, 9)
    alone = [int(other.samples_at(np.array([position]))[0]) for position in reversed(range(5000, 5100))]
    assert alone == block[::-1].tolist()
    started = time.perf_counter()
    far = pickle.loads(pickle.dumps(other)).samples_at(np.arange(10**13, 10**13 + 1000))  # noqa: S301 - our own object
    assert len(far) == 1000
    assert time.perf_counter() - started < 1.0
    with pytest.raises(ValueError, match="below 0"):
        order.samples_at(np.array([-1]))


def test_seeds_and_epochs_differ() -> None:
    corpus = make_corpus([(Kind.TEXT, 0, 100)])
    first = Order(*corpus, KindWeights(0, 1, 0), {}, 2, 1)
    other = Order(*corpus, KindWeights(0, 1, 0), {}, 2, 2)
    one, two = first.samples_at(np.arange(100)), first.samples_at(np.arange(100, 200))
    assert (one != two).mean() > 0.8
    assert (one != other.samples_at(np.arange(100))).mean() > 0.8


def test_reading_stays_within_a_window_of_shards() -> None:
    _, _, shards = corpus = make_corpus([(Kind.TEXT, 0, 1000)], shard_size=10)
    order = Order(*corpus, KindWeights(0, 1, 0), {}, 4, 3)
    read = shards[order.samples_at(np.arange(2000))]
    windows = [frozenset(read[first : first + 40].tolist()) for first in range(0, 2000, 40)]
    assert {len(window) for window in windows} == {4}
    assert len(set(windows)) == 50, "each epoch brings other shards together"
    # Shuffled across the whole window, not shard after shard.
    assert len(np.unique(read[:10])) > 1


def test_bad_weights_are_refused() -> None:
    corpus = make_corpus([(Kind.TEXT, 0, 5), (Kind.TEXT, 1, 5)])
    with pytest.raises(UserError, match="no pair sample"):
        Order(*corpus, KindWeights(0, 1, 1), {}, 1, 0)
    with pytest.raises(UserError, match="did you mean 'wiki'"):
        Order(*corpus, KindWeights(0, 1, 0), {"wika": 1.0}, 1, 0, source_names=("wiki", "news"))
    with pytest.raises(UserError, match="at least 0"):
        Order(*corpus, KindWeights(0, 1, 0), {"wiki": -1.0}, 1, 0, source_names=("wiki", "news"))
    with pytest.raises(UserError, match="give one a weight"):
        Order(*corpus, KindWeights(0, 1, 0), {"wiki": 0.0, "news": 0.0}, 1, 0, source_names=("wiki", "news"))
    with pytest.raises(UserError, match=r"wiki=0.5 but nothing for news; set data.source_weights.news"):
        Order(*corpus, KindWeights(0, 1, 0), {"wiki": 0.5}, 1, 0, source_names=("wiki", "news"))
    with pytest.raises(UserError, match=r"no such source.*source_weights.gone=0 "):
        Order(*corpus, KindWeights(0, 1, 0), {"gone": 1.0}, 1, 0, source_names=("wiki", "news"))
    folders = {"folder_ids": np.repeat([0, 1], 5)}
    with pytest.raises(UserError, match=r"data.folder_weights has -1 for here; it must be at least 0"):
        Order(*corpus, KindWeights(0, 1, 0), **folders, folder_weights={"here": -1.0, "there": 2.0})
    with pytest.raises(UserError, match=r"has 2 for there, which holds no sample of a kind and source that is read"):
        Order(
            *corpus,
            KindWeights(0, 1, 0),
            {"wiki": 1.0, "news": 0.0},
            **folders,
            source_names=("wiki", "news"),
            folder_weights={"here": 1.0, "there": 2.0},
        )
    Order(*corpus, KindWeights(0, 1, 0), {"gone": 0.0}, 1, 0, source_names=("wiki", "news"))
    only_news = Order(*corpus, KindWeights(0, 1, 0), {"wiki": 0.0}, 1, 0, source_names=("wiki", "news"))
    assert set(only_news.samples_at(np.arange(20)).tolist()) == set(range(5, 10))
