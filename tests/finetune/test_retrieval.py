"""Fine-tuned retrieval: which negatives a visit draws, its losses, hard negatives, and the measurement."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.small import make_engine
from tests.finetune import small
from tests.huggingface import small as runs
from unimo_ds.config import DataConfig
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.index import rewrite
from unimo_ds.data.storage.manifest import ExtractorEntry, load_manifest, write_manifest
from unimo_ds.data.tokenizer import Tokenizer, load
from unimo_ds.evaluation.measure import encode_single
from unimo_ds.finetune import predict, ranking, run, tasks
from unimo_ds.finetune.batch import TaskExample, pack_examples
from unimo_ds.finetune.hard_negatives import nearest
from unimo_ds.finetune.right_answers import of_texts, own_alone
from unimo_ds.finetune.tasks.retrieval import RetrievalExamples
from unimo_ds.losses.circle import choice_loss, circle_loss
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError

NEGATIVES = ("finetune.retrieval.negative_images=3", "finetune.retrieval.negative_captions=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    small.write_pairs(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return load(folder / "train")


def open_split(folder, tokenizer, split="train", *changes) -> tuple[RetrievalExamples, object]:
    _, config, examples = small.open_task("retrieval", folder, tokenizer, split, *NEGATIVES, *changes)
    return examples, config


def test_a_visit_holds_the_pair_other_images_and_other_captions(folder, tokenizer):
    examples, _ = open_split(folder, tokenizer)
    pairs = examples.pairs
    assert len(examples) == pairs.num_texts == 18
    seen = set()
    for seed in range(40):
        visit = examples._visit(4, seed)
        own = int(pairs.image_of_C[4])
        assert visit[0] == (own, 4)
        images, captions = visit[1:4], visit[4:]
        assert all(caption == 4 and image != own for image, caption in images)
        assert all(image == own and pairs.image_of_C[caption] != own for image, caption in captions)
        assert len({image for image, _ in images}) == 3
        assert len({caption for _, caption in captions}) == 4
        seen |= {image for image, _ in images}
    assert seen == set(range(pairs.num_images)) - {own}, "every other image is drawn sooner or later"
    assert examples._visit(4, 7) == examples._visit(4, 7)


def test_lengths_are_those_of_what_is_made(folder, tokenizer):
    examples, _ = open_split(folder, tokenizer)
    for index in (0, 5, 17):
        made = examples.make(index, 3)
        sequences = made.pair.sequences + made.sequences
        assert examples.lengths(index, 3) == [sequence.length for sequence in sequences]
        assert len({sequence.seed for sequence in sequences}) == len(sequences)


def test_memory_is_asked_for_the_images_that_image_layers_encode(folder, tokenizer):
    examples, config = open_split(folder, tokenizer)
    assert run._lengths(examples, config)[1] == []
    layers = dataclasses.replace(config, model=dataclasses.replace(config.model, num_image_layers=2))
    of_sequences, of_images = run._lengths(examples, layers)
    assert len(of_sequences) == len(of_images) == len(examples)
    for index, found in enumerate(of_images):
        shown = {image for image, _ in examples._visit(index, config.seed)}
        own = int(examples.pairs.image_of_C[index])
        assert sorted(found) == sorted(examples.pairs.image_lengths_I[[*shown, own]]), "its own once more, alone"


def test_hard_negatives_are_the_nearest_wrong_ones(folder, tokenizer):
    examples, config = open_split(folder, tokenizer, "train", "finetune.retrieval.hard_share=1")
    pairs = examples.pairs
    found = nearest(make_engine(config), pairs, own_alone(pairs), number=5)
    assert found.images_CK.shape == (18, 5)
    assert found.captions_IK.shape == (12, 5)
    assert not (found.images_CK == pairs.image_of_C[:, None]).any()
    assert not (pairs.image_of_C[found.captions_IK] == np.arange(12)[:, None]).any()
    hard = examples.with_answers(own_alone(pairs), found)
    own = int(pairs.image_of_C[4])
    for seed in range(10):
        visit = hard._visit(4, seed)
        assert {image for image, _ in visit[1:4]} <= set(found.images_CK[4].tolist())
        assert {caption for _, caption in visit[4:]} <= set(found.captions_IK[own].tolist())


def test_a_caption_of_two_images_is_wrong_for_neither(tmp_path):
    tokenizer = small.write_pairs(tmp_path)

    def alike(_: int, stored: shards.StoredSample) -> shards.StoredSample:
        captions = stored.sample.captions
        captions = [
            dataclasses.replace(one, text="two dogs") if one.text.split()[4] in "38" else one for one in captions
        ]
        return dataclasses.replace(stored, sample=dataclasses.replace(stored.sample, captions=tuple(captions)))

    for path in shards.shard_files(tmp_path / "train"):
        rewrite(path, alike, tokenizer)
    finish_folder(tmp_path / "train", tokenizer=tokenizer, num_region_classes=small.CLASSES, command="test")
    examples, config = open_split(tmp_path, tokenizer)
    pairs = examples.pairs
    same = [caption for caption in range(pairs.num_texts) if pairs.text(caption) == "two dogs"]
    assert pairs.image_of_C[same].tolist() == [3, 3, 8]
    answers = of_texts(pairs.text_keys(), pairs.image_of_C)
    found = nearest(make_engine(config), pairs, answers, number=99)
    for caption in range(pairs.num_texts):
        wrong = set(range(12)) - ({3, 8} if caption in same else {int(pairs.image_of_C[caption])})
        listed = found.images_CK[caption].tolist()
        assert listed[len(wrong) :] == [-1] * (12 - len(wrong)), "behind the last"
        assert set(listed[: len(wrong)]) == wrong, "a caption that many images share costs the others nothing"
    for image in (3, 8):
        assert not set(found.captions_IK[image].tolist()) & set(same)
    assert set(same) <= set(found.captions_IK[0].tolist())
    visit = examples.with_answers(answers, found)._visit(same[0], 0)
    assert min(min(pair) for pair in visit) >= 0
    # Those that are drawn from everything, too.
    task = tasks.load("retrieval")
    examples, config = open_split(tmp_path, tokenizer, "train", "finetune.retrieval.hard_share=0")
    prepared = task.prepare_training(examples, small.plain_engine(config), config)
    drawn = {pair for seed in range(60) for pair in prepared._visit(same[0], seed)[1:]}
    assert {image for image, caption in drawn if caption == same[0]} == set(range(12)) - {3, 8}
    assert {caption for _, caption in drawn} - {same[0]} == set(range(pairs.num_texts)) - {
        *same,
        *pairs.captions_of(3),
    }


def test_where_every_image_is_right_there_are_no_negatives(tmp_path):
    tokenizer = small.write_pairs(tmp_path, train=2)

    def alike(_: int, stored: shards.StoredSample) -> shards.StoredSample:
        captions = tuple(dataclasses.replace(one, text="two dogs") for one in stored.sample.captions)
        return dataclasses.replace(stored, sample=dataclasses.replace(stored.sample, captions=captions))

    for path in shards.shard_files(tmp_path / "train"):
        rewrite(path, alike, tokenizer)
    finish_folder(tmp_path / "train", tokenizer=tokenizer, num_region_classes=small.CLASSES, command="test")
    for change, problem in (
        ((), "one caption is that of all images"),
        (("finetune.retrieval.negative_images=0",), "one image has all captions"),
    ):
        examples, config = open_split(tmp_path, tokenizer, "train", *change)
        with pytest.raises(UserError, match=f"train has no negatives: {problem}"):
            tasks.load("retrieval").prepare_training(examples, small.plain_engine(config), config)


def test_right_answers_are_those_of_equal_texts():
    found = of_texts(np.array([7, 5, 7, 9, 5, 7]), np.array([0, 0, 1, 1, 2, 2]))
    assert [found.images.of(caption).tolist() for caption in range(6)] == [
        [0, 1, 2],
        [0, 2],
        [0, 1, 2],
        [1],
        [0, 2],
        [0, 1, 2],
    ]
    assert [found.captions.of(image).tolist() for image in range(3)] == [[0, 1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 2, 4, 5]]
    assert (found.images.most(), found.captions.most()) == (3, 5)


@pytest.mark.parametrize("loss", ["circle", "plain"])
def test_training_begins_with_the_score_of_pre_training(folder, tokenizer, loss):
    """The product of the jointly encoded vectors, of the size of their cosine; by the temperature where it is a logit."""
    examples, config = open_split(
        folder, tokenizer, "train", f"finetune.retrieval.loss={loss}", "finetune.retrieval.hard_share=0"
    )
    engine = small.plain_engine(config)
    tasks.load("retrieval").prepare_training(examples, engine, config)
    scale = 1.0 if loss == "circle" else 1 / float(engine.module.temperature().detach())
    batch = pack_examples([examples.make(index, 1) for index in range(len(examples))], feature_size=8, target_size=1)
    with torch.no_grad():
        output = engine.module.eval()(batch)
    products = (output.pooled_texts * output.pooled_images).sum(1)
    ratios = output.scores[:, 0] / products
    torch.testing.assert_close(ratios, ratios[:1].expand(len(ratios)), rtol=1e-4, atol=0)
    sizes = (output.pooled_texts.norm(dim=1) * output.pooled_images.norm(dim=1))[:: 1 + 3 + 4]
    assert float(ratios[0]) == pytest.approx(scale / float(sizes.mean()), rel=1e-4)


def test_training_draws_hard_negatives_where_it_is_asked_to(folder, tokenizer):
    examples, config = open_split(folder, tokenizer, "train", "finetune.retrieval.hard_pool=4")
    prepared = tasks.load("retrieval").prepare_training(examples, small.plain_engine(config), config)
    drawn = {image for seed in range(40) for image, _ in prepared._visit(4, seed)[1:4]}
    assert len(drawn) == 4


def test_circle_loss_is_its_formula():
    positive, negative = torch.tensor([0.3]), torch.tensor([[0.5, -0.4]])
    margin, scale = 0.2, 1.5
    total = sum(math.exp(scale * max(0, s + margin) * (s - margin)) for s in (0.5, -0.4))
    total *= math.exp(-scale * max(0, 1 + margin - 0.3) * (0.3 - 1 + margin))
    assert circle_loss(positive, negative, margin=margin, scale=scale).item() == pytest.approx(
        math.log1p(total), rel=1e-6
    )


def test_losses_pull_the_positive_up_and_the_negatives_down():
    for loss in (lambda p, n: circle_loss(p, n, margin=0.2, scale=1.0), choice_loss):
        positive, negative = torch.zeros(3, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
        loss(positive, negative).sum().backward()
        assert (positive.grad < 0).all()
        assert (negative.grad > 0).all()
    assert choice_loss(torch.zeros(1), torch.zeros(1, 3)).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("loss", ["circle", "plain"])
def test_the_tasks_loss_averages_both_sides(folder, tokenizer, loss):
    examples, config = open_split(folder, tokenizer, "train", f"finetune.retrieval.loss={loss}")
    task = tasks.load("retrieval")
    engine = small.plain_engine(config)
    batch = pack_examples([examples.make(index, 1) for index in (0, 3)], feature_size=8, target_size=1)
    output = engine.forward(batch)
    rows = output.scores.view(2, 8)

    def one(positive, negative):
        if loss == "plain":
            return choice_loss(positive, negative)
        return circle_loss(positive, negative, margin=0.2, scale=1.0)

    expected = (one(rows[:, 0], rows[:, 1:4]) + one(rows[:, 0], rows[:, 4:])).sum() / 2
    assert task.loss_sum(output, batch, config.finetune).item() == pytest.approx(expected.item(), rel=1e-6)
    empty = pack_examples([], feature_size=8, target_size=1)
    assert task.loss_sum(engine.forward(empty), empty, config.finetune).item() == 0.0


def test_measurement_ranks_every_caption_against_every_image(folder, tokenizer):
    examples, config = open_split(folder, tokenizer, "dev")
    task = tasks.load("retrieval")
    engine = small.plain_engine(config)
    found = task.evaluate(engine, examples, config=config, tokenizer=tokenizer)
    pairs = examples.pairs
    scores = np.zeros((pairs.num_texts, pairs.num_images), np.float32)
    for caption in range(pairs.num_texts):
        for image in range(pairs.num_images):
            example = TaskExample("", (pairs.joint_sequence(image, caption),), np.zeros(1, np.float32))
            batch = pack_examples([example], feature_size=8, target_size=1)
            with torch.no_grad():
                scores[caption, image] = engine.module.eval()(batch).scores.item()
    right = (scores.argmax(1) == pairs.image_of_C).mean()
    assert found.metrics["text_to_image/r@1"] == pytest.approx(right)
    assert len(found.predictions) == pairs.num_texts
    combined = scores + encode_single(engine, pairs).scores_CI / float(engine.module.temperature().detach())
    assert found.metrics["combined/text_to_image/r@1"] == pytest.approx((combined.argmax(1) == pairs.image_of_C).mean())
    assert task.best_metric in found.metrics


def test_training_measures_by_candidates_where_there_are_many(folder, tokenizer, monkeypatch):
    examples, config = open_split(folder, tokenizer, "dev")
    task, engine = tasks.load("retrieval"), small.plain_engine(config)
    monkeypatch.setattr(ranking, "_QUICK_CANDIDATES", 2)
    quick = task.evaluate(engine, examples, config=config, tokenizer=tokenizer, quick=True)
    assert "best 2 of each query" in quick.notes["candidates"]
    assert task.best_metric in quick.metrics
    assert "candidates" not in task.evaluate(engine, examples, config=config, tokenizer=tokenizer).notes


def test_every_rank_encodes_the_candidates_that_rank_0_has_chosen(folder, tokenizer, monkeypatch):
    """Ranks that choose differently would encode different numbers of micro-batches, and wait for each other for ever."""
    some, config = open_split(folder, tokenizer, "dev", "finetune.retrieval.rerank=2")
    of_rank_0 = np.array([0, 1, 1]), np.array([2, 0, 1])

    class NotFirst(SingleProcess):
        def broadcast_object(self, value: object) -> object:
            return of_rank_0 if isinstance(value, tuple) else value

    asked, real = [], predict.scores

    def noted(engine, examples, **arguments):
        asked.append((examples.images_Q.tolist(), examples.captions_Q.tolist()))
        return real(engine, examples, **arguments)

    monkeypatch.setattr(predict, "scores", noted)
    engine = small.plain_engine(config)
    engine.communicator = NotFirst()
    tasks.load("retrieval").evaluate(engine, some, config=config, tokenizer=tokenizer)
    assert asked == [tuple(one.tolist() for one in of_rank_0)]


def test_reranking_of_everything_is_the_whole_measurement(folder, tokenizer, monkeypatch):
    task = tasks.load("retrieval")
    whole, config = open_split(folder, tokenizer, "dev")
    engine = small.plain_engine(config)
    expected = task.evaluate(engine, whole, config=config, tokenizer=tokenizer).metrics
    some, few_config = open_split(folder, tokenizer, "dev", "finetune.retrieval.rerank=2")
    asked = []
    real = predict.scores

    def counted(engine, examples, **arguments):
        asked.append(len(examples))
        return real(engine, examples, **arguments)

    monkeypatch.setattr(predict, "scores", counted)
    few = task.evaluate(engine, some, config=few_config, tokenizer=tokenizer)
    assert "best 2 of each query" in few.notes["candidates"]
    assert asked[0] < whole.pairs.num_texts * whole.pairs.num_images
    # Where joint scores say nothing, single ones order the candidates.
    first = encode_single(engine, some.pairs).scores_CI.argmax(1) == some.pairs.image_of_C
    monkeypatch.setattr(
        predict, "scores", lambda engine, examples, **arguments: np.zeros((len(examples), 1), np.float32)
    )
    alone = task.evaluate(engine, some, config=few_config, tokenizer=tokenizer)
    for kind in ("single", "combined"):
        assert alone.metrics[f"{kind}/text_to_image/r@1"] == pytest.approx(first.mean())
    assert alone.metrics["joint/text_to_image/r@1"] == 0, "ties count against the model"
    # The paper's names are for the paper's protocol: everything encoded jointly.
    assert "mean_recall" in expected
    assert "joint/mean_recall" not in expected
    assert "mean_recall" not in alone.metrics
    assert expected["single/mean_recall"] == few.metrics["single/mean_recall"]
    monkeypatch.setattr(predict, "scores", real)
    many_config = small.task_config("retrieval", tokenizer, *NEGATIVES, "finetune.retrieval.rerank=9")
    assert task.evaluate(engine, some, config=many_config, tokenizer=tokenizer).metrics == expected


def test_one_image_alone_has_no_negatives(tmp_path):
    tokenizer = small.write_pairs(tmp_path, train=1, dev=1)
    with pytest.raises(UserError, match="has one image alone, so there are no negatives"):
        open_split(tmp_path, tokenizer)
    others = small.write_pairs(tmp_path / "more", train=3, dev=1)
    with pytest.raises(UserError, match="max_examples=1 leaves one image alone, so there are no negatives"):
        open_split(tmp_path / "more", others, "train", "finetune.max_examples=1")
    with pytest.raises(UserError, match="has no data folder test; make it with"):
        open_split(tmp_path, tokenizer, "test")
    with pytest.raises(UserError, match="give the folder above it"):
        open_split(tmp_path / "train", tokenizer)


def test_images_of_another_extractor_and_another_tokenizer_are_refused(folder, tokenizer):
    with pytest.raises(UserError, match="has region features of size 8, the model takes 9"):
        open_split(folder, tokenizer, "train", "model.region_feature_size=9")
    other = small.train_tokenizer()
    with pytest.raises(UserError, match="was prepared with another tokenizer than the model's"):
        open_split(folder, other)


def test_images_of_the_right_size_but_another_extractor_are_refused(tmp_path: Path):
    """The starting run's data say which it learned from."""
    tokenizer = small.write_pairs(tmp_path)
    for place, fingerprint in (("train", "1" * 16), ("dev", "2" * 16)):
        entry = dataclasses.replace(load_manifest(tmp_path / place), extractor=ExtractorEntry(fingerprint))
        write_manifest(tmp_path / place, entry)
    start = dataclasses.replace(runs.run_config(), data=DataConfig(path=str(tmp_path / "train")))
    run = runs.write_run(tmp_path / "run", config=start)
    changes = (*NEGATIVES, f"finetune.start={run}")
    assert len(open_split(tmp_path, tokenizer, "train", *changes)[0])
    with pytest.raises(UserError, match=r"dev was prepared with another extractor than the training data .*train"):
        open_split(tmp_path, tokenizer, "dev", *changes)
    assert len(open_split(tmp_path, tokenizer, "dev", *NEGATIVES)[0]), "a start from nothing has no extractor"
