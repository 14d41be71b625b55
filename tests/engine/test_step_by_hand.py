"""A step by the paper's formulas: every sequence encoded alone, every loss written out, one pair at a time.

From a corpus to the gradients: contrast tables and plans, counts and gradient replay have no part in the other side.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional

from tests import support
from tests.data.corpora import FEATURES, MemoryCorpus, WordTokenizer, make_config, make_samples
from tests.distributed.step_worker import step_batch
from tests.evaluation.small import PlainEngine
from unimo_ds.config import ContrastConfig, LossWeights, RunConfig
from unimo_ds.data import packing, step_reader
from unimo_ds.data.schema import (
    BadSample,
    Example,
    Kind,
    LanguageObjective,
    Level,
    Rewrite,
    SequenceInput,
    SequenceRole,
    StepBatch,
)
from unimo_ds.engine.protocol import StepResult
from unimo_ds.engine.step import train_step
from unimo_ds.losses.contrastive import ACCURACIES
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks.pretraining import PretrainingTask

WEIGHTS = LossWeights(0.5, 2.0, 3.0, 0.25, 1.5)
SHARED = (
    SequenceRole.SINGLE_IMAGE,
    SequenceRole.SINGLE_TEXT,
    SequenceRole.RELATED_IMAGE,
    SequenceRole.RELATED_TEXT,
    SequenceRole.SINGLE_POSITIVE,
)
"""Encoded singly: negatives of other pairs."""
NUM_PAIRS = 16
"""One more than in a step."""


class Engine(PlainEngine):
    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None:
        loss.backward()

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult:
        return StepResult(applied=is_finite and is_wanted, gradient_norm=1.0, loss_scale=1.0)

    def set_learning_rate(self, learning_rate: float) -> None: ...


@dataclass
class Pair:
    """What one pair brings to the contrastive loss. Scores are cosines over the temperature."""

    group: int
    image: torch.Tensor
    """A unit vector, as are all others."""
    text: torch.Tensor
    temperature: torch.Tensor
    joint_positives: list[torch.Tensor] = field(default_factory=list)
    joint_negatives: list[torch.Tensor] = field(default_factory=list)
    single_positives: list[torch.Tensor] = field(default_factory=list)
    single_negatives: list[torch.Tensor] = field(default_factory=list)
    beaten: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Whether the pair scores above each negative rewrite, by the name of the accuracy."""
    images: dict[bytes, torch.Tensor] = field(default_factory=dict)
    """Its own image, then related ones, by what they show."""
    texts: dict[bytes, torch.Tensor] = field(default_factory=dict)


def corpus() -> MemoryCorpus:
    """Its pairs share texts: one's caption is related to the next, and a rewrite of the one after."""
    samples = make_samples(pairs=NUM_PAIRS)
    first = next(at for at, sample in enumerate(samples) if sample.kind is Kind.PAIR)
    texts = [pair.captions[0].text for pair in samples[first:]]
    for number, pair in enumerate(samples[first:]):
        rewrites = (Rewrite(texts[number - 2], Level.NONE), *pair.captions[0].positives[:1])
        samples[first + number] = dataclasses.replace(
            pair,
            captions=(dataclasses.replace(pair.captions[0], positives=rewrites),),
            related_texts=(texts[number - 1],),
        )
    return MemoryCorpus(samples, WordTokenizer())


def read_step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[StepBatch, list[tuple[Example, int]]]:
    """A step, and its examples with their contrastive groups."""
    seen: list[tuple[Example, int]] = []

    def pack(examples: Sequence[Example], groups: Sequence[int], **sizes: int):
        seen.extend(zip(examples, groups, strict=True))
        return packing.pack(examples, groups, **sizes)

    monkeypatch.setattr(step_reader, "pack", pack)
    reader = step_reader.StepReader(corpus(), WordTokenizer(), config, rank=0, world_size=1)
    return reader.read(4), seen


def losses_by_hand(
    model: Unimo, examples: list[tuple[Example, int]], contrast: ContrastConfig
) -> tuple[dict[str, list[torch.Tensor]], dict[str, float]]:
    """The terms of each loss, and the accuracies."""
    terms: dict[str, list[torch.Tensor]] = {field.name: [] for field in dataclasses.fields(LossWeights)}
    pairs = []
    for example, group in examples:
        add_corrupted(terms, model, example.sequences[0])
        if example.kind is Kind.PAIR:
            pairs.append(pair_of(model, example, group))
    terms["contrastive"] = [contrastive_by_hand(pair, pairs, contrast) for pair in pairs]
    return terms, accuracies_by_hand(pairs)


