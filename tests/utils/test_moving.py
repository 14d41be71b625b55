"""Tensors moved together: as they were, one block for those of one storage, one for small ones of several."""

import dataclasses

import pytest
import torch

from benchmarks.mix import MixCorpus, NumberTokenizer
from unimo_ds.config import BatchConfig, RunConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.transport import flatten, restore
from unimo_ds.utils import moving


def some_tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 99, (3, 5), generator=generator),
        torch.zeros(0, 7, dtype=torch.int32),
        torch.rand(11, generator=generator).half(),
        torch.tensor([True, False, True]),
        torch.rand((), generator=generator, dtype=torch.float64),
    ]


def of_one_storage(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    block = torch.zeros(1 << 10, dtype=torch.uint8)
    offsets = range(128, 1 << 10, 128)
    found = moving.views(block, list(offsets)[: len(tensors)], tensors)
    for place, tensor in zip(found, tensors, strict=True):
        place.copy_(tensor)
    return found


@pytest.mark.parametrize("arrange", [list, of_one_storage])
def test_tensors_come_out_of_a_block_as_they_went_in(arrange):
    tensors = arrange(some_tensors())
    block, offsets = moving.in_one_block(tensors)
    found = moving.views(block.clone(), offsets, tensors)
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    shares = block.untyped_storage().data_ptr() == tensors[0].untyped_storage().data_ptr()
    assert shares == (arrange is of_one_storage)


def test_tensors_with_gaps_are_put_into_a_new_block():
    matrix = torch.arange(12).view(3, 4)
    tensors = [matrix[:, 1], matrix.T]
    block, offsets = moving.in_one_block(tensors)
    assert block.untyped_storage().data_ptr() != matrix.untyped_storage().data_ptr()
    found = moving.views(block, offsets, tensors)
    assert all(torch.equal(one, other) for one, other in zip(found, tensors, strict=True))


@dataclasses.dataclass(frozen=True)
class Nested:
    first: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    name: str
    inner: "Nested | None" = None


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("arrange", [list, of_one_storage])
def test_every_tensor_of_a_value_is_moved(arrange, device):
    first, *rest = arrange([*some_tensors(), torch.rand(30_000)][: 5 if arrange is of_one_storage else 6])
    value = Nested(first, (rest[0], rest[1]), "name", Nested(rest[2], tuple(rest[3:]), "inner"))
    there = moving.moved(value, torch.device(device))
    assert there.name == "name"
    pairs = zip(
        (value.first, *value.parts, value.inner.first, *value.inner.parts),
        (there.first, *there.parts, there.inner.first, *there.inner.parts),
        strict=True,
    )
    for one, other in pairs:
        assert (other.device.type, other.dtype, other.shape) == (device, one.dtype, one.shape)
        assert device == "meta" or torch.equal(one, other.cpu())


def test_a_batch_from_its_loader_is_one_block():
    config = RunConfig("test", batch=BatchConfig(global_samples=14, micro_batch_tokens=1 << 20))
    reader = StepReader(MixCorpus(images=3, texts=3, pairs=12), NumberTokenizer(), config, rank=0, world_size=1)
    (batch,) = restore(flatten(reader.read(0))).micro_batches
    tensors = [getattr(batch, field.name) for field in dataclasses.fields(PackedBatch)]
    block, _ = moving.in_one_block([tensor for tensor in tensors if isinstance(tensor, torch.Tensor)])
    assert block.untyped_storage().data_ptr() == batch.token_ids.untyped_storage().data_ptr()
    there = batch.to(torch.device("meta"))
    assert there.token_ids.shape == batch.token_ids.shape
    assert there.contrast is batch.contrast
