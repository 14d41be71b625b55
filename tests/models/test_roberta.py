"""Text alone through a loaded RoBERTa is RoBERTa (transformers' implementation is the measure)."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForMaskedLM

from tests import support
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import SequenceRole
from unimo_ds.models.roberta import load_roberta
from unimo_ds.models.start import check_initial_weights
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import generator


@pytest.fixture(scope="module")
def teacher() -> RobertaForMaskedLM:
    config = support.model_config()
    torch.manual_seed(11)
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feed_forward_size,
            max_position_embeddings=config.max_positions,
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_epsilon,
            pad_token_id=1,
        )
    )
    with torch.no_grad():  # biases, norms and the segment vector start at values that would hide a missing one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def folder(teacher, tmp_path):
    teacher.save_pretrained(tmp_path, safe_serialization=True)
    return tmp_path


def test_text_alone_reproduces_roberta(teacher, folder):
    model = Unimo(support.model_config(), seed=1).eval()
    fresh = load_roberta(model, folder)
    assert {name.split(".")[0] for name in fresh} == {
        *(
            "image_pooler",
            "text_pooler",
            "region_embedding",
            "region_regression",
            "region_classification",
            "temperature",
        )
    }
    random = generator(5)
    texts = [support.tokens(random, count) for count in (3, 17, 8)]
    batch = pack_sequences([support.sequence(SequenceRole.SINGLE_TEXT, 1, text=text) for text in texts])
    with torch.no_grad():
        hidden = model.encode(batch)
        logits, _ = model.language_head(hidden)
        pieces = logits.split([len(text) for text in texts])
        for text, piece in zip(texts, pieces, strict=True):
            expected = teacher(torch.from_numpy(text.astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(piece, expected, rtol=1e-5, atol=1e-5)


def test_masked_language_loss_is_robertas(teacher, folder):
    model = Unimo(support.model_config()).eval()
    load_roberta(model, folder)
    whole = support.sequence(SequenceRole.CORRUPTED, 3, text=support.tokens(generator(6), 20), corrupt=True)
    labels = torch.full((1, whole.length), -100)
    labels[0, torch.from_numpy(whole.language_at.astype(np.int64))] = torch.from_numpy(
        whole.language_targets.astype(np.int64)
    )
    with torch.no_grad():
        expected = teacher(torch.from_numpy(whole.token_ids.astype(np.int64))[None], labels=labels).loss
        losses = model(pack_sequences([whole])).language_losses
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_without_language_head_leaves_it_fresh(teacher, tmp_path):
    teacher.roberta.save_pretrained(tmp_path, safe_serialization=True)
    fresh = load_roberta(Unimo(support.model_config()), tmp_path)
    assert "language_head.transform.weight" in fresh
    assert not any(name.startswith(("text_embedding", "layers")) for name in fresh)


def test_sharded_weights_are_read(teacher, tmp_path):
    teacher.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = Unimo(support.model_config())
    load_roberta(model, tmp_path)
    torch.testing.assert_close(
        model.layers[1].attention.query_key_value.weight[32:64],
        teacher.roberta.encoder.layer[1].attention.self.key.weight,
    )


def refuse(folder, match: str, *, early: bool = False, **changes) -> None:
    """early: also before a model is made."""
    config = support.model_config(initialize_from=str(folder), **changes)
    with pytest.raises(UserError, match=match):
        load_roberta(Unimo(config), folder)
    with pytest.raises(UserError, match=match) if early else contextlib.nullcontext():
        check_initial_weights(config)


def test_bad_folders_are_refused(folder, tmp_path_factory):
    refuse(folder / "nowhere", "has no config.json", early=True)
    refuse(folder, "model.num_layers=3; set model.num_layers=2", early=True, num_layers=3)
    refuse(folder, "vocab_size=50, but model.vocabulary_size=51", early=True, vocabulary_size=51)

    weights = load_file(folder / "model.safetensors")
    missing = {name: value for name, value in weights.items() if "layer.1.output.dense.bias" not in name}
    save_file(missing, folder / "model.safetensors")
    refuse(folder, r"tensor 'encoder.layer.1.output.dense.bias' is missing")
    save_file({**weights, "roberta.embeddings.LayerNorm.weight": torch.ones(5)}, folder / "model.safetensors")
    refuse(folder, r"text_embedding.norm.weight has shape \(5,\), the model wants \(32,\)")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header....")
    refuse(folder, "cannot be read")
    (folder / "model.safetensors").unlink()
    refuse(folder, "has no model.safetensors", early=True)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refuse(folder, "pickle.*save_pretrained", early=True)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refuse(folder, "type 'bert'", early=True)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    refuse(folder, "hidden_act='relu'", early=True)
    (folder / "config.json").write_text("{")
    refuse(folder, "is not JSON", early=True)


def test_the_segment_vector_is_folded_into_the_positions(teacher, folder):
    """Hugging Face adds one segment vector everywhere; here it lives in the position table."""
    model = Unimo(support.model_config())
    load_roberta(model, folder)
    embeddings = teacher.roberta.embeddings
    expected = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    torch.testing.assert_close(model.text_embedding.position.weight, expected)