def encoded(model: Unimo, sequence: SequenceInput) -> torch.Tensor:
    return model.encode(packing.pack_sequences([sequence], feature_size=FEATURES))


def add_corrupted(terms: dict[str, list[torch.Tensor]], model: Unimo, sequence: SequenceInput) -> None:
    hidden = encoded(model, sequence)
    is_masked = sequence.language_objective is LanguageObjective.MASKED
    for at, target in zip(sequence.language_at, sequence.language_targets, strict=True):
        logits, _ = model.language_head(hidden[at : at + 1])
        term = -functional.log_softmax(logits.double(), 1)[0, target]
        terms["masked_language" if is_masked else "sequence_to_sequence"].append(term)
    for row, at in enumerate(sequence.masked_region_at):
        features = torch.from_numpy(sequence.masked_region_features[row]).double()
        terms["region_regression"].append((model.region_regression(hidden[at]).double() - features).square().mean())
        logs = functional.log_softmax(model.region_classification(hidden[at]).double(), 0)
        chances = torch.from_numpy(sequence.masked_region_class_probabilities[row]).double()
        ids = torch.from_numpy(sequence.masked_region_class_ids[row]).long()
        terms["region_classification"].append(-(chances / chances.sum() * logs[ids]).sum())


def pair_of(model: Unimo, example: Example, group: int) -> Pair:
    images, texts = {}, {}
    for at, sequence in enumerate(example.sequences[1:]):
        hidden = encoded(model, sequence)
        if sequence.num_regions:
            images[at] = functional.normalize(model.image_pooler(hidden[0]).double(), dim=0)
        if sequence.num_tokens:
            texts[at] = functional.normalize(model.text_pooler(hidden[sequence.num_regions]).double(), dim=0)
    roles = [sequence.role for sequence in example.sequences[1:]]
    image, text = images[roles.index(SequenceRole.SINGLE_IMAGE)], texts[roles.index(SequenceRole.SINGLE_TEXT)]
    pair = Pair(group, image, text, model.temperature().double())
    for at, sequence in enumerate(example.sequences[1:]):
        name = sequence.role.name
        if sequence.role is not SequenceRole.SINGLE_TEXT:  # scored once, as SINGLE_IMAGE
            how = "joint" if name.startswith("JOINT") else "single"
            scores = getattr(pair, f"{how}_{'negatives' if name.endswith('NEGATIVE') else 'positives'}")
            scores.append(images.get(at, image) @ texts.get(at, text) / pair.temperature)
            if name.endswith("NEGATIVE"):  # the first positive is the pair itself
                beats = getattr(pair, f"{how}_positives")[0] > scores[-1]
                pair.beaten[f"hard_negative_{how}_{sequence.level.name.lower()}"].append(beats)
        if sequence.role in SHARED:
            pair.images |= {sequence.region_features.tobytes(): images[at]} if at in images else {}
            pair.texts |= {sequence.token_ids.tobytes(): texts[at]} if at in texts else {}
    return pair


def first(items: dict[bytes, torch.Tensor]) -> bytes:
    return next(iter(items))


