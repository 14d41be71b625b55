"""Regions by vision encoders: the library's own numbers, of the right places, and nothing else's."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.data import encoder_folders
from tests.data.encoder_folders import FAMILIES
from tests.data.prepare.raw import picture
from unimo_ds.data.storage import members
from unimo_ds.data.vision import extractors, vision_encoder, vision_folder
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.vision_encoder import VisionEncoder, VisionExtractor
from unimo_ds.utils.errors import UserError

_MAPS = ("resnet", "mobilenet")
"""Families that give rows and columns themselves."""
IMAGES = [picture(i, width=60 + 9 * i, height=80 - 5 * i) for i in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every family."""
    place = tmp_path_factory.mktemp("encoders")
    for name, family in FAMILIES.items():
        encoder_folders.write(place / name, encoder_folders.make(family), side=family.side)
    return place


def opened(folder: Path) -> VisionEncoder:
    found = extractors.ExtractorChoice(extractor=Path("vision-encoder"), weights=folder).made()
    assert isinstance(found, VisionEncoder)
    return found


def edges(size: int, cells: int) -> list[tuple[int, int]]:
    """First patch and end of each cell along one axis."""
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_means_of_the_librarys_own_hidden_states(folders: Path, name: str) -> None:
    family = FAMILIES[name]
    model = encoder_folders.make(family)
    tower = getattr(model, family.tower) if family.tower else model
    processor = ViTImageProcessorPil.from_pretrained(folders / name)
    with torch.inference_mode():
        hidden = tower(pixel_values=processor(IMAGES, return_tensors="pt")["pixel_values"]).last_hidden_state
    rows = family.patches
    if hidden.ndim == 3:
        assert hidden.shape[1] == family.prefix + rows * rows
        hidden = hidden[:, family.prefix :].transpose(1, 2).unflatten(2, (rows, rows))
    fine = min(7, rows)
    assert hidden.shape[2:] == (rows, rows)
    expected = [
        hidden[:, :, top:bottom, left:right].mean((2, 3))
        for side in (fine, 2)
        for top, bottom in edges(rows, side)
        for left, right in edges(rows, side)
    ]
    encoder = opened(folders / name)
    assert encoder.settings.map == (rows, rows)
    torch.testing.assert_close(encoder.cells(IMAGES), torch.stack(expected, dim=1), atol=1e-5, rtol=1e-4)
    boxes = [
        (left / rows, top / rows, right / rows, bottom / rows)
        for side in (fine, 2)
        for top, bottom in edges(rows, side)
        for left, right in edges(rows, side)
    ]
    (regions,) = encoder.learn(IMAGES, seed=0).extract(IMAGES[:1])
    members.check_values(regions)
    np.testing.assert_allclose(regions.boxes, boxes, atol=1e-6)
    assert regions.features.shape == (fine * fine + 4, encoder.settings.feature_size)
    assert encoder.settings.feature_size == hidden.shape[1]


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if "Model" in family.model and name not in _MAPS]
)
def test_tokens_are_put_where_their_patches_are(folders: Path, name: str) -> None:
    """A patch that is painted changes the hidden states of its own place more than any other."""
    encoder = opened(folders / name)
    rows, columns = encoder.settings.map
    side = encoder.settings.pixels.height // rows
    randomness = np.random.default_rng(0)
    plain = Image.new("RGB", (side * columns, side * rows), "grey")
    places = [(0, 1), (rows - 1, 0), (rows // 2, columns - 2)]
    painted = []
    for row, column in places:
        image = plain.copy()
        noise = randomness.integers(0, 256, (side, side, 3), dtype=np.uint8)
        image.paste(Image.fromarray(noise), (side * column, side * row))
        painted.append(image)
    with torch.inference_mode():
        blank, *found = vision_folder.patches(encoder.network, encoder.settings.pixels.of([plain, *painted]))
    assert [divmod(int((one - blank).norm(dim=0).argmax()), columns) for one in found] == places


def test_pixels_are_those_of_the_processor_without_its_cropping(tmp_path: Path) -> None:
    model = encoder_folders.make(FAMILIES["clip-vision"])
    folder = encoder_folders.write(tmp_path, model, crops=True)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    pixels = opened(folder).settings.pixels
    square = picture(3, width=90, height=90)
    theirs = processor([square], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.of([square]), theirs, atol=1e-5, rtol=1e-5)
    wide = Image.new("RGB", (300, 60))
    wide.paste((255, 255, 255), (0, 0, 30, 60))
    assert (pixels.of([wide])[0, 0, :, 0] > 1).all()
    assert (processor([wide], return_tensors="pt")["pixel_values"] < 0).all()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"size": 64, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {"factor": 1 / 255, "resample": 2}),
        (
            {"size": {"shortest_edge": 70}, "crop_size": 64, "do_center_crop": True, "do_normalize": False},
            {"mean": (0, 0, 0)},
        ),
        ({"size": [64, 64], "do_flip_channel_order": True}, {"blue_first": True, "deviation": (1, 1, 1)}),
        (
            {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_rescale": False, "resample": 3},
            {"factor": 1, "resample": 3},
        ),
    ],
)
def test_every_way_of_writing_a_processor_is_read(folders: Path, tmp_path: Path, told: dict, expected: dict) -> None:
    shutil.copytree(folders / "dinov2", tmp_path / "own")
    (tmp_path / "own" / "preprocessor_config.json").write_text(json.dumps(told))
    shutil.copytree(folders / "dinov2", tmp_path / "joined", ignore=shutil.ignore_patterns("preprocessor*"))
    (tmp_path / "joined" / "processor_config.json").write_text(json.dumps({"image_processor": told}))
    own, joined = (opened(tmp_path / name).settings.pixels for name in ("own", "joined"))
    assert own == joined
    assert (own.height, own.width) == (64, 64)
    assert {name: getattr(own, name) for name in expected} == expected


