"""The whole model on a GPU: its errors in bf16 with and without kernels, moved and compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from tests import support
from tests.models.test_image_transformer import SIZES, image_of, some_images
from tests.models.test_unimo import FIELDS, training_batch
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import PackedBatch, SequenceRole
from unimo_ds.models.unimo import Unimo
from unimo_ds.ops.native import library
from unimo_ds.utils.seed import generator

pytestmark = pytest.mark.gpu
Found = tuple[dict[str, torch.Tensor], torch.Tensor]
WIDE = {"hidden_size": 128, "feed_forward_size": 256}
"""Heads of 64, as the attention kernels want."""


def cases() -> dict[str, tuple[Unimo, PackedBatch]]:
    patches = [
        image_of(image.region_features[1:], role=role, seed=seed)
        for seed, image in enumerate(some_images(generator(3)))
        for role in (SequenceRole.SINGLE_IMAGE, SequenceRole.RELATED_IMAGE)
    ]
    side = SIZES.region_feature_size
    return {
        "regions": (Unimo(support.model_config(**WIDE), seed=3), training_batch(40)),
        "patches": (Unimo(dataclasses.replace(SIZES, **WIDE), seed=3), pack_sequences(patches, feature_size=side)),
    }


def results(model: Unimo, batch: PackedBatch, step=None) -> Found:
    """Every output, and all gradients of a scalar that all outputs have a part in; in fp64 on the CPU."""
    output = (model if step is None else step)(batch)
    parts = {name: getattr(output, name) for name in FIELDS}
    scalar = sum(part.double().square().sum() for part in parts.values())
    gradients = torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True)
    flat = torch.cat([gradient.double().flatten().cpu() for gradient in gradients if gradient is not None])
    return {name: part.detach().double().cpu() for name, part in parts.items()}, flat


def within_budget(found: Found, plain: Found, exact: Found) -> None:
    """Twice the error of plain code in the same format, three times for gradients."""
    for name, truth in exact[0].items():
        allowed = 2 * (plain[0][name] - truth).norm() + 1e-3 * truth.norm()
        assert (found[0][name] - truth).norm() <= allowed, name
    assert (found[1] - exact[1]).norm() <= 3 * (plain[1] - exact[1]).norm() + 1e-3 * exact[1].norm()


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """torch's gathers add up in any order otherwise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["regions", "patches"])
def test_errors_in_bf16_are_those_of_plain_code(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The same dropout masks everywhere."""
    model, batch = cases()[name]
    exact = results(model.double().train(), batch)
    model, there = model.bfloat16().cuda(), batch.to(torch.device("cuda"))
    found, again = results(model, there), results(model, there)
    assert torch.equal(found[1], again[1])
    assert all(torch.equal(found[0][field], again[0][field]) for field in FIELDS)
    monkeypatch.setenv(library.SWITCH, "off")
    plain = results(model, there)
    assert not torch.equal(plain[1], found[1]), "kernels were used"
    within_budget(found, plain, exact)


@pytest.mark.parametrize("name", ["regions", "patches"])
def test_fp32_on_a_gpu_is_fp32_on_a_cpu(name: str) -> None:
    model, batch = cases()[name]
    here = results(model.train(), batch)
    there = results(model.cuda(), batch.to(torch.device("cuda")))
    for field, values in here[0].items():
        torch.testing.assert_close(there[0][field], values, rtol=1e-4, atol=1e-5)
    assert (there[1] - here[1]).norm() <= 1e-4 * here[1].norm()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_model_compiles_to_one_graph(backend: str) -> None:
    model, batch = cases()["regions"]
    exact = results(model.double().train(), batch)
    model, there = model.bfloat16().cuda(), batch.to(torch.device("cuda"))
    plain = results(model, there)
    compiled = results(model, there, torch.compile(model, backend=backend, fullgraph=True))
    if backend == "aot_eager":
        assert torch.equal(compiled[1], plain[1])
        assert all(torch.equal(compiled[0][field], plain[0][field]) for field in FIELDS)
    within_budget(compiled, plain, exact)
