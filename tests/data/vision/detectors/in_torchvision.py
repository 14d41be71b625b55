"""Run by another interpreter, one that has torchvision: its operators and networks against this project's (see the test beside).

Ends with a traceback where they differ. Nothing here is a stand-in: the networks are torchvision's own, with random weights.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import detection

from tests.data.vision.detectors.networks import random_network
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.bottom_up import BottomUpExtractor, BottomUpSettings
from unimo_ds.data.vision.detectors.bottom_up_network import BottomUpNetwork, NetworkSizes
from unimo_ds.data.vision.detectors.choosing import Choosing
from unimo_ds.data.vision.detectors.pooling import pool_regions
from unimo_ds.data.vision.detectors.torchvision_rcnn import TorchvisionExtractor
from unimo_ds.utils.errors import UserError


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def some_boxes(number: int, size: float) -> torch.Tensor:
    corners = torch.rand(number, 2, 2) * size
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def operators() -> None:
    torch.manual_seed(0)
    rows, scores = some_boxes(400, 300), torch.rand(400)
    for threshold in (0.3, 0.7):
        for extra in (0, 1):
            grown = rows + torch.tensor([0.0, 0.0, extra, extra])
            expected = torchvision.ops.nms(grown, scores, threshold)
            found = boxes.suppress(rows, scores, threshold=threshold, most=400, extra=extra)
            assert torch.equal(found, expected), (threshold, extra)
    torch.testing.assert_close(boxes.overlaps(rows, rows, extra=0), torchvision.ops.box_iou(rows, rows))
    features = torch.randn(5, 38, 63)
    for side in (7, 14):
        rows = torch.cat([some_boxes(200, 1000), some_boxes(100, 600) // 8 * 8])
        expected = torchvision.ops.roi_pool(features[None], [rows], (side, side), 1 / 16)
        assert torch.equal(pool_regions(features, rows, side=side, scale=1 / 16), expected), side


def as_resnet(network: BottomUpNetwork) -> torchvision.models.ResNet:
    """torchvision's ResNet-101 with the same weights; strides moved to where He et al. 2016 have them, the last stage dilated."""
    names = {"stem.": "", "norm.": "", "shortcut.norm": "downsample.1", "shortcut.weight": "downsample.0.weight"}
    state = {}
    for name, value in network.state_dict().items():
        place, _, rest = name.partition(".")
        if place == "roi_heads" and rest.startswith("res5"):
            rest = rest.replace("res5", "layer4")
        elif place != "backbone":
            continue
        for i in (2, 3, 4):
            rest = rest.replace(f"res{i}.", f"layer{i - 1}.")
        for old in ("shortcut.norm", "shortcut.weight", "stem."):
            rest = rest.replace(old, names[old])
        for i in (1, 2, 3):
            rest = rest.replace(f"conv{i}.norm", f"bn{i}")
        state[rest] = value
    resnet = torchvision.models.resnet101(weights=None, replace_stride_with_dilation=[False, False, True])
    missing = resnet.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in missing), missing
    for stage in (resnet.layer2, resnet.layer3):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    # torchvision dilates all but the first block; the original dilates every one.
    resnet.layer4[0].conv2.dilation = resnet.layer4[0].conv2.padding = (2, 2)
    resnet.maxpool = torch.nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return resnet.eval()


