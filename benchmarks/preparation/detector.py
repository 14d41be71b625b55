"""Cost per image of regions by the bottom-up network: python benchmarks/preparation/detector.py --images photos.tar --number 1

The full-size ResNet-101 with random weights (time does not depend on them), on `--device` (default: the first GPU, else the
CPU with one thread). Prints one row: wall-clock and processor seconds per image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
import tarfile
import time

import torch

from unimo_ds.data.vision import images
from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.bottom_up import BottomUpExtractor, BottomUpSettings
from unimo_ds.data.vision.detectors.bottom_up_network import BottomUpNetwork, NetworkSizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="tar of JPEGs")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = BottomUpNetwork(NetworkSizes())
    network.anchors.copy_(boxes.cell_anchors(16, (0.5, 1.0, 2.0), (4, 8, 16, 32)))
    network.proposal_generator.rpn_head.anchor_deltas.weight.data.mul_(0.01)
    device = torch.device(options.device) if options.device else None
    extractor = BottomUpExtractor(BottomUpSettings(), network, device)
    pictures = []
    with tarfile.open(options.images) as archive:
        for member in itertools.islice((one for one in archive if one.isfile()), options.number):
            stream = archive.extractfile(member)
            assert stream is not None
            pictures.append(images.decode(stream.read()))
    if extractor.device.type == "cuda":
        extractor.extract(pictures[: options.batch])
    wall, processor = time.perf_counter(), time.process_time()
    regions = 0
    for start in range(0, len(pictures), options.batch):
        regions += sum(len(one.boxes) for one in extractor.extract(pictures[start : start + options.batch]))
    row = {
        "device": torch.cuda.get_device_name() if extractor.device.type == "cuda" else "cpu",
        "images": len(pictures),
        "sizes": sorted({picture.size for picture in pictures})[:3],
        "regions_per_image": regions / len(pictures),
        "wall_seconds_per_image": round((time.perf_counter() - wall) / len(pictures), 3),
        "cpu_seconds_per_image": round((time.process_time() - processor) / len(pictures), 3),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
