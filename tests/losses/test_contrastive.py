"""CMCL: the formula, its special cases (reference section 9, check 4 and 5), gradients, and many processes against one."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch

from unimo_ds.data.schema import ContrastTable, Level, SequenceRole
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.losses.contrastive import ACCURACIES, contrastive_loss
from unimo_ds.ops.contrastive import (
    NO_ITEM,
    Candidates,
    PrivateScores,
    SharedCandidates,
    multi_positive_loss,
    reference,
)
from unimo_ds.ops.grouping import group
from unimo_ds.utils.communicator import SingleProcess

FORMS = ("one_log", "two_logs", "log_each")


def make_table(num_pairs: int, roles: list[SequenceRole], groups: int = 1, text_keys: list[int] | None = None):
    """Every pair has the same roles, each with vectors of its own; single encodings come first."""
    rows = {"pair": [], "image": [], "text": [], "role": [], "level": [], "key": []}
    next_image, next_text = num_pairs, num_pairs
    for pair in range(num_pairs):
        for role in roles:
            image, text = pair, pair
            if role.name.startswith("JOINT"):
                image, text = next_image, next_text
                next_image, next_text = next_image + 1, next_text + 1
            elif role == SequenceRole.RELATED_IMAGE:
                image, next_image = next_image, next_image + 1
            elif role in (SequenceRole.RELATED_TEXT, SequenceRole.SINGLE_POSITIVE, SequenceRole.SINGLE_NEGATIVE):
                text, next_text = next_text, next_text + 1
            level = Level.WORD if role.name.endswith("NEGATIVE") else Level.NONE
            key = 1000 + image if role == SequenceRole.RELATED_IMAGE else 2000 + text
            for name, value in zip(rows, (pair, image, text, role, level, key), strict=True):
                rows[name].append(int(value))
    index = torch.arange(num_pairs)
    table = ContrastTable(
        pair_position=index,
        pair_group=index * groups // max(num_pairs, 1),
        pair_image=index,
        pair_text=index,
        pair_image_key=index + 100,
        pair_text_key=index + 200 if text_keys is None else torch.tensor(text_keys),
        **{f"score_{name}": torch.tensor(values, dtype=torch.int64) for name, values in rows.items()},
    )
    return table, next_image, next_text


EVERY_ROLE = [
    SequenceRole.SINGLE_IMAGE,
    SequenceRole.JOINT_PAIR,
    SequenceRole.JOINT_POSITIVE,
    SequenceRole.JOINT_NEGATIVE,
    SequenceRole.JOINT_NEGATIVE,
    SequenceRole.RELATED_IMAGE,
    SequenceRole.RELATED_TEXT,
    SequenceRole.SINGLE_POSITIVE,
    SequenceRole.SINGLE_NEGATIVE,
]


def vectors(count: int, size: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, size, dtype=dtype).requires_grad_()


def run(images, texts, table, form="one_log", in_batch=True, temperature=0.2):
    temperature = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    plan = make_plan(table, form=form, sizes=share_sizes(table, SingleProcess()))
    return contrastive_loss(
        images, texts, plan, temperature=temperature, form=form, in_batch=in_batch, communicator=SingleProcess()
    )


def accuracies(result):
    return {
        name: (int(right), int(asked))
        for name, right, asked in zip(ACCURACIES, result.right, result.asked, strict=True)
    }


def test_one_positive_equals_softmax_cross_entropy():
    roles = [SequenceRole.JOINT_PAIR] + [SequenceRole.JOINT_NEGATIVE] * 4
    table, num_images, num_texts = make_table(3, roles)
    images, texts = vectors(num_images), vectors(num_texts)
    result = run(images, texts, table, in_batch=False)
    cosine = torch.cosine_similarity(images[table.score_image], texts[table.score_text]).view(3, 5) / 0.2
    expected = torch.nn.functional.cross_entropy(cosine, torch.zeros(3, dtype=torch.int64), reduction="sum")
    torch.testing.assert_close(result.loss_sum, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_negatives_the_loss_is_exactly_zero(form):
    positives = [role for role in EVERY_ROLE if not role.name.endswith("NEGATIVE")]
    table, num_images, num_texts = make_table(3, positives)
    result = run(vectors(num_images), vectors(num_texts), table, form=form, in_batch=False)
    assert result.loss_sum.item() == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_pairs_encoded_alone_have_no_joint_part(form):
    """Rewrites encoded alone, or none at all: nothing is joint, and nothing turns into nan."""
    for roles in ([SequenceRole.SINGLE_IMAGE], [SequenceRole.SINGLE_IMAGE, SequenceRole.SINGLE_NEGATIVE]):
        table, num_images, num_texts = make_table(3, roles)
        images, texts = vectors(num_images), vectors(num_texts)
        result = run(images, texts, table, form=form)
        assert result.loss_sum > 0
        gradients = torch.autograd.grad(result.loss_sum, (images, texts))
        assert all(gradient.isfinite().all() for gradient in gradients)
        torch.testing.assert_close(result.loss_sum, run(images, texts, table, form="one_log").loss_sum)


def test_doubling_a_positive_moves_numerator_and_denominator_alike():
    table, num_images, num_texts = make_table(
        1, [SequenceRole.JOINT_PAIR, SequenceRole.JOINT_POSITIVE, SequenceRole.JOINT_NEGATIVE]
    )
    images, texts = vectors(num_images), vectors(num_texts)
    with torch.no_grad():  # the positive rewrite is the pair itself, once more
        images[2], texts[2] = images[1], texts[1]
    score = torch.cosine_similarity(images[table.score_image], texts[table.score_text]) / 0.2
    doubled = run(images, texts, table, in_batch=False).loss_sum
    pair, _, negative = score.exp().tolist()
    assert doubled.item() == pytest.approx(-math.log(2 * pair / (2 * pair + negative)), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_every_member_gets_a_gradient(form, groups):
    table, num_images, num_texts = make_table(4, EVERY_ROLE, groups=groups)
    images, texts = vectors(num_images), vectors(num_texts)
    run(images, texts, table, form=form).loss_sum.backward()
    assert (images.grad.abs().sum(-1) > 0).all()
    assert (texts.grad.abs().sum(-1) > 0).all()


def test_pairs_of_other_groups_are_no_negatives():
    table, num_images, num_texts = make_table(4, EVERY_ROLE, groups=4)
    images, texts = vectors(num_images), vectors(num_texts)
    alone = run(images, texts, table, in_batch=False).loss_sum
    torch.testing.assert_close(run(images, texts, table).loss_sum, alone)


def test_equal_captions_are_no_negatives():
    distinct, num_images, num_texts = make_table(2, EVERY_ROLE)
    same, _, _ = make_table(2, EVERY_ROLE, text_keys=[7, 7])
    images, texts = vectors(num_images), vectors(num_texts)
    alone = run(images, texts, same, in_batch=False).loss_sum
    torch.testing.assert_close(run(images, texts, same).loss_sum, alone)
    assert run(images, texts, distinct).loss_sum > alone


def test_related_items_of_other_pairs_are_negatives():
    """Else every related item that is scored is a positive, and its corpus alone gives it away."""
    table, num_images, num_texts = make_table(2, [SequenceRole.SINGLE_IMAGE, SequenceRole.RELATED_IMAGE])
    images, texts = vectors(num_images), vectors(num_texts)
    with torch.no_grad():
        texts[1] -= texts[0] * (texts[0] @ texts[1]) / texts[0].square().sum()  # so that pair 1 does not care
        images[3] = texts[0]  # what is related to pair 1 looks like the text of pair 0
    near = run(images, texts, table).loss_sum
    with torch.no_grad():
        images[3] = -texts[0]
    assert run(images, texts, table).loss_sum < near


def test_positive_rewrites_of_other_pairs_are_negatives_unless_they_are_my_own_caption():
    table, num_images, num_texts = make_table(2, [SequenceRole.SINGLE_IMAGE, SequenceRole.SINGLE_POSITIVE])
    images, texts = vectors(num_images), vectors(num_texts)
    with torch.no_grad():
        texts[3] = images[0]  # a rewrite of caption 1 that fits image 0 better than caption 0 does; caption 1 does not
        texts[0], texts[1] = images[0] + texts[0] / 10, -images[0]
    same = torch.where(table.score_pair == 1, table.pair_text_key[0], table.score_key)
    apart, alike = (run(images, texts, dataclasses.replace(table, score_key=key)) for key in (table.score_key, same))
    assert accuracies(apart)["in_batch_image_to_text"] < accuracies(alike)["in_batch_image_to_text"]
    assert apart.loss_sum > alike.loss_sum


def test_an_item_related_to_two_pairs_is_no_negative_of_either():
    roles = [SequenceRole.SINGLE_IMAGE, SequenceRole.RELATED_IMAGE]
    table, num_images, num_texts = make_table(2, roles)
    images, texts = vectors(num_images), vectors(num_texts)
    with torch.no_grad():
        images[3] = images[2]
    shared_key = dataclasses.replace(table, score_key=torch.full_like(table.score_key, 77))
    cosine = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T / 0.2
    expected = 0.0
    for pair, other in ((0, 1), (1, 0)):
        positive = torch.stack((cosine[pair, pair], cosine[2, pair])).exp().sum()
        negative = torch.stack((cosine[pair, other], cosine[other, pair])).exp().sum()
        expected -= torch.log(positive / (positive + negative)).item()
    assert run(images, texts, shared_key).loss_sum.item() == pytest.approx(expected, rel=1e-9)
    assert run(images, texts, table).loss_sum.item() > expected


@pytest.mark.parametrize("num_pairs", [0, 1, 2, 7])
@pytest.mark.parametrize("rows_per_tile", [2, 512])
@pytest.mark.parametrize("log_each", [False, True])
def test_tiled_loss_equals_the_reference(num_pairs, rows_per_tile, log_each, monkeypatch):
    monkeypatch.setattr("unimo_ds.ops.score_blocks.ROWS_PER_TILE", rows_per_tile)
    torch.manual_seed(num_pairs)
    num_scores = num_pairs * 3
    private = torch.rand(num_scores, dtype=torch.float64, requires_grad=True)
    pair = torch.arange(num_pairs).repeat(3)
    positive = torch.arange(num_scores) % 4 != 1
    positive &= (pair != num_pairs - 1) | (num_pairs == 1)  # the last of several pairs has no positive
    index = torch.arange(num_pairs)
    keys = torch.stack((index // 4, index, index, torch.full_like(index, NO_ITEM)), 1)
    owner = torch.arange(2 * num_pairs) % max(num_pairs, 1)
    items = torch.arange(2 * num_pairs) % 9
    own = torch.stack((items[:num_pairs], items[num_pairs:]), 1)
    candidate_keys = torch.cat((keys[owner, :3], items[:, None]), 1)
    queries = [torch.randn(num_pairs, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    candidates = [torch.randn(2 * num_pairs, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inverse = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    inputs = (private, *queries, *candidates, inverse)

    def evaluate(loss):
        shared = SharedCandidates(
            *queries, keys, own, own, *(Candidates(vectors, candidate_keys) for vectors in candidates)
        )
        return loss(shared=shared, inverse_temperature=inverse, log_each=log_each)

    def tiled(**arguments):
        sides = []
        for chosen in (positive, ~positive):
            groups = group(pair[chosen], num_pairs)
            sides.append(PrivateScores(private[chosen] * inverse, groups, groups.starts.diff() > 0))
        return multi_positive_loss(*sides, **arguments)[0]

    formula = functools.partial(reference, private, pair, positive, num_pairs=num_pairs)
    weights = torch.rand(num_pairs, dtype=torch.float64)
    expected, actual = evaluate(formula), evaluate(tiled)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    if num_pairs:
        for one, other in zip(
            torch.autograd.grad((actual * weights).sum(), inputs),
            torch.autograd.grad((expected * weights).sum(), inputs, materialize_grads=True, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_accuracies_count_by_level_and_direction():
    table, num_images, num_texts = make_table(2, EVERY_ROLE)
    images, texts = vectors(num_images), vectors(num_texts)
    with torch.no_grad():  # joint pairs score 0, their negatives -1; single encodings agree with their own pair alone
        joint, wrong, alone, related = (
            table.score_text[table.score_role == role]
            for role in (
                SequenceRole.JOINT_PAIR,
                SequenceRole.JOINT_NEGATIVE,
                SequenceRole.SINGLE_NEGATIVE,
                SequenceRole.RELATED_TEXT,
            )
        )
        images[2:] = torch.eye(8, dtype=torch.float64)[2]
        texts[joint] = torch.eye(8, dtype=torch.float64)[3]
        texts[wrong] = -images[2]
        texts[wrong[0]] = (
            images[2] + texts[joint[0]]
        )  # above the joint pair's score, below that of its single encodings
        images[:2] = torch.eye(2, 8, dtype=torch.float64)
        texts[:2] = images[:2]
        texts[alone[0]], texts[alone[1]] = -images[0], 2 * images[1]  # the second one ties with the caption itself
        texts[related[0]] = images[1]  # so does what is related to another pair
    assert accuracies(run(images, texts, table)) == {
        "hard_negative_joint_sentence": (0, 0),
        "hard_negative_joint_phrase": (0, 0),
        "hard_negative_joint_word": (3, 4),
        "hard_negative_single_sentence": (0, 0),
        "hard_negative_single_phrase": (0, 0),
        "hard_negative_single_word": (1, 2),
        "in_batch_image_to_text": (1, 2),
        "in_batch_text_to_image": (2, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vectors_of_16_bits_are_scored_in_fp32(dtype):
    table, num_images, num_texts = make_table(3, EVERY_ROLE)
    images, texts = vectors(num_images, dtype=dtype), vectors(num_texts, dtype=dtype)
    found, exact = run(images, texts, table), run(images.double(), texts.double(), table)
    assert found.loss_sum.dtype == torch.float32
    assert found.loss_sum.item() == pytest.approx(exact.loss_sum.item(), rel=1e-6)


@pytest.mark.parametrize("num_pairs", [0, 3])
def test_every_score_is_in_a_group_of_its_image_and_its_text(num_pairs):
    """The kernels go by the order of the groups, the plain path by the group of each score."""
    table, num_images, num_texts = make_table(num_pairs, EVERY_ROLE)
    plan = make_plan(table, form="one_log", sizes=share_sizes(table, SingleProcess()))
    for groups, count in ((plan.score_images, num_images), (plan.score_texts, num_texts)):
        assert groups.num_groups == count
        assert groups.starts[-1] == len(groups.order) == len(table.score_pair)
