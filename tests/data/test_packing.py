"""The stream holds what the sequences held, at the places it claims, and the contrast table points at the right rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import (
    CLS,
    SEP,
    Example,
    Kind,
    LanguageObjective,
    Level,
    PackedBatch,
    SequenceInput,
    SequenceRole,
)
from unimo_ds.utils import seed

FEATURES, CLASSES = 6, 3


def make_sequence(
    role: SequenceRole, seed: int, *, regions: int = 0, tokens: int = 0, level: Level = Level.NONE
) -> SequenceInput:
    random = np.random.default_rng(seed)
    rows = 1 + regions
    ids = np.concatenate([[CLS], random.integers(4, 90, tokens), [SEP]]).astype(np.int32)
    length = (rows if regions else 0) + (len(ids) if tokens else 0)
    is_corrupted = role is SequenceRole.CORRUPTED
    masked = np.arange(1, rows, 2, dtype=np.int32) if regions and is_corrupted else np.zeros(0, np.int32)
    predicted = np.arange(length - 2, length, dtype=np.int32) if tokens and is_corrupted else np.zeros(0, np.int32)
    return SequenceInput(
        role=role,
        seed=seed,
        level=level,
        region_features=random.normal(size=(rows, FEATURES)).astype(np.float16) if regions else None,
        region_boxes=random.random((rows, 5)).astype(np.float32) if regions else None,
        token_ids=ids if tokens else None,
        token_positions=np.arange(2, 2 + len(ids), dtype=np.int32) if tokens else None,
        prefix_length=length,
        language_objective=LanguageObjective.SEQUENCE_TO_SEQUENCE if seed % 2 else LanguageObjective.MASKED,
        language_at=predicted,
        language_targets=predicted + 50,
        masked_region_at=masked,
        masked_region_features=random.normal(size=(len(masked), FEATURES)).astype(np.float16) if len(masked) else None,
        masked_region_class_ids=random.integers(0, 9, (len(masked), CLASSES)).astype(np.int32) if len(masked) else None,
        masked_region_class_probabilities=(
            random.random((len(masked), CLASSES)).astype(np.float16) if len(masked) else None
        ),
    )


def make_pair(position: int) -> Example:
    base = 100 * position
    roles = [
        make_sequence(SequenceRole.CORRUPTED, base, regions=3, tokens=4),
        make_sequence(SequenceRole.JOINT_PAIR, base + 1, regions=3, tokens=4),
        make_sequence(SequenceRole.JOINT_POSITIVE, base + 2, regions=3, tokens=5),
        make_sequence(SequenceRole.JOINT_NEGATIVE, base + 3, regions=3, tokens=6, level=Level.SENTENCE),
        make_sequence(SequenceRole.JOINT_NEGATIVE, base + 4, regions=3, tokens=4, level=Level.WORD),
        make_sequence(SequenceRole.SINGLE_IMAGE, base + 5, regions=3),
        make_sequence(SequenceRole.SINGLE_TEXT, base + 6, tokens=4),
        make_sequence(SequenceRole.RELATED_IMAGE, base + 7, regions=2),
        make_sequence(SequenceRole.RELATED_TEXT, base + 8, tokens=7),
        make_sequence(SequenceRole.SINGLE_NEGATIVE, base + 9, tokens=6, level=Level.SENTENCE),
    ]
    return Example(f"pair:{position}", Kind.PAIR, position, tuple(roles), text_key=position + 7, image_key=position + 9)


def make_text(position: int) -> Example:
    sequence = make_sequence(SequenceRole.CORRUPTED, position, tokens=9)
    return Example(f"text:{position}", Kind.TEXT, position, (sequence,))


def check_stream(batch: PackedBatch, sequences: list[SequenceInput]) -> None:
    """Every claim about places, checked one sequence at a time."""
    assert batch.num_sequences == len(sequences)
    assert batch.num_positions == sum(sequence.length for sequence in sequences)
    assert batch.longest == max(sequence.length for sequence in sequences)
    for index, sequence in enumerate(sequences):
        start, end = batch.sequence_starts[index : index + 2].tolist()
        assert end - start == sequence.length
        assert batch.position_sequence[start:end].tolist() == [index] * sequence.length
        assert batch.position_offset[start:end].tolist() == list(range(sequence.length))
        keys = seed.position_keys(
            torch.tensor([sequence.seed]), torch.zeros(end - start).int(), torch.arange(end - start)
        )
        assert torch.equal(batch.position_keys[start:end], keys)
        assert int(batch.prefix_lengths[index]) == sequence.prefix_length
        assert int(batch.sequence_seeds[index]) == sequence.seed
        inside = (batch.token_at >= start) & (batch.token_at < end)
        if sequence.token_ids is not None and sequence.token_positions is not None:
            assert (batch.token_at[inside] - start).tolist() == list(range(sequence.num_regions, sequence.length))
            assert batch.token_ids[inside].tolist() == sequence.token_ids.tolist()
            assert batch.token_positions[inside].tolist() == sequence.token_positions.tolist()
        else:
            assert not inside.any()
        inside = (batch.region_at >= start) & (batch.region_at < end)
        assert (batch.region_at[inside] - start).tolist() == list(range(sequence.num_regions))
        if sequence.region_features is not None and sequence.region_boxes is not None:
            assert np.array_equal(batch.region_features[batch.region_row[inside]].numpy(), sequence.region_features)
            assert np.array_equal(batch.region_boxes[batch.region_row[inside]].numpy(), sequence.region_boxes)
        inside = (batch.language_at >= start) & (batch.language_at < end)
        assert (batch.language_at[inside] - start).tolist() == sequence.language_at.tolist()
        assert batch.language_targets[inside].tolist() == sequence.language_targets.tolist()
        assert set(batch.language_objectives[inside].tolist()) <= {int(sequence.language_objective)}
        inside = (batch.masked_region_at >= start) & (batch.masked_region_at < end)
        assert (batch.masked_region_at[inside] - start).tolist() == sequence.masked_region_at.tolist()
        if sequence.masked_region_features is not None:
            assert np.array_equal(batch.masked_region_features[inside].numpy(), sequence.masked_region_features)
            assert np.array_equal(
                batch.masked_region_class_ids[inside].numpy(), np.asarray(sequence.masked_region_class_ids)
            )
            assert np.array_equal(
                batch.masked_region_class_probabilities[inside].numpy(),
                np.asarray(sequence.masked_region_class_probabilities, np.float32),
            )


def test_stream_holds_every_sequence_where_it_says() -> None:
    examples = [make_text(0), make_pair(1), make_text(2), make_pair(3)]
    batch = pack(examples, [0, 4, 0, 5])
    check_stream(batch, [sequence for example in examples for sequence in example.sequences])
    assert batch.keys == ("text:0", "pair:1", "text:2", "pair:3")
    assert (batch.prefix_of == -1).all()


def test_contrast_table_scores_each_role_against_its_partner() -> None:
    examples = [make_text(0), make_pair(1), make_pair(3)]
    batch = pack(examples, [0, 4, 5])
    table = batch.contrast
    assert table.pair_position.tolist() == [1, 3]
    assert table.pair_group.tolist() == [4, 5]
    assert table.pair_image_key.tolist() == [10, 12]
    assert table.pair_text_key.tolist() == [8, 10]
    image_seed = batch.sequence_seeds[batch.position_sequence[batch.pooled_image_at].long()]
    text_seed = batch.sequence_seeds[batch.position_sequence[batch.pooled_text_at].long()]
    assert image_seed[table.pair_image].tolist() == [105, 305]
    assert text_seed[table.pair_text].tolist() == [106, 306]
    # (image's sequence, text's sequence) as last digits of the seeds, in the order the sequences stand in.
    expected = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 6), (5, 8), (5, 9)]
    roles = [
        SequenceRole.JOINT_PAIR,
        SequenceRole.JOINT_POSITIVE,
        SequenceRole.JOINT_NEGATIVE,
        SequenceRole.JOINT_NEGATIVE,
        SequenceRole.SINGLE_IMAGE,
        SequenceRole.RELATED_IMAGE,
        SequenceRole.RELATED_TEXT,
        SequenceRole.SINGLE_NEGATIVE,
    ]
    got = zip(image_seed[table.score_image].tolist(), text_seed[table.score_text].tolist(), strict=True)
    assert list(got) == [(100 * p + i, 100 * p + t) for p in (1, 3) for i, t in expected]
    assert table.score_pair.tolist() == [0] * 8 + [1] * 8
    assert table.score_role.tolist() == [int(role) for role in roles] * 2
    assert table.score_level.tolist() == [0, 0, 1, 3, 0, 0, 0, 1] * 2
    # Pooled positions are the first of the image part and the first of the text part, and nothing corrupted is pooled.
    assert batch.position_offset[batch.pooled_image_at].tolist() == [0] * len(batch.pooled_image_at)
    assert (batch.token_ids[torch.searchsorted(batch.token_at, batch.pooled_text_at)] == CLS).all()
    assert not set(image_seed.tolist()) & {0, 100, 300}


def test_pack_sequences_pools_everything_in_order() -> None:
    sequences = [
        make_sequence(SequenceRole.CORRUPTED, 1, regions=2, tokens=3),
        make_sequence(SequenceRole.SINGLE_TEXT, 2, tokens=2),
        make_sequence(SequenceRole.SINGLE_IMAGE, 3, regions=4),
    ]
    batch = pack_sequences(sequences)
    check_stream(batch, sequences)
    assert batch.pooled_image_at.tolist() == [0, 12]
    assert batch.pooled_text_at.tolist() == [3, 8]
    assert len(batch.contrast.pair_position) == len(batch.contrast.score_pair) == 0


def test_empty_batch_keeps_shapes_and_dtypes() -> None:
    empty, full = pack([], [], feature_size=FEATURES, classes_per_region=CLASSES), pack([make_pair(1)])
    assert empty.num_positions == empty.num_sequences == empty.longest == 0
    assert empty.sequence_starts.tolist() == [0]
    for item in dataclasses.fields(PackedBatch):
        one, other = getattr(empty, item.name), getattr(full, item.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, item.name
            assert one.shape[1:] == other.shape[1:], item.name
    for item in dataclasses.fields(empty.contrast):
        assert getattr(empty.contrast, item.name).dtype == getattr(full.contrast, item.name).dtype


def test_text_only_batch_has_feature_columns() -> None:
    batch = pack([make_text(0)], feature_size=FEATURES, classes_per_region=CLASSES)
    assert batch.region_features.shape == (0, FEATURES)
    assert batch.masked_region_class_ids.shape == (0, CLASSES)


def test_inconsistent_input_is_refused() -> None:
    pair = make_pair(1)
    without_text = dataclasses.replace(
        pair, sequences=tuple(s for s in pair.sequences if s.role is not SequenceRole.SINGLE_TEXT)
    )
    with pytest.raises(ValueError, match=r"pair:1.*SINGLE_TEXT"):
        pack([without_text])
    with pytest.raises(ValueError, match="no positions"):
        pack_sequences([SequenceInput(SequenceRole.SINGLE_TEXT, 0)])
    with pytest.raises(ValueError, match="prefix"):
        pack_sequences([dataclasses.replace(make_sequence(SequenceRole.SINGLE_TEXT, 0, tokens=3), prefix_length=6)])
    with pytest.raises(ValueError, match="pair_groups"):
        pack([pair], [0, 1])
    blind = make_sequence(SequenceRole.RELATED_IMAGE, 0, tokens=3)
    with pytest.raises(ValueError, match=r"\[IMG\]"):
        pack([dataclasses.replace(pair, sequences=(*pair.sequences, blind))])


def test_an_image_shown_by_several_sequences_is_held_once():
    """The clean sequences of a pair share its regions; its corrupted one does not, though the boxes are the same."""
    clean = make_sequence(SequenceRole.SINGLE_IMAGE, 0, regions=3)
    again = dataclasses.replace(clean, role=SequenceRole.JOINT_PAIR, token_ids=np.arange(4, dtype=np.int32))
    again = dataclasses.replace(again, token_positions=np.arange(4, dtype=np.int32), prefix_length=clean.length + 4)
    masked = dataclasses.replace(clean, region_features=np.zeros_like(clean.region_features))
    batch = pack_sequences([clean, again, masked])
    rows = clean.num_regions
    assert len(batch.region_features) == len(batch.region_boxes) == 2 * rows
    assert batch.region_row.tolist() == [*range(rows), *range(rows), *range(rows, 2 * rows)]
    check_stream(batch, [clean, again, masked])
