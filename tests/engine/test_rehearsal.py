"""A rehearsal encodes the clean sequences alone, and finds the pooled vectors that the replay finds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests import support
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import JOINT_ROLES, Example, SequenceRole
from unimo_ds.engine.rehearsal import clean_part
from unimo_ds.models.unimo import Unimo


def over_one_image(example: Example) -> Example:
    """The same pair, its joint sequences seeing the image that is encoded alone."""
    sequences = list(example.sequences)
    for at, one in enumerate(sequences):
        if one.role in JOINT_ROLES:
            sequences[at] = dataclasses.replace(
                one, region_features=None, region_boxes=None, prefix_length=one.num_tokens, shares_prefix_at=1 - at
            )
    return dataclasses.replace(example, sequences=tuple(sequences))


def corrupted_apart(example: Example) -> Example:
    """The same, its corrupted image with features of its own, as a loader makes it."""
    corrupted, *clean = example.sequences
    if corrupted.region_features is not None:
        corrupted = dataclasses.replace(corrupted, region_features=corrupted.region_features + 1)
    return dataclasses.replace(example, sequences=(corrupted, *clean))


@pytest.mark.parametrize("num_image_layers", [0, 1])
@pytest.mark.parametrize(
    "change", [lambda example: example, over_one_image, corrupted_apart], ids=["exact", "shared_image", "apart"]
)
@pytest.mark.parametrize("positions", [range(8), range(0, 10, 5), range(0)], ids=["all kinds", "images", "nothing"])
def test_the_clean_part_has_the_pooled_vectors_of_the_whole_and_nothing_else(change, positions, num_image_layers):
    examples = [support.tagged(change(support.example(position))) for position in positions]
    batch = pack(examples, feature_size=support.FEATURES, classes_per_region=support.STORED_CLASSES)
    part = clean_part(batch, batch)
    clean = [one for example in examples for one in example.sequences if one.role is not SequenceRole.CORRUPTED]
    assert part.num_positions == sum(one.length for one in clean)
    assert part.longest == max((one.length for one in clean), default=0)
    assert part.sequence_seeds.tolist() == [one.seed for one in clean]
    images = {id(one.region_features): one.num_regions for one in clean if one.region_features is not None}
    assert part.image_starts.diff().tolist() == list(images.values())
    assert len(part.region_features) == len(part.region_tags) == sum(images.values())
    assert part.longest_image == max(images.values(), default=0)
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(part, field.name)
        assert type(after) is type(before)
        assert not isinstance(after, torch.Tensor) or after.dtype == before.dtype, field.name
        if field.name.endswith("_at"):  # a new kind of position that the part does not know of lies outside of it
            assert (after < part.num_positions).all(), field.name
    sizes = support.model_config(region_tag_sizes=support.REGION_TAG_SIZES, num_image_layers=num_image_layers)
    model = Unimo(sizes, seed=5).double().train()
    whole, rehearsed = model(batch), model(part)
    torch.testing.assert_close(rehearsed.pooled_images, whole.pooled_images, rtol=0, atol=1e-12)
    torch.testing.assert_close(rehearsed.pooled_texts, whole.pooled_texts, rtol=0, atol=1e-12)