@torch.inference_mode()
def bottom_up() -> None:
    """ResNet-101 with 1600 classes, from pixels to regions, against a second account of it made of torchvision's parts."""
    network = random_network(NetworkSizes())
    settings = BottomUpSettings(shorter_side=96, longest_side=160, proposals=16, choosing=Choosing(fewest=6, most=9))
    image = noise(3, 80, 60)
    (found,) = BottomUpExtractor(settings, network).detect([image])
    resnet = as_resnet(network)
    pixels = torch.tensor(np.asarray(image)[:, :, ::-1].copy()).permute(2, 0, 1)[None].float()
    pixels -= torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    pixels = torch.nn.functional.interpolate(pixels, (96, 128), mode="bilinear")
    hidden = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
    hidden = resnet.layer3(resnet.layer2(resnet.layer1(hidden)))
    assert hidden.shape == (1, 1024, 6, 8)
    head = network.proposal_generator.rpn_head
    middle = torch.relu(head.conv(hidden))
    logits = head.objectness_logits(middle)[0].permute(1, 2, 0).reshape(-1)
    deltas = head.anchor_deltas(middle)[0].permute(1, 2, 0).reshape(-1, 4)
    anchors = torch.cat([network.anchors + 16.0 * torch.tensor([x, y, x, y]) for y in range(6) for x in range(8)])
    # With the last pixel counted in, boxes are those of torchvision's coder from x1, y1 to x2 + 1, y2 + 1.
    coder = detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    rows = coder.decode_single(deltas, anchors + torch.tensor([0.0, 0, 1, 1]))
    rows = torch.minimum(rows.clamp(min=0), torch.tensor([127.0, 95, 127, 95]))
    last = torch.tensor([0.0, 0, 1, 1])
    kept = torchvision.ops.remove_small_boxes(rows + last, 16 * 96 / 60)
    kept = kept[logits[kept].argsort(descending=True)][:6000]
    kept = kept[torchvision.ops.nms(rows[kept] + last, logits[kept], 0.7)][:16]
    proposals = rows[kept]
    features = resnet.layer4(torchvision.ops.roi_pool(hidden, [proposals], (14, 14), 1 / 16)).mean((2, 3))
    chances = torch.softmax(network.roi_heads.box_predictor.cls_score(features), 1)
    best = torch.zeros(len(proposals))
    for c in range(1, 1601):
        alive = torchvision.ops.nms(proposals + last, chances[:, c], 0.3)
        best[alive] = torch.maximum(best[alive], chances[alive, c])
    number = int(min(max((best >= 0.2).sum(), 6), 9))
    chosen = best.argsort(descending=True)[:number]
    order, expected = (one.argsort(dim=0)[:, 0] for one in (found.boxes, proposals[chosen]))
    torch.testing.assert_close(
        found.boxes[order], (proposals[chosen] / torch.tensor([128.0, 96, 128, 96]))[expected], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(found.features[order], features[chosen][expected], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.probabilities[order], chances[chosen][expected], atol=1e-4, rtol=2e-3)


@torch.inference_mode()
def adapter(folder: Path) -> None:
    """torchvision's own detector, from a file of weights, as an extractor."""
    torch.manual_seed(0)
    network = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    network.roi_heads.box_predictor.cls_score.weight.mul_(40)
    save_file(network.state_dict(), folder / "weights.safetensors")
    made = extractors.ExtractorChoice(extractor=Path("torchvision"), weights=folder / "weights.safetensors").made()
    assert isinstance(made, TorchvisionExtractor)
    assert made.settings.architecture == "fasterrcnn_resnet50_fpn"
    assert (made.feature_size, made.num_classes, made.working_side) == (1024, 91, 800)
    loaded = extractors.load(made.save(folder))
    assert loaded.fingerprint == made.fingerprint
    images = [noise(0, 80, 60), noise(1, 60, 90), noise(2, 80, 60)]
    for one in (made.network, network):
        # The network's own 800 pixels take a minute an image on one core.
        one.transform.min_size, one.transform.max_size = (96,), 160
        one.rpn._pre_nms_top_n = one.rpn._post_nms_top_n = {"training": 40, "testing": 40}
        one.roi_heads.score_thresh, one.roi_heads.nms_thresh = 0.0, 0.3
    together = made.extract(images)
    for regions, image in zip(together, images, strict=True):
        count = len(regions.boxes)
        assert 10 <= count <= 100
        assert regions.features.shape == (count, 1024)
        assert regions.class_ids.max() < 91
        assert (regions.boxes >= 0).all()
        assert (regions.boxes <= 1).all()
        (alone,) = made.extract([image])
        np.testing.assert_allclose(alone.boxes, regions.boxes, atol=1e-3)
        np.testing.assert_allclose(alone.features.astype(float), regions.features.astype(float), rtol=2e-3, atol=5e-3)
    best_alone = TorchvisionExtractor(
        type(made.settings)("fasterrcnn_resnet50_fpn", 91, Choosing(confidence=1, fewest=1, most=1)), made.network
    )
    (best,) = best_alone.detect(images[:1])
    (theirs,) = network([torch.tensor(np.asarray(images[0])).permute(2, 0, 1).float() / 255])
    surest = best.probabilities[0, 1:].max(0)
    torch.testing.assert_close(surest.values, theirs["scores"][0], atol=1e-4, rtol=1e-4)
    assert surest.indices + 1 == theirs["labels"][0]
    torch.testing.assert_close(
        best.boxes[0], theirs["boxes"][0] / torch.tensor([80.0, 60, 80, 60]), atol=1e-3, rtol=1e-3
    )
    other = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=7)
    torch.save(other.state_dict(), folder / "mobile.pth")
    found = extractors.ExtractorChoice(extractor=Path("torchvision"), weights=folder / "mobile.pth").made()
    assert isinstance(found, TorchvisionExtractor)
    assert "mobilenet" in found.settings.architecture
    refused(folder, {"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 9)}, "fits none of torchvision's")
    refused(folder, {"a": torch.zeros(3)}, "is no Faster R-CNN of torchvision")


def refused(folder: Path, state: dict[str, torch.Tensor], message: str) -> None:
    save_file(state, folder / "wrong.safetensors")
    said = ""
    try:
        extractors.ExtractorChoice(extractor=Path("torchvision"), weights=folder / "wrong.safetensors").made()
    except UserError as error:
        said = str(error)
    assert message in said, said


def main(parts: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if "operators" in parts:
        operators()
    if "bottom_up" in parts:
        bottom_up()
    if "adapter" in parts:
        with tempfile.TemporaryDirectory() as folder:
            adapter(Path(folder))
    print("agreed")


if __name__ == "__main__":
    main(sys.argv[1:])