def test_blue_first_is_blue_first() -> None:
    pixels = vision_encoder.Pixels(2, 2, 2, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), blue_first=True)
    assert pixels.of([Image.new("RGB", (5, 5), (255, 0, 51))])[0, :, 0, 0].tolist() == pytest.approx([0.2, 0, 1])


@pytest.mark.parametrize("name", ["siglip", "resnet"])
def test_an_image_does_not_depend_on_its_neighbours(folders: Path, name: str) -> None:
    encoder = opened(folders / name)
    many = [*IMAGES, *IMAGES[::-1]]
    together = encoder.cells(many)
    for i, image in enumerate(many):
        torch.testing.assert_close(encoder.cells([image])[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "dinov2-registers", "swin", "resnet"])
def test_a_saved_extractor_comes_back_equal(folders: Path, tmp_path: Path, name: str) -> None:
    encoder = opened(folders / name)
    made = encoder.learn(IMAGES, seed=0)
    loaded = extractors.load(made.save(tmp_path))
    assert isinstance(loaded, VisionExtractor)
    assert loaded.settings == made.settings
    assert loaded.fingerprint == made.fingerprint
    assert encoder.became(loaded)
    for ours, theirs in zip(loaded.extract(IMAGES), made.extract(IMAGES), strict=True):
        for part in ("boxes", "features", "class_ids", "class_probabilities"):
            assert getattr(ours, part).tobytes() == getattr(theirs, part).tobytes()
    assert encoder.learn(IMAGES, seed=0).fingerprint == made.fingerprint
    assert encoder.learn(IMAGES, seed=1).fingerprint != made.fingerprint
    assert not opened(folders / "dinov2").became(loaded)
    assert made.extract([]) == []


def test_what_is_stored_must_fit(folders: Path, tmp_path: Path) -> None:
    opened(folders / "dinov2").learn(IMAGES, seed=0).save(tmp_path)
    with torch.no_grad():
        tensors = load_file(tmp_path / EXTRACTOR_FILE)
    settings = extractors.extractor_file.read(tmp_path).settings
    for change, message in (
        ({"scale": torch.ones(3)}, "do not fit its settings"),
        ({"encoder.layernorm.weight": torch.ones(3)}, "has shape"),
        ({"pixels": {**settings["pixels"], "height": 10**6}}, "has a size"),
        ({"map": [0, 8]}, "less than one"),
        ({"encoder": {"model_type": "nothing"}}, "cannot make the encoder"),
        ({"encoder": {**settings["encoder"], "hidden_size": "x"}}, "cannot make the encoder"),
    ):
        is_tensor = isinstance(next(iter(change.values())), torch.Tensor)
        stored = {**settings, **({} if is_tensor else change)}
        about = {"kind": "vision-encoder", "settings": json.dumps(stored)}
        save_file({**tensors, **(change if is_tensor else {})}, tmp_path / EXTRACTOR_FILE, metadata=about)
        with pytest.raises(UserError, match=message):
            extractors.load(tmp_path)


