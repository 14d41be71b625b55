"""The step benchmark compares with the same model: losses and gradients of padded batches equal the packed stream's."""

from __future__ import annotations

import pytest
import torch

from benchmarks.mix import MixCorpus, NumberTokenizer
from benchmarks.usual import UsualModel, copy_weights, pad
from unimo_ds.config import BatchConfig, ModelConfig, RunConfig
from unimo_ds.data.step_reader import StepReader
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.models.unimo import ModelOutput, Unimo
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.communicator import SingleProcess

SIZES = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, feed_forward_size=32, hidden_dropout=0.0, attention_dropout=0.0
)
CONFIG = RunConfig("test", model=SIZES, batch=BatchConfig(global_samples=14, micro_batch_tokens=1 << 20))


@pytest.mark.parametrize("head", ["all", "masked"])
def test_padded_batches_have_the_losses_and_gradients_of_the_packed_stream(head: str) -> None:
    reader = StepReader(MixCorpus(images=3, texts=3, pairs=12), NumberTokenizer(), CONFIG, rank=0, world_size=1)
    (batch,) = reader.read(0).micro_batches
    padded = pad(batch)
    assert padded.num_padded > batch.num_positions
    ours, usual = Unimo(SIZES), UsualModel(SIZES, head=head)
    copy_weights(ours, usual)
    task = PretrainingTask(contrast=CONFIG.contrast, weights=CONFIG.losses)

    plan = make_plan(batch.contrast, form=CONFIG.contrast.form, sizes=share_sizes(batch.contrast, SingleProcess()))

    def losses(output: ModelOutput) -> torch.Tensor:
        contrast = task.contrastive(
            output.pooled_images,
            output.pooled_texts,
            plan,
            temperature=output.temperature,
            communicator=SingleProcess(),
        )
        return torch.stack([*(one.loss_sum(output, batch) for one in task.objectives), contrast.loss_sum])

    packed, other = losses(ours(batch)), losses(usual(padded))
    assert (packed > 0).all()
    torch.testing.assert_close(other, packed, rtol=1e-4, atol=0)
    packed.sum().backward()
    other.sum().backward()
    for name, there in (
        ("text_embedding.word.weight", "word.weight"),
        ("region_embedding.feature.weight", "feature.weight"),
    ):
        torch.testing.assert_close(usual.get_parameter(there).grad, ours.get_parameter(name).grad, rtol=1e-3, atol=1e-5)
    norms = [sum(float(one.grad.square().sum()) for one in model.parameters()) for model in (ours, usual)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
