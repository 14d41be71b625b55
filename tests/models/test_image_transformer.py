"""The image Transformer is transformers' ViT; images lie end to end without a trace; what they show reaches every loss."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from tests import support
from tests.models.test_unimo import total
from unimo_ds.config import ModelConfig
from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import NO_TAG, PackedBatch, SequenceInput, SequenceRole
from unimo_ds.huggingface.packing import PaddedInputs, pack_padded
from unimo_ds.models.start import check_initial_weights, start_note
from unimo_ds.models.unimo import Unimo
from unimo_ds.models.vision_transformer import load_vision_transformer
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import generator

SIDE, ROWS = 4, 3
SIZES = support.model_config(num_image_layers=2, region_tag_sizes=(ROWS * ROWS,), region_feature_size=3 * SIDE**2)


def patches_of(pixels_CHW: torch.Tensor, side: int = SIDE) -> np.ndarray:
    """[R, F] patches row by row, channels last, by its definition."""
    _, height, width = pixels_CHW.shape
    rows = [
        pixels_CHW[:, top : top + side, left : left + side].permute(1, 2, 0).reshape(-1)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return torch.stack(rows).numpy()


def image_of(features: np.ndarray, **others) -> SequenceInput:
    """An image alone; its [IMG] row is not to be looked at."""
    number = len(features)
    boxes = np.concatenate(([[0, 0, 1, 1, 1]], generator(1).random((number, 5)))).astype(np.float32)
    tags = np.arange(-1, number, dtype=np.int32)[:, None]
    assert tags[0] == NO_TAG
    rows = np.concatenate((np.full((1, features.shape[1]), 7.0), features))
    fields = {"role": SequenceRole.SINGLE_IMAGE, "seed": 1, "prefix_length": number + 1, **others}
    return SequenceInput(region_features=rows, region_boxes=boxes, region_tags=tags, **fields)


def encoded(model: Unimo, batch: PackedBatch) -> torch.Tensor:
    assert model.image_transformer is not None
    return model.image_transformer(
        batch.region_features, batch.region_tags, batch.image_starts, longest=batch.longest_image
    )


def some_images(random: np.random.Generator) -> list[SequenceInput]:
    """Of different numbers of patches."""
    return [image_of(random.standard_normal((number, SIZES.region_feature_size))) for number in (9, 1, 5)]


@pytest.fixture(scope="module")
def teacher() -> ViTModel:
    torch.manual_seed(11)
    model = ViTModel(
        ViTConfig(
            hidden_size=SIZES.hidden_size,
            num_hidden_layers=SIZES.num_image_layers,
            num_attention_heads=SIZES.num_heads,
            intermediate_size=SIZES.feed_forward_size,
            image_size=SIDE * ROWS,
            patch_size=SIDE,
        )
    )
    with torch.no_grad():  # biases and norms start at values that would hide a missing one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def folder(teacher, tmp_path):
    teacher.save_pretrained(tmp_path)
    return tmp_path


def loaded(folder, **changes) -> Unimo:
    model = Unimo(dataclasses.replace(SIZES, **changes), seed=1).eval()
    load_vision_transformer(model, folder)
    return model


@pytest.mark.parametrize("normalisation", [None, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
@torch.no_grad()
def test_reproduces_the_vision_transformer_of_transformers(teacher, folder, normalisation):
    """Of pixels in [0, 1], however the teacher wants them scaled; two images in one stream."""
    pixels = torch.from_numpy(generator(4).random((2, 3, SIDE * ROWS, SIDE * ROWS))).float()
    mean, deviation = normalisation or ([0.5] * 3, [0.5] * 3)
    if normalisation is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": deviation}))
    theirs = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    expected = teacher(theirs).last_hidden_state
    batch = pack_sequences([image_of(patches_of(2 * one - 1)) for one in pixels])
    batch = dataclasses.replace(
        batch,
        region_features=torch.cat(
            [torch.cat((torch.zeros(1, 48), torch.tensor(patches_of(2 * one - 1)))) for one in pixels]
        ),
    )
    torch.testing.assert_close(encoded(loaded(folder), batch), expected.flatten(0, 1), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (2, 7), (1, 9)])
@torch.no_grad()
def test_positions_of_other_grids_are_interpolated_as_in_transformers(teacher, folder, rows, columns):
    """One of them of as many patches as the folder's."""
    pixels = torch.from_numpy(generator(5).random((1, 3, SIDE * rows, SIDE * columns))).float() * 2 - 1
    expected = teacher(pixels, interpolate_pos_encoding=True).last_hidden_state
    batch = pack_sequences([image_of(patches_of(pixels[0]))])
    exact = torch.cat((torch.zeros(1, 48), torch.tensor(patches_of(pixels[0]))))
    model = loaded(folder, region_tag_sizes=(rows * columns,), patch_columns=columns)
    found = encoded(model, dataclasses.replace(batch, region_features=exact))
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=2e-5)


def test_images_lie_end_to_end_without_a_trace():
    """However many others there are, and whether sequences share an image's rows or bring their own."""
    model, random = Unimo(SIZES, seed=3).double().eval(), generator(2)
    images = some_images(random)
    alone = [encoded(model, pack_sequences([one])) for one in images]
    torch.testing.assert_close(encoded(model, pack_sequences(images)), torch.cat(alone), rtol=0, atol=1e-12)
    text = support.tokens(random, 5)
    fields = {"token_ids": text, "token_positions": np.arange(2, 9, dtype=np.int32), "prefix_length": 17}
    shared = dataclasses.replace(images[0], **fields)
    own = dataclasses.replace(shared, region_features=shared.region_features.copy())
    together, apart = pack_sequences([images[0], shared]), pack_sequences([images[0], own])
    assert (together.image_starts.tolist(), apart.image_starts.tolist()) == ([0, 10], [0, 10, 20])
    torch.testing.assert_close(model.encode(together), model.encode(apart), rtol=0, atol=1e-12)


