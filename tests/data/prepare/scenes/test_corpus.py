"""The parts of the demo corpus: disjoint, with near-duplicates that captions tell apart, and related items that share things."""

from __future__ import annotations

import itertools

import pytest

from tests.data.prepare.scenes.reading import is_true_of
from unimo_ds.data.prepare.scenes import corpus as scene_corpus
from unimo_ds.data.prepare.scenes.corpus import Part
from unimo_ds.data.prepare.scenes.model import Scene, Thing

SEED = 5


@pytest.fixture(scope="module")
def held_out():
    scenes = scene_corpus.sample_scenes(150, seed=SEED, part=Part.HELD_OUT, avoid=())
    pairs = scene_corpus.caption_pairs(scenes, captions_per_pair=1, seed=SEED, part=Part.HELD_OUT)
    return scene_corpus.identify_pairs(pairs, seed=SEED, part=Part.HELD_OUT)


@pytest.fixture(scope="module")
def training_scenes(held_out):
    unseen = {pair.scene.signature for pair in held_out}
    return scene_corpus.sample_scenes(300, seed=SEED, part=Part.PAIRS, avoid=unseen)


def test_scenes_are_different_within_and_between_parts(held_out, training_scenes) -> None:
    unseen = {pair.scene.signature for pair in held_out}
    seen = {scene.signature for scene in training_scenes}
    assert (len(unseen), len(seen)) == (150, 300)
    assert not unseen & seen


def test_a_part_is_a_function_of_the_seed_and_a_shorter_one_its_beginning(training_scenes, held_out) -> None:
    unseen = {pair.scene.signature for pair in held_out}
    again = scene_corpus.sample_scenes(40, seed=SEED, part=Part.PAIRS, avoid=unseen)
    assert again == training_scenes[:40]
    assert scene_corpus.sample_scenes(40, seed=SEED + 1, part=Part.PAIRS, avoid=unseen) != again


def test_each_held_out_caption_is_true_of_one_scene_alone(held_out) -> None:
    for number, pair in enumerate(held_out):
        true_of = [at for at, other in enumerate(held_out) if is_true_of(pair.captions[0].text, other.scene)]
        assert true_of == [number]


def test_many_scenes_have_a_near_duplicate(training_scenes) -> None:
    """Neighbours that differ in one attribute, one exchange or the ground."""

    def differences(first: Scene, second: Scene) -> int:
        if len(first.things) != len(second.things):
            return 99
        attributes = ("shape", "colour", "size", "cell")
        return (first.ground != second.ground) + sum(
            getattr(one, name) != getattr(other, name)
            for one, other in zip(first.things, second.things, strict=True)
            for name in attributes
        )

    near = [differences(a, b) <= 2 for a, b in itertools.pairwise(training_scenes)]
    assert 0.12 < sum(near) / len(near) < 0.28


def test_captions_and_rewrites_of_pairs(training_scenes) -> None:
    scenes = training_scenes[:60]
    pairs = scene_corpus.caption_pairs(scenes, captions_per_pair=2, seed=SEED, part=Part.PAIRS)
    captions = list(scene_corpus.rewrite_captions(pairs, seed=SEED, part=Part.PAIRS))
    for number, (scene, group) in enumerate(zip(scenes, captions, strict=True)):
        assert len({caption.text for caption in group}) == 2
        for caption in group:
            assert is_true_of(caption.text, scene)
            for neighbour in scenes[max(number - 1, 0) : number] + scenes[number + 1 : number + 2]:
                assert not is_true_of(caption.text, neighbour)
            assert len(caption.positives) == 3
            assert [rewrite.level.name for rewrite in caption.negatives].count("SENTENCE") == 3
            assert all(is_true_of(rewrite.text, scene) for rewrite in caption.positives)
            assert not any(is_true_of(rewrite.text, scene) for rewrite in caption.negatives)


def test_related_scenes_share_two_things_and_are_new(training_scenes) -> None:
    drawn = {scene.signature for scene in training_scenes}
    pool = scene_corpus.sample_relatives(200, of=training_scenes, seed=SEED, part=Part.IMAGES, avoid=drawn)
    assert not drawn & {scene.signature for scene in pool}
    related = scene_corpus.related_to(training_scenes, pool)
    assert sum(map(bool, related)) > 0.3 * len(related)
    for scene, row in zip(training_scenes, related, strict=True):
        assert len(row) <= scene_corpus.NUM_RELATED
        for at in row:
            assert len(scene.labels & pool[at].labels) >= 2


def test_related_to_nothing() -> None:
    scene = Scene((Thing("star", "red", "small", 0.5, 0.5), Thing("star", "blue", "small", 0.2, 0.2)), "sand", 0)
    assert scene_corpus.related_to([scene, scene], []) == [[], []]


def test_the_most_similar_scene_comes_first() -> None:
    def scene(*names: str) -> Scene:
        labels = [name.split() for name in names]
        return Scene(tuple(Thing(shape, colour, "small", 0.5, 0.5) for colour, shape in labels), "sand", 0)

    query = scene("red star", "blue moon".replace("moon", "crescent"))
    pool = [scene("red ring", "green star"), scene("red star", "blue crescent"), scene("red star", "blue circle")]
    assert scene_corpus.most_similar([query], pool, count=3).tolist() == [[1, 2, 0]]
