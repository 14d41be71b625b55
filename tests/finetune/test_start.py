"""Where a fine-tuning begins: the same network as the checkpoint, whatever its kind; and a fine-tuned model found again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from tests.finetune import small
from unimo_ds.config import to_dict
from unimo_ds.data.inputs import clean_sequence
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import SequenceRole
from unimo_ds.evaluation import checkpoint
from unimo_ds.finetune import tasks
from unimo_ds.finetune.loaded import load_task
from unimo_ds.finetune.model import HEAD_PREFIX, TaskModel
from unimo_ds.finetune.start import fill, read_start
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.write_checkpoint(tmp_path_factory.mktemp("start") / "export")


def batch():
    texts = [np.array([0, 7, 9, 11, 2], np.int32), np.array([0, 30, 2], np.int32)]
    return pack_sequences([clean_sequence(role=SequenceRole.SINGLE_TEXT, text=text) for text in texts], feature_size=8)


def started(path: Path, seed: int = 0) -> TaskModel:
    start = read_start(path)
    config = dataclasses.replace(small.task_config("sst2", start.tokenizer), seed=seed)
    model = TaskModel(config, tasks.load("sst2").make_head(config))
    fill(model, start)
    return model.eval()


def test_the_body_computes_what_the_checkpoint_computes(folder):
    before = checkpoint.load(folder, device=torch.device("cpu")).forward(batch())
    after = started(folder)(batch())
    assert torch.equal(before.pooled_texts, after.pooled_texts)
    assert after.scores.shape == (2, 2)


def test_heads_are_fresh_and_follow_from_the_seed(folder):
    def head(seed: int) -> torch.Tensor:
        return started(folder, seed).get_parameter("head.scores.output.weight")

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


def write_tuned(path: Path, model: TaskModel, task: str = "sst2") -> Path:
    path.mkdir()
    tokenizer = small.train_tokenizer()
    tokenizer.save(path)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    safetensors.torch.save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(to_dict(small.task_config(task, tokenizer))))
    return path


def test_a_fine_tuned_model_is_found_again_and_its_body_is_a_start(folder, tmp_path):
    model = started(folder, seed=3)
    tuned = write_tuned(tmp_path / "tuned", model)
    loaded = load_task(tuned, name="sst2", device=torch.device("cpu"))
    assert torch.equal(loaded.forward(batch()).scores, model(batch()).scores)
    assert not any(name.startswith(HEAD_PREFIX) for name in read_start(tuned).weights)
    assert torch.equal(started(tuned)(batch()).pooled_texts, model(batch()).pooled_texts)
    with pytest.raises(UserError, match="is fine-tuned on sst2, not on cola; give a checkpoint of cola"):
        load_task(tuned, name="cola")
    with pytest.raises(
        UserError, match=r"is a pre-trained model, not one fine-tuned on sst2; run `unimo finetune sst2"
    ):
        load_task(folder, name="sst2")


def test_weights_that_do_not_fit_are_said(folder, tmp_path):
    model = started(folder)
    tuned = write_tuned(tmp_path / "tuned", model)
    weights = safetensors.torch.load_file(tuned / "model.safetensors")
    weights["head.scores.output.weight"] = torch.zeros(3, 32)
    safetensors.torch.save_file(weights, tuned / "model.safetensors")
    with pytest.raises(
        UserError, match=r"'head.scores.output.weight' is \(3, 32\) in the file and \(2, 32\) in the model"
    ):
        load_task(tuned)
    del weights["text_pooler.dense.weight"]
    safetensors.torch.save_file(weights, tuned / "model.safetensors")
    with pytest.raises(UserError, match=r"'text_pooler.dense.weight' is absent in the file"):
        started(tuned)


def test_a_tokenizer_of_another_size_is_refused(folder, tmp_path):
    other = small.tokenizers.train(["a b c"], vocabulary_size=270, output=tmp_path)
    with pytest.raises(UserError, match=rf"the tokenizer has {other.vocabulary_size} pieces and the model at"):
        read_start(folder, tokenizer=tmp_path)


def test_a_roberta_folder_is_a_start(tmp_path):
    tokenizer = small.train_tokenizer(tmp_path)
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    roberta = transformers.RobertaForMaskedLM(config).eval()
    roberta.save_pretrained(tmp_path)
    start = read_start(tmp_path)
    assert read_start(tmp_path, tokenizer=tmp_path / "tokenizer.json").tokenizer.fingerprint == tokenizer.fingerprint
    backwards = [small.sentence(number)[0][::-1] for number in range(60)] + [
        "987654321 rebmun xob eulb a dna llab der a"
    ]
    other = small.tokenizers.train(backwards, vocabulary_size=320, output=tmp_path / "other")
    assert other.vocabulary_size == tokenizer.vocabulary_size
    with pytest.raises(UserError, match=f"the tokenizer {other.fingerprint} is not {tokenizer.fingerprint}"):
        read_start(tmp_path, tokenizer=tmp_path / "other")
    task_config = small.task_config("sst2", start.tokenizer)
    task_config = dataclasses.replace(task_config, model=start.config.model)
    model = TaskModel(task_config, tasks.load("sst2").make_head(task_config))
    fill(model, start)
    with torch.no_grad():
        expected = roberta.roberta(torch.tensor([[0, 7, 9, 11, 2]])).last_hidden_state[0]
        found = model.eval().encode(batch())[:5]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