def test_what_a_patch_shows_and_where_reaches_the_losses_and_img_is_learned():
    model, examples = Unimo(SIZES, seed=3).double().train(), []
    for position in range(5):
        one = support.example(position)
        examples.append(dataclasses.replace(one, sequences=tuple(_with_patches(part) for part in one.sequences)))
    batch = pack(examples, feature_size=SIZES.region_feature_size, classes_per_region=support.STORED_CLASSES)
    total(model(batch)).backward()
    lacking = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    assert lacking == []
    # The mean in [IMG]'s row is for models without image layers.
    changed = batch.region_features.clone()
    changed[batch.image_starts[:-1].long()] = 3.0
    other = dataclasses.replace(batch, region_features=changed)
    assert torch.equal(model.embed_images(batch), model.embed_images(other))


def _with_patches(one: SequenceInput) -> SequenceInput:
    if one.region_features is None:
        return one
    rows, random = len(one.region_features), generator(int(1000 * abs(one.region_features[0, 0])))
    changes = {"region_features": random.standard_normal((rows, SIZES.region_feature_size)).astype(np.float16)}
    if one.masked_region_features is not None:
        targets = random.standard_normal((len(one.masked_region_at), SIZES.region_feature_size))
        changes["masked_region_features"] = targets.astype(np.float16)
    return dataclasses.replace(one, region_tags=np.arange(-1, rows - 1, dtype=np.int32)[:, None], **changes)


def test_texts_alone_pass_and_reach_its_weights_with_zeros():
    """Every rank runs the same modules whatever its batch holds (ZeRO-3)."""
    model = Unimo(SIZES, seed=3)
    text = support.sequence(SequenceRole.SINGLE_TEXT, 1, text=support.tokens(generator(1), 4))
    for sequences in ([text], []):
        batch = pack_sequences(sequences)
        (model.encode(batch).sum() + model.embed_images(batch).sum()).backward()
    gradients = [parameter.grad for parameter in model.image_transformer.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_activation_checkpointing_gives_the_same_bits():
    batch, results = pack_sequences(some_images(generator(7))), []
    for keeps_little in (False, True):
        model = Unimo(SIZES, seed=3, activation_checkpointing=keeps_little).train()
        hidden = model.encode(batch)
        hidden.square().sum().backward()
        results.append((hidden, [one.grad for one in model.image_transformer.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_padded_images_are_packed_ones():
    model, images = Unimo(SIZES, seed=3).double().eval(), some_images(generator(8))
    rows = max(one.num_regions for one in images)

    def padded(name: str, columns: int) -> torch.Tensor:
        out = torch.zeros(len(images), rows, columns, dtype=torch.float64)
        for row, one in zip(out, images, strict=True):
            row[: one.num_regions] = torch.from_numpy(
                getattr(one, name).astype(np.float16 if columns > 5 else np.float32)
            )
        return out

    mask = torch.tensor([[at < one.num_regions for at in range(rows)] for one in images])
    inputs = PaddedInputs(
        None,
        None,
        padded("region_features", SIZES.region_feature_size),
        padded("region_boxes", 5),
        mask,
        padded("region_tags", 1).long(),
    )
    batch, _ = pack_padded(inputs, feature_size=SIZES.region_feature_size, max_positions=SIZES.max_positions)
    expected = pack_sequences(images)
    assert batch.image_starts.tolist() == expected.image_starts.tolist()
    torch.testing.assert_close(model.encode(batch), model.encode(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"num_image_layers": 1}, r"num_hidden_layers=2, but model\.num_image_layers=1; set model\.num_image_layers=2"),
        ({"region_feature_size": 27}, r"patches of 27 numbers; import with --patch-side 4"),
        ({"region_tag_sizes": (8,)}, r"positions of 9 patches, the data have 8; only squares"),
        ({"num_image_layers": 0}, r"initialize_images_from needs image layers"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, changes, culprit):
    with pytest.raises(UserError, match=culprit):
        loaded(folder, **changes)


def test_other_folders_are_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"has no config\.json"):
        loaded(empty)
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_initial_weights(dataclasses.replace(SIZES, initialize_images_from=str(empty)))
    check_initial_weights(dataclasses.replace(SIZES, initialize_images_from=str(folder)))
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5, 0.5, 0]}')
    with pytest.raises(UserError, match="must be three numbers each"):
        loaded(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "swin"}))
    with pytest.raises(UserError, match=r"type 'swin'; model\.initialize_images_from takes 'vit'"):
        loaded(folder)


def test_another_resolution_of_the_folder_is_told(folder):
    start = dataclasses.replace(SIZES, initialize_images_from=str(folder))
    assert start_note(start) == start_note(SIZES) == ""
    larger = dataclasses.replace(start, region_tag_sizes=((ROWS + 1) * ROWS,), patch_columns=ROWS)
    assert start_note(larger) == (
        f"images of {ROWS + 1} x {ROWS} patches, the model was trained on {ROWS} x {ROWS}: positions are interpolated"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": "large"}))
    assert start_note(larger) == ""


def test_a_model_without_image_layers_has_the_parameters_it_had():
    plain = support.model_config()
    assert ModelConfig().num_image_layers == 0
    names = [name for name, _ in Unimo(plain).named_parameters()]
    assert not any(name.startswith("image_transformer") for name in names)
