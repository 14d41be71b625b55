"""Import of the released form, against files written here from its description, independently of the reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import support
from unimo_ds import cli
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.models import paddle
from unimo_ds.models.start import load_initial_weights
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.errors import UserError

TYPES = {"float16": 4, "float32": 5, "float64": 6, "int64": 3}


def write(path: Path, array: np.ndarray, *, levels: tuple[bytes, ...] = ()) -> None:
    """One parameter as Paddle 1.8 saves it."""

    def number(value: int) -> bytes:
        parts = []
        while value > 127:
            parts.append(value % 128 + 128)
            value //= 128
        return bytes([*parts, value])

    description = b"\x08" + number(TYPES[array.dtype.name])
    description += b"".join(b"\x10" + number(size) for size in array.shape)
    with path.open("wb") as file:
        file.write((0).to_bytes(4, "little") + len(levels).to_bytes(8, "little"))
        for level in levels:
            file.write(len(level).to_bytes(8, "little") + level)
        file.write((0).to_bytes(4, "little") + len(description).to_bytes(4, "little") + description)
        file.write(array.tobytes(order="C"))


def release(folder: Path, model: Unimo) -> Path:
    """The model as the release would hold it: the names of its code, matrices turned, one file each."""
    folder.mkdir(exist_ok=True)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def matrix(theirs: str, ours: str) -> None:
        write(folder / f"{theirs}.w_0", np.ascontiguousarray(weights[f"{ours}.weight"].T))
        write(folder / f"{theirs}.b_0", weights[f"{ours}.bias"])

    def norm(theirs: str, ours: str) -> None:
        write(folder / f"{theirs}_layer_norm_scale", weights[f"{ours}.weight"])
        write(folder / f"{theirs}_layer_norm_bias", weights[f"{ours}.bias"])

    write(folder / "word_embedding", weights["text_embedding.word.weight"])
    write(folder / "pos_embedding", weights["text_embedding.position.weight"])
    norm("pre_encoder", "text_embedding.norm")
    norm("v_pre_encoder", "region_embedding.norm")
    matrix("image_emb", "region_embedding.feature")
    matrix("image_loc", "region_embedding.location")
    matrix("pooled_fc_text", "text_pooler.dense")
    matrix("pooled_fc_image", "image_pooler.dense")
    matrix("mask_lm_trans_fc", "language_head.transform")
    norm("mask_lm_trans", "language_head.norm")
    write(folder / "mask_lm_out_fc.b_0", weights["language_head.bias"])
    for number in range(model.config.num_layers):
        theirs, ours = f"encoder_layer_{number}", f"layers.{number}"
        size = model.config.hidden_size
        joint, bias = (weights[f"{ours}.attention.query_key_value.{last}"] for last in ("weight", "bias"))
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * size, (place + 1) * size)
            write(folder / f"{theirs}_multi_head_att_{part}_fc.w_0", np.ascontiguousarray(joint[rows].T))
            write(folder / f"{theirs}_multi_head_att_{part}_fc.b_0", bias[rows])
        matrix(f"{theirs}_multi_head_att_output_fc", f"{ours}.attention.output")
        matrix(f"{theirs}_ffn_fc_0", f"{ours}.feed_forward_in")
        matrix(f"{theirs}_ffn_fc_1", f"{ours}.feed_forward_out")
        norm(f"{theirs}_post_att", f"{ours}.attention_norm")
        norm(f"{theirs}_post_ffn", f"{ours}.feed_forward_norm")
    return folder


def model_of(seed: int, **changes) -> Unimo:
    return Unimo(support.model_config(hidden_size=128, num_heads=2, **changes), seed=seed)


ABSENT = {
    "region_regression.weight",
    "region_regression.bias",
    "region_classification.weight",
    "region_classification.bias",
    "temperature.raw",
}
"""What the release has no names for."""


def test_every_released_parameter_is_matched(tmp_path: Path):
    source, target = model_of(1), model_of(2)
    fresh = {name: value.detach().clone() for name, value in target.named_parameters()}
    report = paddle.load_paddle(target, release(tmp_path, source))
    assert set(report.missing) == ABSENT
    assert (report.extra, report.misshapen) == ((), ())
    assert set(report.matched) == fresh.keys() - ABSENT
    expected = dict(source.named_parameters())
    for name, value in target.named_parameters():
        assert torch.equal(value, fresh[name] if name in ABSENT else expected[name]), name
    assert f"{len(fresh) - len(ABSENT)} parameters matched" in report.text()
    sizes = paddle.read_sizes(tmp_path)
    for name in ("num_layers", "hidden_size", "num_heads", "feed_forward_size", "vocabulary_size", "max_positions"):
        assert getattr(sizes, name) == getattr(source.config, name), name
    assert sizes.region_feature_size == support.FEATURES


def test_what_is_missing_extra_or_misshapen_is_told(tmp_path: Path):
    source, target = model_of(1), model_of(2)
    release(tmp_path, source)
    (tmp_path / "encoder_layer_1_multi_head_att_key_fc.w_0").unlink()
    write(tmp_path / "pos_embedding", np.zeros((20, 128), np.float32))
    write(tmp_path / "word_embedding_moment1_0", np.zeros(3, np.float32))
    write(tmp_path / "cls_out_w", np.zeros((128, 3), np.float32))
    report = paddle.load_paddle(target, tmp_path)
    assert set(report.missing) - ABSENT == {
        "layers.1.attention.query_key_value.weight",
        "text_embedding.position.weight",
    }
    assert report.extra == ("cls_out_w", "word_embedding_moment1_0")
    assert report.misshapen == (("pos_embedding", (20, 128), (66, 128)),)
    text = report.text()
    assert "wrong shape, left out: pos_embedding is 20 x 128, should be 66 x 128" in text
    assert "not used: cls_out_w" in text
    assert "missing, left as it was: layers.1.attention.query_key_value.weight" in text


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (300,), (3, 130), (2, 3, 4)])
def test_files_are_read_as_written(dtype: str, shape: tuple[int, ...], tmp_path: Path):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 3 - 7).astype(dtype)
    write(tmp_path / "x", array, levels=(b"12345678",) * (len(shape) % 2))
    found = paddle.read_tensor(tmp_path / "x")
    assert found.numpy().dtype == array.dtype
    assert np.array_equal(found.numpy(), array)


def test_a_file_of_paddle_itself_is_read(tmp_path: Path):
    """What the operator `save` of PaddlePaddle 3.3.1 writes of [[0.5, -2, 3.25]]: the form is that of 1.8."""
    written = "00000000 0000000000000000 00000000 06000000 080510011003 0000003f 000000c0 00005040"
    (tmp_path / "x").write_bytes(bytes.fromhex(written))
    assert paddle.read_tensor(tmp_path / "x").equal(torch.tensor([[0.5, -2.0, 3.25]]))


def test_damaged_files_are_named(tmp_path: Path):
    write(tmp_path / "x", np.ones((4, 5), np.float32))
    whole = (tmp_path / "x").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"{tmp_path}/x"):
            paddle.read_tensor(tmp_path / "x")
    for at in range(len(whole) - 80):
        (tmp_path / "x").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(UserError, match=f"{tmp_path}/x"):
            paddle.read_tensor(tmp_path / "x")
    with pytest.raises(UserError, match="no folder at"):
        paddle.read_sizes(tmp_path / "none")
    with pytest.raises(UserError, match="has no file word_embedding"):
        paddle.read_sizes(tmp_path)
    with pytest.raises(UserError, match="holds none of this model's parameters"):
        paddle.load_paddle(model_of(1), tmp_path)


def test_a_release_becomes_a_folder_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = tokenizers.train(["some words"], vocabulary_size=270, output=tmp_path / "tokenizer")
    source = model_of(1, vocabulary_size=tokenizer.vocabulary_size)
    words = [
        "convert",
        "--paddle",
        str(release(tmp_path / "release", source)),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
    ]
    assert cli.main([*words, "--to", str(tmp_path / "to"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["missing"]) == ABSENT
    assert cli.main([*words, "--to", str(tmp_path / "to")]) == 2, "never overwrites"
    target = model_of(2, vocabulary_size=tokenizer.vocabulary_size, num_region_classes=1601)
    assert load_initial_weights(target, tmp_path / "to") == []
    expected = dict(source.named_parameters())
    for name, value in target.named_parameters():
        assert name in ABSENT or torch.equal(value, expected[name]), name
    assert "Licence and terms are the release's" in (tmp_path / "to" / "README.md").read_text()
    with pytest.raises(UserError, match="the model wants"):
        load_initial_weights(model_of(2), tmp_path / "to")
