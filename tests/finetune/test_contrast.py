"""The contrastive term of retrieval: against its formula, in any number of micro-batches, and what it leaves alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.evaluation.small import PlainEngine
from tests.finetune import small
from unimo_ds.data.tokenizer import load
from unimo_ds.finetune import contrast, tasks
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.utils.errors import UserError

CAPTIONS = (0, 1, 4, 7, 12, 16)
"""The first two are of one image, and so no negatives of each other."""


class GradientEngine(PlainEngine):
    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None:
        assert not is_boundary, "the joint encodings end the step"
        loss.backward()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    small.write_pairs(path)
    return path


def opened(folder: Path, *changes: str):
    tokenizer = load(folder / "train")
    changes = ("finetune.retrieval.negative_images=2", *changes)
    _, config, examples = small.open_task("retrieval", folder, tokenizer, "train", *changes)
    return examples, config, GradientEngine(small.plain_engine(config).module)


def packed(examples, captions):
    return pack_examples([examples.make(caption, 3) for caption in captions], feature_size=8, target_size=1)


@pytest.mark.parametrize("parts", [[CAPTIONS], [CAPTIONS[:1], (), CAPTIONS[1:]]], ids=["whole", "in parts"])
def test_it_is_its_formula_in_any_micro_batches(folder, parts):
    examples, _, engine = opened(folder)
    found = contrast.accumulate(engine, [packed(examples, part).singles for part in parts], scale=0.25)
    gradients = {name: one.grad for name, one in engine.module.named_parameters()}

    _, _, plain = opened(folder)
    with torch.set_grad_enabled(True):
        output = plain.module(packed(examples, CAPTIONS).singles)
        images, texts = (functional.normalize(one, dim=1) for one in (output.pooled_images, output.pooled_texts))
        scores = texts @ images.T / output.temperature
        image_of = torch.from_numpy(examples.pairs.image_of_C[np.array(CAPTIONS)])
        scores = scores.masked_fill(
            (image_of[:, None] == image_of) & ~torch.eye(len(scores), dtype=torch.bool), -torch.inf
        )
        # One denominator for both directions, the pair itself in it once.
        others = scores.T.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
        expected = (torch.cat((scores, others), 1).logsumexp(1) - scores.diagonal()).sum()
    (0.25 * expected).backward()
    assert found.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.loss_sum.item() > 1
    for name, parameter in plain.module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert gradients["temperature.raw"].abs() > 0


def test_the_path_of_the_loss_can_be_chosen(folder):
    examples, _, engine = opened(folder)
    step = packed(examples, CAPTIONS).singles
    found = [contrast.accumulate(engine, [step], scale=1.0, path=path).loss_sum for path in ("auto", "tiled")]
    torch.testing.assert_close(*found)
    with pytest.raises(UserError, match="no path 'tile'; did you mean 'tiled'"):
        contrast.accumulate(engine, [step], scale=1.0, path="tile")


def test_images_and_texts_alone_have_no_joint_score(folder):
    """Though there are equally many of them."""
    examples, _, engine = opened(folder)
    with torch.no_grad():
        output = engine.module(packed(examples, CAPTIONS).singles)
    assert len(output.pooled_images) == len(output.pooled_texts) == len(CAPTIONS)
    assert output.scores.shape == (0, 1)


def test_a_weight_of_nothing_leaves_the_papers_batch(folder):
    with_both, _, _ = opened(folder)
    alone, _, _ = opened(folder, "finetune.retrieval.contrastive_weight=0")
    made, paper = with_both.make(4, 7), alone.make(4, 7)
    assert paper.pair is None
    assert alone.lengths(4, 7) == with_both.lengths(4, 7)[2:]
    assert [one.seed for one in made.sequences] == [one.seed for one in paper.sequences]
    assert packed(alone, CAPTIONS).singles.num_sequences == 0


def test_without_negatives_single_encodings_alone_are_trained_and_measured(folder):
    none = ("finetune.retrieval.negative_images=0", "finetune.retrieval.negative_captions=0")
    examples, config, engine = opened(folder, *none)
    task = tasks.load("retrieval")
    assert task.prepare_training(examples, engine, config) is examples
    batch = packed(examples, CAPTIONS)
    assert batch.num_sequences == 0
    assert batch.singles.num_sequences == 2 * len(CAPTIONS)
    assert task.loss_sum(engine.forward(batch), batch, config.finetune).item() == 0
    found = task.evaluate(engine, examples, config=config, tokenizer=None)
    assert {name.split("/")[0] for name in found.metrics} == {"single", "combined"}
    assert found.metrics["combined/mean_recall"] == found.metrics["single/mean_recall"]
    with pytest.raises(UserError, match="nothing is trained"):
        opened(folder, *none, "finetune.retrieval.contrastive_weight=0")


def test_moving_a_batch_leaves_its_pairs_on_the_host(folder):
    examples, _, _ = opened(folder)
    batch = packed(examples, CAPTIONS)
    there = batch.to(torch.device("meta"))
    assert there.singles is batch.singles
    assert there.token_ids.is_meta
    assert {item.name for item in dataclasses.fields(there)} == {item.name for item in dataclasses.fields(batch)}
