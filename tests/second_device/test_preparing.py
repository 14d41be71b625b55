"""Networks that prepare data find on a device what they find on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data import encoder_folders
from tests.data.encoder_folders import FAMILIES
from tests.data.prepare.raw import captions, picture
from tests.data.vision.detectors import networks
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.detectors.bottom_up import BottomUpExtractor
from unimo_ds.utils.machine import networks_on

CPU = torch.device("cpu")
IMAGES = [picture(number, width=60 + 9 * number, height=80 - 5 * number) for number in range(3)]


def assert_alike(there: list[Regions], here: list[Regions]) -> None:
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)
        np.testing.assert_allclose(found.features, expected.features, rtol=2e-3, atol=2e-3)
        assert (found.class_ids[:, 0] == expected.class_ids[:, 0]).mean() > 0.9


@pytest.mark.parametrize("name", ["siglip", "resnet"])
def test_a_vision_encoder(device: torch.device, name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = encoder_folders.write(tmp_path, encoder_folders.make(family), side=family.side)
    found = []
    for where in (device, CPU):
        with networks_on(where):
            extractor = (
                extractors.ExtractorChoice(extractor=Path("vision-encoder"), weights=folder)
                .made()
                .learn(IMAGES, seed=0)
            )
        assert extractor.encoder.device == where
        file = extractor.save(tmp_path / where.type)
        found.append((extractor.extract(IMAGES), file.read_bytes(), extractor.encoder.fingerprint))
    assert_alike(found[0][0], found[1][0])
    assert found[0][2] == found[1][2]


def test_a_detector(device: torch.device) -> None:
    made = networks.small_extractor()
    here = made.extract(IMAGES)
    there = BottomUpExtractor(made.settings, networks.random_network(networks.SMALL), device)
    assert there.fingerprint == made.fingerprint
    assert_alike(there.extract(IMAGES), here)


def test_a_translator(device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    from tests.data.prepare.rewriting.translation.tiny_marian import write_model
    from unimo_ds.data.prepare.rewriting.translation.marian import MarianTranslator

    folder = write_model(tmp_path / "model", seed=1)
    texts = [captions(number)[0] for number in range(4)]
    there, here = (MarianTranslator(folder, beams=2, device=where).translate(texts) for where in (device, CPU))
    assert [len(one) for one in there] == [len(one) for one in here]
    if device.type == "second":  # a GPU's halves may choose other words
        assert there == here
