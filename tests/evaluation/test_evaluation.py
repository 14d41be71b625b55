"""Evaluation on a small corpus with a real model: packing, dealing and ranks must not change what is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.data import shard_folders
from tests.evaluation import small
from unimo_ds.config import DataConfig, RunConfig, from_dict, to_dict
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import with_fingerprints
from unimo_ds.data.schema import Kind, Level, PackedBatch, TextRole
from unimo_ds.data.storage.manifest import ExtractorEntry, load_manifest, write_manifest
from unimo_ds.data.storage.members import texts_of
from unimo_ds.evaluation import checkpoint, losses, measure, retrieval
from unimo_ds.evaluation.encode import deal, encode, micro_batches
from unimo_ds.evaluation.held_out import BEST_METRIC, check_fits, evaluate_held_out, make_reader
from unimo_ds.evaluation.losses import held_out_losses
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import choose_pairs
from unimo_ds.utils import heartbeat
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpus(tmp_path_factory.mktemp("pairs"), num_pairs=12)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return small.run_config(folder)


@pytest.fixture(scope="module")
def reader(corpus: Corpus, config: RunConfig) -> PairReader:
    return make_reader(corpus, config, choose_pairs(corpus), tokenizer=tokenizers.load(corpus.tokenizer_path))


def within(reader: PairReader, micro_batch_tokens: int) -> PairReader:
    """The same reader, whose sequences are packed into so many positions."""
    return dataclasses.replace(reader, micro_batch_tokens=micro_batch_tokens)


def test_micro_batches_cover_everything_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 30, rng.integers(0, 40))
        batches = micro_batches(lengths, micro_batch_tokens=25)
        assert np.concatenate([*batches, np.zeros(0, int)]).tolist() == list(range(len(lengths)))
        assert all(lengths[batch].sum() <= 25 or len(batch) == 1 for batch in batches)
        assert all(lengths[one].sum() + lengths[after[0]] > 25 for one, after in itertools.pairwise(batches)), "filled"
        assert all(len(batch) for batch in batches)
        for world_size in (1, 2, 3, 7):
            dealt = deal(batches, world_size=world_size)
            (rounds,) = {len(mine) for mine in dealt}
            assert rounds == math.ceil(len(batches) / world_size), "every rank runs equally many forwards"
            everything = np.concatenate([items for rounds in dealt for items in rounds] + [np.zeros(0, int)])
            assert sorted(everything.tolist()) == list(range(len(lengths)))


def test_chosen_pairs_carry_their_captions_and_negatives(corpus: Corpus, reader: PairReader) -> None:
    chosen = choose_pairs(corpus, num_pairs=5)
    assert len(set(chosen.tolist())) == 5
    assert (corpus.kinds[chosen] == Kind.PAIR).all()
    assert reader.num_images == 12
    for texts, role in ((reader.texts, TextRole.TEXT), (reader.negatives, TextRole.NEGATIVE)):
        of_role = reader.with_texts(texts)
        for index in range(len(texts)):
            stored = texts_of(corpus.read(int(reader.samples_I[texts.image_n[index]])))[texts.number_n[index]]
            assert (stored.role, stored.caption, stored.level) == (
                role,
                texts.caption_n[index],
                texts.level_n[index],
            )
            assert of_role.text(index) == stored.text
            assert len(reader.tokenizer.encode(stored.text)) == texts.tokens_n[index]
    assert reader.num_texts == 18
    assert len(reader.negatives) == 54


def test_packed_encoding_equals_one_sequence_at_a_time(config: RunConfig, reader: PairReader) -> None:
    engine = small.make_engine(config)
    engine.module.train()
    captions = reader.texts
    images_Q, texts_Q = captions.image_n, np.arange(len(captions))
    beats: list[None] = []
    with heartbeat.heard_by(lambda: beats.append(None)):
        packed = measure.score_joint(engine, within(reader, 200), images_Q, texts_Q)
    assert engine.module.training, "the mode is put back"
    assert len(beats) == engine.forwards > 1
    alone = measure.score_joint(engine, within(reader, 1), images_Q, texts_Q)
    assert packed == pytest.approx(alone, abs=1e-5)
    single = measure.encode_single(engine, within(reader, 70))
    one = encode(
        engine,
        reader.image_lengths_I[7:8],
        lambda _: reader.image_sequence(7),
        micro_batch_tokens=1,
        feature_size=small.FEATURES,
    )
    torch.testing.assert_close(single.images_ID[7], one.images_nD[0], atol=1e-5, rtol=0)
    assert one.texts_nD.shape[0] == 0


def test_reranking_every_candidate_is_retrieval_by_single_plus_joint_scores(
    config: RunConfig, reader: PairReader
) -> None:
    engine = small.make_engine(config)
    single = measure.encode_single(engine, within(reader, 200))
    captions = reader.texts
    grid = np.indices((len(captions), 12)).reshape(2, -1)
    joint = measure.score_joint(engine, within(reader, 4000), grid[1], grid[0])
    both = joint.reshape(len(captions), 12) + single.scores_CI
    expected = retrieval.from_scores(both, captions.image_n)
    found = measure.measure_reranked(engine, within(reader, 4000), single, num_candidates=100)
    assert found == expected
    assert found != measure.measure_retrieval(single, reader)


def test_rewrites_are_scored_against_their_own_caption_and_image(config: RunConfig, reader: PairReader) -> None:
    engine = small.make_engine(config)
    single = measure.encode_single(engine, within(reader, 200))
    result = measure.measure_rewrites(engine, within(reader, 500), single)
    assert result.joint[Level.WORD].num_rewrites == 36
    assert result.joint[Level.SENTENCE].num_rewrites == 18
    assert result.joint[Level.PHRASE].num_rewrites == 0
    captions, negatives = reader.texts, reader.negatives
    rewritten = reader.with_texts(negatives)
    cosine = torch.nn.functional.cosine_similarity
    wins = []
    for index in np.flatnonzero(negatives.level_n == Level.SENTENCE):
        row = next(
            row
            for row in range(len(captions))
            if (captions.image_n[row], captions.caption_n[row])
            == (negatives.image_n[index], negatives.caption_n[index])
        )
        scores = [
            measure.score_joint(engine, within(one, 1), one.image_of_C[[place]], np.array([place]))[0]
            for one, place in ((reader, row), (rewritten, int(index)))
        ]
        wins.append(scores[0] > scores[1])
    assert result.joint[Level.SENTENCE].accuracy == pytest.approx(np.mean(wins))
    texts = measure.encode_texts(engine, within(rewritten, 300))
    index = int(np.flatnonzero(negatives.level_n == Level.WORD)[0])
    image = single.images_ID[negatives.image_n[index]]
    assert cosine(texts[index], image, dim=0).isfinite()
    limited = measure.first_negatives(negatives, captions_per_image=1, per_level=1)
    assert len(limited) == 24
    few = reader.with_texts(limited)
    assert [few.text(place) for place in (0, 1)] == ["some other text 0", rewritten.text(1)]


def test_losses_do_not_depend_on_packing_and_fall_for_a_better_model(
    corpus: Corpus, config: RunConfig, reader: PairReader
) -> None:
    engine = small.make_engine(config)
    samples = reader.samples_I
    wide, narrow = (
        held_out_losses(
            engine,
            corpus,
            samples,
            reader.tokenizer,
            dataclasses.replace(config, batch=dataclasses.replace(config.batch, micro_batch_tokens=tokens)),
        )
        for tokens in (5000, 40)
    )
    assert set(wide) >= {"loss/masked_language", "loss/sequence_to_sequence", "accuracy/masked_language"}
    assert set(wide) >= {"loss/region_regression", "loss/region_classification"}
    assert wide == pytest.approx(narrow, abs=1e-5)
    # A model that knows the frequent pieces does better than an untrained one.
    with torch.no_grad():
        bias = next(
            p
            for name, p in engine.module.named_parameters()
            if name.startswith("language_head") and p.ndim == 1 and len(p) == config.model.vocabulary_size
        )
        for index in range(reader.num_texts):
            bias[reader.tokenizer.encode(reader.text(index))] = 3.0
    batches: list[PackedBatch] = []
    engine.forward = lambda batch: batches.append(batch) or engine.module(batch)
    beats: list[None] = []
    with heartbeat.heard_by(lambda: beats.append(None)):
        better = held_out_losses(engine, corpus, samples, reader.tokenizer, config)
    assert better["loss/masked_language"] < wide["loss/masked_language"] - 0.5
    assert len(beats) == len(batches)
    # One that always says the same word is right as often as it is asked for.
    targets, objectives = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("language_targets", "language_objectives")
    )
    for name, objective in losses._LANGUAGE.items():
        asked = targets[objectives == objective]
        word = asked.mode().values
        with torch.no_grad():
            bias.zero_()[word] = 100.0
        stubborn = held_out_losses(engine, corpus, samples, reader.tokenizer, config)
        assert stubborn[f"accuracy/{name}"] == pytest.approx((asked == word).double().mean().item())
        assert 0 < stubborn[f"accuracy/{name}"] < 1


def test_the_report_has_metrics_pictures_and_embeddings(corpus: Corpus, config: RunConfig) -> None:
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, num_pictures=3, num_embeddings=4))
    report = evaluate_held_out(small.make_engine(config), corpus, config)
    assert 0 <= report.metrics[BEST_METRIC] <= 1
    assert {"held_out/rewrites/joint/word", "held_out/rewrites/single/word_chance"} <= set(report.metrics)
    assert len(report.pictures) == 3
    height, width, channels = report.pictures[0].shape
    assert (channels, report.pictures[0].dtype) == (3, np.uint8)
    assert width > height
    assert report.embeddings.matrix.shape == (8, config.model.hidden_size)
    assert len(report.embeddings.labels) == 8
    assert np.linalg.norm(report.embeddings.matrix, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    again = evaluate_held_out(small.make_engine(config), corpus, config)
    assert again.metrics == report.metrics, "the same at every evaluation"


def test_pictures_are_drawn_without_jpegs_too(tmp_path: Path) -> None:
    folder = small.write_corpus(tmp_path, num_pairs=3, with_jpegs=False)
    config = small.run_config(folder)
    report = evaluate_held_out(small.make_engine(config), Corpus.open(folder), config)
    assert len(report.pictures) == 4
    assert report.pictures[0].std() > 1


def test_pairs_without_rewrites_are_measured_by_retrieval_and_losses(tmp_path: Path) -> None:
    folder = small.write_corpus(tmp_path, num_pairs=3, with_rewrites=False)
    config = small.run_config(folder)
    metrics = evaluate_held_out(small.make_engine(config), Corpus.open(folder), config).metrics
    assert 0 <= metrics[BEST_METRIC] <= 1
    assert "held_out/loss/region_regression" in metrics
    assert not [name for name in metrics if "rewrites" in name]


def test_a_damaged_pair_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small.write_corpus(tmp_path, num_pairs=6)
    config = small.run_config(folder)
    shard = folder / "pairs-000001.tar"
    content = bytearray(shard.read_bytes())
    at = content.find(b"number 4")
    content[at] ^= 1
    shard.write_bytes(bytes(content))
    report = evaluate_held_out(small.make_engine(config), Corpus.open(folder), config)
    assert report.metrics["held_out/unreadable_samples"] == 1
    assert "pairs-000001-000000" in capsys.readouterr().out
    assert np.isfinite(report.metrics[BEST_METRIC])
    for damaged in folder.glob("*.tar"):
        size = damaged.stat().st_size
        damaged.write_bytes(b"x" * size)
    with pytest.raises(UserError, match=r"no pair of .* can be read"):
        evaluate_held_out(small.make_engine(config), Corpus.open(folder), config)


def test_data_without_pairs_is_refused_before_a_run_starts(tmp_path: Path) -> None:
    """Not at its first evaluation, which may be hours later."""
    config = small.run_config(small.write_corpus(tmp_path / "train", num_pairs=6))
    texts = tmp_path / "texts"
    shard_folders.write_samples(texts, num_pairs=0, num_images=0)
    shard_folders.finish(texts)
    with pytest.raises(UserError, match=f"^{texts} holds no image-text pairs"):
        check_fits(Corpus.open(texts), config)


@pytest.mark.parametrize("name", ["tokenizer", "extractor"])
def test_data_of_the_right_sizes_but_another_make_is_refused(name: str, tmp_path: Path) -> None:
    """Sizes alone would let it be measured, and every figure be wrong."""
    config = small.run_config(small.write_corpus(tmp_path / "train", num_pairs=6))
    folder = small.write_corpus(tmp_path / "held_out", num_pairs=6)
    extractor = ExtractorEntry("1" * 16)
    write_manifest(tmp_path / "train", dataclasses.replace(load_manifest(tmp_path / "train"), extractor=extractor))
    same = dataclasses.replace(load_manifest(folder), extractor=extractor)
    write_manifest(
        folder, dataclasses.replace(same, **{name: dataclasses.replace(getattr(same, name), fingerprint="2" * 16)})
    )
    with pytest.raises(UserError, match=f"with another {name} than the training data .* `--like "):
        check_fits(Corpus.open(folder), config)
    # Where the training data is gone, the checkpoint still tells.
    config = with_fingerprints(config, Corpus.open(tmp_path / "train"))
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(
        UserError, match=f"with the {name} 2222222222222222, the data that the model was trained on with "
    ):
        check_fits(Corpus.open(folder), from_dict(RunConfig, to_dict(config)))
    check_fits(Corpus.open(folder), dataclasses.replace(config, data=DataConfig(path="gone")))  # of an older version
    write_manifest(folder, same)
    check_fits(Corpus.open(folder), config)


def test_data_of_another_model_is_refused(corpus: Corpus, config: RunConfig) -> None:
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, region_feature_size=99))
    with pytest.raises(UserError, match="features of size 8, the model takes 99"):
        evaluate_held_out(small.make_engine(config), corpus, other)


def _write_run(folder: Path, config: RunConfig) -> None:
    for step in (5, 10, 15):
        target = folder / "checkpoints" / f"step-{step}"
        target.mkdir(parents=True)
        weights = small.make_engine(config).module.state_dict()
        weights["image_pooler.dense.bias"] = torch.full_like(weights["image_pooler.dense.bias"], float(step))
        safetensors.torch.save_file(weights, target / "model.safetensors")
        digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
        files = {"model.safetensors": {"bytes": 1, "sha256": digest}}
        (target / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "checkpoints" / "latest").write_text("step-10\n")


def test_a_model_is_loaded_from_a_run_a_checkpoint_or_an_export(tmp_path: Path, config: RunConfig) -> None:
    run = tmp_path / "run"
    _write_run(run, config)

    def step_of(path: Path) -> float:
        return checkpoint.load(path, device=torch.device("cpu")).module.image_pooler.dense.bias[0].item()

    assert step_of(run) == 10, "the one that `latest` names"
    assert step_of(run / "checkpoints" / "step-5") == 5
    (run / "checkpoints" / "best").write_text("step-5\n")
    assert step_of(run / "checkpoints" / "best") == 5
    (run / "checkpoints" / "latest").unlink()
    assert step_of(run) == 15, "the newest where `latest` is lost"
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "model.safetensors").write_bytes((run / "checkpoints" / "step-5" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"no config\.json"):
        checkpoint.load(exported)
    (exported / "config.json").write_text((run / "config.json").read_text())
    assert step_of(exported) == 5
    model = checkpoint.load(run)
    assert not model.module.training
    assert model.config == config


def test_a_run_on_kernels_is_read_where_there_are_none(tmp_path: Path, config: RunConfig, reader: PairReader) -> None:
    on_kernels = dataclasses.replace(config.engine, attention="native", contrastive="native")
    _write_run(tmp_path, dataclasses.replace(config, engine=on_kernels))
    model = checkpoint.load(tmp_path, device=torch.device("cpu"))
    scores = measure.score_joint(model, reader, np.arange(2), np.arange(2))
    assert np.isfinite(scores).all()


def test_bad_checkpoints_are_named(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(UserError, match="no folder at"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a run"):
        checkpoint.load(tmp_path)
    run = tmp_path / "run"
    _write_run(run, dataclasses.replace(config, recipe="other"))
    (run / "config.json").write_text(
        json.dumps(to_dict(dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=64))))
    )
    with pytest.raises(UserError, match="does not fit the model"):
        checkpoint.load(run)
    folder = run / "checkpoints" / "step-10"
    content = (folder / "model.safetensors").read_bytes()
    listed = {"model.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": listed}))
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    checkpoint.load(run)
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256 differs"):
        checkpoint.load(run)
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="take another checkpoint"):
        checkpoint.load(run)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nor a finished checkpoint yet"):
        checkpoint.load(empty)