def in_batch(pair: Pair, pairs: list[Pair]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Cosines of other pairs' texts with its image, and of other pairs' images with its text."""
    texts, images = [], []
    for other in pairs:
        is_alike = first(pair.images) == first(other.images) or first(pair.texts) == first(other.texts)
        if other.group == pair.group and not is_alike:
            texts += [pair.image @ text for key, text in other.texts.items() if key not in pair.texts]
            images += [pair.text @ image for key, image in other.images.items() if key not in pair.images]
    return texts, images


def accuracies_by_hand(pairs: list[Pair]) -> dict[str, float]:
    right: dict[str, list[torch.Tensor]] = defaultdict(list)
    for pair in pairs:
        for name, beaten in pair.beaten.items():
            right[name] += beaten
        for name, others in zip(
            ("in_batch_image_to_text", "in_batch_text_to_image"), in_batch(pair, pairs), strict=True
        ):
            right[name] += [pair.image @ pair.text > max(others)] if others else []
    return {name: torch.stack(right[name]).double().mean().item() if right[name] else math.nan for name in ACCURACIES}


def contrastive_by_hand(pair: Pair, pairs: list[Pair], contrast: ContrastConfig) -> torch.Tensor:
    texts, images = in_batch(pair, pairs)
    single_negatives = pair.single_negatives + [score / pair.temperature for score in texts + images]

    def total(scores: list[torch.Tensor]) -> torch.Tensor:
        return sum((score.exp() for score in scores), torch.zeros((), dtype=torch.float64))

    parts = [(pair.joint_positives, pair.joint_negatives), (pair.single_positives, single_negatives)]
    if contrast.form == "one_log":
        parts = [(pair.joint_positives + pair.single_positives, pair.joint_negatives + single_negatives)]
    loss = torch.zeros((), dtype=torch.float64)
    for positives, negatives in parts:
        if positives and contrast.form == "log_each":
            each = [-torch.log(one.exp() / (one.exp() + total(negatives))) for one in positives]
            loss = loss + sum(each) / len(each)
        elif positives:
            loss = loss - torch.log(total(positives) / (total(positives) + total(negatives)))
    return loss


@pytest.mark.parametrize("form", ["one_log", "two_logs", "log_each"])
@pytest.mark.parametrize(("rewrites", "group_pairs"), [("joint", 0), ("single", 4), ("both", 3)])
def test_a_step_is_its_formulas(form, rewrites, group_pairs, monkeypatch) -> None:
    contrast = ContrastConfig(
        form=form, rewrites=rewrites, group_pairs=group_pairs, positives=2, word_negatives=2, related_images=2
    )
    config = make_config(contrast=contrast, global_samples=21, micro_batch_tokens=700)
    model_config = dataclasses.replace(config.model, num_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
    batch, examples = read_step(config, monkeypatch)
    assert len(batch.micro_batches) > 2
    model = Unimo(model_config, seed=3, temperature=0.2)
    for parameter in model.parameters():  # larger ones than at the start of a training, or all scores are alike
        parameter.data.mul_(3.0)
    expected, accuracies = losses_by_hand(model, examples, contrast)
    weights = dataclasses.asdict(WEIGHTS)
    total = sum(weights[name] * torch.stack(terms).mean() for name, terms in expected.items())
    gradients = torch.autograd.grad(total, list(model.parameters()))

    task = PretrainingTask(contrast=contrast, weights=WEIGHTS)
    metrics = train_step(Engine(model.train()), task, batch, learning_rate=1e-3)
    assert metrics.loss == pytest.approx(total.item(), rel=1e-5)
    assert metrics.counts == {name: len(terms) for name, terms in expected.items()}
    assert metrics.accuracies == pytest.approx(accuracies, nan_ok=True)
    assert 0 < metrics.accuracies["in_batch_image_to_text"] < 1
    assert metrics.positions == sum(one.length for example, _ in examples for one in example.sequences)
    assert metrics.temperature == pytest.approx(model.temperature().item())
    for name, terms in expected.items():
        assert metrics.losses[name] == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_loss_that_is_not_finite_drops_the_step(value) -> None:
    model = Unimo(support.model_config(), seed=3)
    task = PretrainingTask(contrast=ContrastConfig(), weights=WEIGHTS)
    bad = (BadSample("shard:1", "cut off", "shard:2"),)
    batch = step_batch(0, rank=0, world_size=1, micro_batches=2, group_pairs=0)
    batch = dataclasses.replace(batch, bad_samples=bad * 2, bytes_read=2**40 + 1)
    for bias, is_finite in ((0.0, True), (value, False)):
        model.region_regression.bias.data.fill_(bias)
        metrics = train_step(Engine(model), task, batch, learning_rate=1e-3)
        assert metrics.applied == math.isfinite(metrics.loss) == is_finite
        assert math.isfinite(metrics.losses["region_regression"]) == is_finite
        assert all(math.isfinite(loss) for name, loss in metrics.losses.items() if name != "region_regression")
        assert (metrics.bad_samples, metrics.bytes_read) == (2, 2**40 + 1)
