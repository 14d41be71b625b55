"""Bottom-up attention's detector with random weights: the files it reads, the regions it makes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data.prepare.raw import picture
from tests.data.vision.detectors.networks import SMALL, as_in_caffe, as_in_detectron2, random_network, small_extractor
from unimo_ds.data.storage import members
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.detectors import bottom_up, boxes
from unimo_ds.data.vision.detectors.bottom_up import BottomUpExtractor, BottomUpSettings
from unimo_ds.data.vision.detectors.bottom_up_network import NetworkSizes
from unimo_ds.data.vision.detectors.choosing import Choosing
from unimo_ds.utils.errors import UserError

IMAGES = [picture(0), picture(1, width=60, height=90), picture(2), picture(3, width=200, height=20)]


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in state.items()}


def test_regions_of_the_whole_network(tmp_path: Path) -> None:
    """ResNet-101 with 1600 classes and 400 attributes, from a file of weights."""
    file = tmp_path / "weights.safetensors"
    save_file(contiguous(as_in_caffe(random_network(NetworkSizes()).state_dict())), file)
    made = extractors.ExtractorChoice(extractor=Path("bottom-up"), weights=file).made()
    assert isinstance(made, BottomUpExtractor)
    assert made.settings == BottomUpSettings()
    assert (made.feature_size, made.num_classes) == (2048, 1601)
    # The network's own size takes half a minute an image on one core.
    settings = BottomUpSettings(shorter_side=64, proposals=12)
    quick = BottomUpExtractor(settings, made.network)
    (one,) = quick.extract([picture(3)])
    members.check_values(one)
    assert 10 <= len(one.boxes) <= 12
    assert one.features.shape == (len(one.boxes), 2048)
    assert one.features.astype(float).std(0).max() > 0.01


def test_both_families_of_weights_are_one_network(tmp_path: Path) -> None:
    state = random_network(SMALL).state_dict()
    save_file(contiguous(as_in_caffe(state)), tmp_path / "caffe.safetensors")
    torch.save({"model": contiguous(as_in_detectron2(state)), "iteration": 7}, tmp_path / "detectron2.pth")
    one, other = (
        extractors.ExtractorChoice(extractor=Path("bottom-up"), weights=tmp_path / name).made()
        for name in ("caffe.safetensors", "detectron2.pth")
    )
    assert one is not None
    assert other is not None
    assert one.fingerprint == other.fingerprint
    assert isinstance(one, BottomUpExtractor)
    assert one.settings.sizes == SMALL


def test_weights_without_anchors_take_those_of_their_family() -> None:
    state = random_network(SMALL).state_dict()
    del state["proposal_generator.anchor_generator.cell_anchors.0"]
    _, caffe = bottom_up.canonical(as_in_caffe(state), where="here")
    assert torch.equal(
        caffe["proposal_generator.anchor_generator.cell_anchors.0"], boxes.cell_anchors(16, (0.5, 1, 2), (4, 8, 16, 32))
    )
    _, detectron2 = bottom_up.canonical(as_in_detectron2(state), where="here")
    anchors = detectron2["proposal_generator.anchor_generator.cell_anchors.0"]
    sizes = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sizes.prod(1).sqrt(), torch.tensor([64.0, 128, 256, 512]).repeat_interleave(3))
    torch.testing.assert_close(sizes[:, 1] / sizes[:, 0], torch.tensor([0.5, 1, 2]).repeat(4))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    made = small_extractor()
    together = made.extract(IMAGES)
    for i, image in enumerate(IMAGES):
        (alone,) = made.extract([image])
        members.check_values(alone)
        np.testing.assert_allclose(alone.boxes, together[i].boxes, atol=1e-5)
        np.testing.assert_allclose(
            alone.features.astype(float), together[i].features.astype(float), rtol=2e-3, atol=2e-3
        )


def test_boxes_are_kept_by_confidence_between_two_numbers() -> None:
    every = Choosing(confidence=0.0, overlap=1.0, fewest=1, most=100)
    number = len(small_extractor(choosing=every).extract(IMAGES[:1])[0].boxes)
    assert number == 12
    none_sure = Choosing(confidence=1.0, fewest=5, most=100)
    assert len(small_extractor(choosing=none_sure).extract(IMAGES[:1])[0].boxes) == 5
    few = Choosing(confidence=0.0, overlap=1.0, fewest=1, most=3)
    (best,) = small_extractor(choosing=few).detect(IMAGES[:1])
    (all_found,) = small_extractor(choosing=every).detect(IMAGES[:1])
    surest = all_found.probabilities[:, 1:].amax(1).sort(descending=True).values[:3]
    torch.testing.assert_close(best.probabilities[:, 1:].amax(1), surest)


def test_an_image_without_proposals_is_one_region() -> None:
    (one,) = small_extractor(smallest=1000).extract([picture(0)])
    members.check_values(one)
    assert len(one.boxes) == 1
    np.testing.assert_allclose(one.boxes, [[0, 0, 1, 1]], atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (7, 500)])
def test_any_size_and_mode_is_taken(size: tuple[int, int]) -> None:
    (one,) = small_extractor().extract([Image.new("L", size, 128)])
    members.check_values(one)


def test_a_saved_extractor_comes_back_equal(tmp_path: Path) -> None:
    made = small_extractor()
    loaded = extractors.load(made.save(tmp_path))
    assert isinstance(loaded, BottomUpExtractor)
    assert loaded.settings == made.settings
    assert loaded.fingerprint == made.fingerprint
    assert loaded.extract(IMAGES[:1])[0].features.tobytes() == made.extract(IMAGES[:1])[0].features.tobytes()
    assert small_extractor(seed=1).fingerprint != made.fingerprint
    assert small_extractor(proposals=11).fingerprint != made.fingerprint


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("must never run",)


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, file = Path("bottom-up"), tmp_path / "weights.pth"

    def refused(message: str, path: Path = file) -> None:
        with pytest.raises(UserError, match=message):
            extractors.ExtractorChoice(extractor=kind, weights=path).made()

    refused("there are no weights at")
    torch.save({"model": _RunsCode()}, file)
    refused("holds more than tensors")
    file.write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}}))
    refused("holds more than tensors|cannot read the weights")
    assert "must never run" not in capsys.readouterr().out
    holds_itself: dict[str, object] = {}
    holds_itself["model"] = holds_itself
    torch.save(holds_itself, file)
    refused("no tensors by name")
    torch.save({"lr": 3}, file)
    refused("no tensors by name")
    state = random_network(SMALL).state_dict()
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:1000])
    refused("cannot read the weights")
    torch.save({"layer.weight": torch.zeros(3)}, file)
    refused("is not bottom-up attention's Faster R-CNN: it has no backbone.stem")
    torch.save({name: value for name, value in state.items() if "res4.1.conv2.weight" not in name}, file)
    refused("has no backbone.res4.1.conv2.weight")
    torch.save({**state, "backbone.res3.0.conv1.weight": torch.zeros(5, 5, 1, 1)}, file)
    refused(r"backbone.res3.0.conv1.weight has shape \(5, 5, 1, 1\)")
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"\x00" * 40)
    refused("cannot read the weights", damaged)


@pytest.mark.parametrize(
    ("extractor", "weights", "message"),
    [
        ("bottom-up", None, "needs its weights"),
        ("torchvision", None, "needs its weights"),
        ("grid", "w.pth", "has no weights"),
        (None, "w.pth", "needs --extractor"),
        ("bottomup", "w.pth", "did you mean 'bottom-up'"),
        ("bottomup", None, "neither a file or folder nor one of grid, patches, .*did you mean 'bottom-up'"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(extractor: str | None, weights: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extractors.ExtractorChoice(
            extractor=Path(extractor) if extractor else None, weights=Path(weights) if weights else None
        ).made()
