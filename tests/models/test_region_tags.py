"""Tags of regions: they are added before the layer norm, packing leaves no trace of them, and a model without is what it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests import support
from tests.engine.test_rehearsal import over_one_image
from tests.models.test_unimo import total
from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import NO_TAG, Example, PackedBatch, SequenceRole
from unimo_ds.engine.rehearsal import clean_part
from unimo_ds.models.embeddings import TagTables
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.seed import generator

SIZES = support.model_config(region_tag_sizes=support.REGION_TAG_SIZES)


def make_model() -> Unimo:
    return Unimo(SIZES, seed=3).double().train()


def packed(examples: list[Example]) -> PackedBatch:
    return pack(examples, feature_size=support.FEATURES, classes_per_region=support.STORED_CLASSES)


def test_a_model_without_tables_has_the_parameters_and_bits_it_had():
    plain, tabled = (
        dict(Unimo(support.model_config(), seed=3).named_parameters()),
        dict(make_model().named_parameters()),
    )
    names = {f"region_embedding.tags.{number}.weight" for number in range(2)}
    assert tabled.keys() - plain.keys() == names
    assert [name for name in tabled if name not in names] == list(plain)
    assert all(not tabled[name][-1].any() for name in names)
    batch = packed([support.example(position) for position in range(5)])
    assert batch.region_tags.shape == (len(batch.region_features), 0)


def test_embeddings_of_tags_are_added_to_the_sum():
    embedding, random = make_model().region_embedding, generator(0)
    features, boxes = (torch.from_numpy(one).double() for one in support.regions(random, 3))
    tags = torch.tensor([[NO_TAG, NO_TAG], [0, NO_TAG], [NO_TAG, 4], [3, 1]])
    first, second = embedding.tags[0].weight, embedding.tags[1].weight
    added = torch.stack([torch.zeros(32).double(), first[0], second[4], first[3] + second[1]])
    expected = embedding.norm(embedding.feature(features) + embedding.location(boxes) + added)
    torch.testing.assert_close(embedding(features, boxes, tags), expected, rtol=0, atol=1e-12)


def test_packing_leaves_no_trace_of_tags():
    """However sequences lie, and whether they share an image's rows; what they see depends on its tags."""
    model = make_model()
    sequences = [one for position in range(6) for one in support.tagged(support.example(position)).sequences]
    lengths = [one.length for one in sequences]
    together = model.encode(pack_sequences(sequences)).split(lengths)
    backward = model.encode(pack_sequences(sequences[::-1])).split(lengths[::-1])[::-1]
    alone = [model.encode(pack_sequences([one])) for one in sequences]
    others = [
        one if one.region_tags is None else dataclasses.replace(one, region_tags=np.zeros_like(one.region_tags))
        for one in sequences
    ]
    changed = model.encode(pack_sequences(others)).split(lengths)
    for at, one in enumerate(sequences):
        torch.testing.assert_close(together[at], alone[at], rtol=0, atol=1e-12)
        torch.testing.assert_close(together[at], backward[at], rtol=0, atol=1e-12)
        assert torch.allclose(together[at], changed[at]) == (one.region_tags is None)


@pytest.mark.parametrize("change", [lambda example: example, over_one_image], ids=["exact", "shared_image"])
def test_a_rehearsal_sees_the_tags(change):
    batch = packed([change(support.tagged(support.example(position))) for position in range(8)])
    model = make_model()
    whole, rehearsed = model(batch), model(clean_part(batch, batch))
    torch.testing.assert_close(rehearsed.pooled_images, whole.pooled_images, rtol=0, atol=1e-12)
    torch.testing.assert_close(rehearsed.pooled_texts, whole.pooled_texts, rtol=0, atol=1e-12)


def test_gradients_reach_every_row_but_that_of_no_tag():
    model = make_model()
    total(model(packed([support.tagged(support.example(position)) for position in range(40)]))).backward()
    for table in model.region_embedding.tags:
        assert (table.weight.grad != 0).any(1).tolist() == [*[True] * (len(table.weight) - 1), False]


def test_batches_without_images_run_the_tables():
    model = make_model()
    for batch in (packed([]), packed([support.example(1)])):
        model.zero_grad()
        total(model(batch)).backward()
        assert all(
            table.weight.grad is not None and not table.weight.grad.any() for table in model.region_embedding.tags
        )


def test_tags_and_tables_must_fit():
    plain, with_tags = support.example(2), support.tagged(support.example(2))
    with pytest.raises(ValueError, match="regions have 0 tags, the model has tables for 2"):
        make_model()(packed([plain]))
    with pytest.raises(ValueError, match="regions have 2 tags, the model has tables for 0"):
        Unimo(support.model_config())(packed([with_tags]))
    with pytest.raises(ValueError, match="dimension"):
        packed([plain, with_tags])


@pytest.mark.parametrize("tag", [5, 6, 300, NO_TAG - 1])
def test_a_number_that_has_no_row_is_not_taken_for_none(tag):
    tables = TagTables((4, 5), 32)
    assert not tables(torch.tensor([[NO_TAG], [NO_TAG]])).any()
    with pytest.raises(IndexError):
        tables(torch.tensor([[NO_TAG], [tag]]))


def test_low_precision_keeps_large_tags_apart():
    """Tags stay whole numbers whatever the weights are: bfloat16 knows no 257."""
    sizes = support.model_config(region_tag_sizes=(300,), initializer_range=0.5)
    embedding = Unimo(sizes, seed=3).bfloat16().region_embedding
    image = support.sequence(SequenceRole.SINGLE_IMAGE, 1, image=support.regions(generator(0), 1))
    embedded = []
    for number in (256, 257):
        tags = np.array([[NO_TAG], [number]], np.int32)
        batch = pack_sequences([dataclasses.replace(image, region_tags=tags)])
        embedded.append(embedding(batch.region_features, batch.region_boxes, batch.region_tags))
    assert torch.equal(embedded[0][0], embedded[1][0])
    assert not torch.equal(embedded[0][1], embedded[1][1])