def test_features_have_unit_scale_however_loud_a_channel_is(tmp_path: Path) -> None:
    model = encoder_folders.make(FAMILIES["dinov2"])
    model.layernorm.weight.data[3] = 1e6
    model.layernorm.weight.data[5] = 0
    encoder = opened(encoder_folders.write(tmp_path, model))
    assert encoder.cells(IMAGES).half().isinf().any()
    features = np.stack([one.features for one in encoder.learn(IMAGES, seed=0).extract(IMAGES)]).astype(np.float32)
    deviations = features.std((0, 1))
    assert deviations[5] < 1e-5
    np.testing.assert_allclose(np.delete(deviations, 5), 1, atol=0.05)
    assert np.abs(features).max() <= 20


def test_classes_tell_regions_apart(folders: Path) -> None:
    found = opened(folders / "dinov2").learn(IMAGES, seed=0).extract(IMAGES)
    ids = np.stack([one.class_ids[:, 0] for one in found])
    chances = np.stack([one.class_probabilities for one in found]).astype(np.float32)
    assert len(np.unique(ids)) > 50
    assert chances.shape[2] == 4
    assert (np.diff(chances, axis=2) <= 0).all()
    assert chances.sum(2).max() <= 1.01


def test_what_the_folder_lacks_counts_only_where_it_is_used(folders: Path, tmp_path: Path) -> None:
    """A classifier's folder has no pooler: random numbers there must not make two extractors of one folder."""
    assert opened(folders / "vit-classifier").fingerprint == opened(folders / "vit-classifier").fingerprint
    folder = shutil.copytree(folders / "vit-classifier", tmp_path / "lacking")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.1" in name or "layer.1" in name)
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"\(layers\.1\..* is not there"):
        opened(folder)


def test_nothing_is_fetched(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert opened(folders / "clip").settings.map == (8, 8)


CODE_OF_OTHERS = {"attn_implementation": "someone/kernel", "auto_map": {"AutoModel": "someone/model--file.Class"}}


def test_no_code_that_a_configuration_names_is_fetched_or_asked_for(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folders / "vit-classifier", tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **CODE_OF_OTHERS}))
    encoder = opened(folder)
    torch.testing.assert_close(encoder.cells(IMAGES), opened(folders / "vit-classifier").cells(IMAGES))
    assert vision_folder.build({**encoder.settings.encoder, **CODE_OF_OTHERS}, where="a data folder")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    with pytest.raises(UserError, match="cannot make the encoder of a data folder"):
        vision_folder.build({"model_type": "blip_vision_model", **CODE_OF_OTHERS}, where="a data folder")
    assert not asked


def test_a_quantised_model_is_refused(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "vit-classifier", tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(UserError, match="is quantised; save it whole"):
        opened(folder)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("BertModel", transformers.BertConfig(**encoder_folders._TEXT), r"\(bert\) takes no pictures"),
        ("ViTMAEModel", transformers.ViTMAEConfig(**encoder_folders._VIT), "masks patches by chance"),
        (
            "YolosModel",
            transformers.YolosConfig(**{**encoder_folders._VIT, "image_size": [64, 64], "num_detection_tokens": 36}),
            r"\(yolos\) gives no map of patches",
        ),
        ("VideoMAEModel", transformers.VideoMAEConfig(**encoder_folders._VIT), "does not take pictures of 64 x 64"),
        (
            "ViTModel",
            transformers.ViTConfig(**{**encoder_folders._VIT, "image_size": 32}),
            "does not take pictures of 64 x 64: Input image size",
        ),
        (
            "ResNetModel",
            transformers.ResNetConfig(
                embedding_size=8, **{**encoder_folders._STAGES, "downsample_in_first_stage": True}
            ),
            r"\(resnet\) gives no map of patches \(\(1, 24, 1, 1\)",
        ),
    ],
)
def test_models_without_a_map_of_patches_are_refused(
    tmp_path: Path, model: str, config: transformers.PreTrainedConfig, message: str
) -> None:
    encoder_folders.write(tmp_path, getattr(transformers, model)(config))
    with pytest.raises(UserError, match=message):
        opened(tmp_path)
