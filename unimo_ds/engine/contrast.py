"""The contrastive loss of one step, whose pairs may be in several micro-batches and on several ranks.

The pairs of a group (`contrast.group_pairs`; by default all of the step) are each other's negatives, so their loss needs every
pooled vector at once. It is computed on detached vectors, which gives one gradient per vector, from which a micro-batch's
backward pass then starts (`carried.py`). The first micro-batch has been encoded with gradients by then; of the others a
rehearsal (a pass over their clean sequences without gradients) yields the vectors (gradient caching: GradCache, Gao et al.
2021). Dropout masks depend only on the sequence seeds, so both passes see the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unimo_ds.data.schema import PackedBatch
from unimo_ds.engine.carried import carried
from unimo_ds.engine.protocol import StepEngine
from unimo_ds.engine.rehearsal import clean_part
from unimo_ds.losses.contrast_plan import ContrastPlan
from unimo_ds.models.unimo import ModelOutput
from unimo_ds.tasks.pretraining import PretrainingTask


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss of the step and its gradient for this rank's pooled vectors, by micro-batch."""

    loss_sum: torch.Tensor
    right_and_asked: torch.Tensor
    """[2 * A] fp64: correct, then all comparisons of each of `losses.contrastive.ACCURACIES`."""
    image_gradients: Sequence[torch.Tensor]
    text_gradients: Sequence[torch.Tensor]
    temperature_gradient: torch.Tensor


def rehearse(engine: StepEngine, on_host: Sequence[PackedBatch], on_device: Sequence[PackedBatch]) -> list[ModelOutput]:
    """Outputs of the clean sequences of these micro-batches without gradients."""
    with torch.no_grad():  # while a GPU encodes one part, the host makes the next
        return [engine.forward(clean_part(*both)) for both in zip(on_host, on_device, strict=True)]


def contrast_of(
    engine: StepEngine,
    task: PretrainingTask,
    plan: ContrastPlan,
    outputs: Sequence[ModelOutput],
    *,
    scale: float,
) -> Contrast:
    """The loss over the pooled vectors of `outputs`, one for each micro-batch of this rank. A collective.

    scale: factor on the gradients.
    """
    # In fp32: these gradients carry no loss scale, and small ones would vanish in fp16.
    images = torch.cat([output.pooled_images.detach().float() for output in outputs]).requires_grad_()
    texts = torch.cat([output.pooled_texts.detach().float() for output in outputs]).requires_grad_()
    temperature = outputs[0].temperature.detach().requires_grad_()
    with torch.enable_grad():
        result = task.contrastive(images, texts, plan, temperature=temperature, communicator=engine.communicator)
        gradients = torch.autograd.grad(
            result.loss_sum * scale, (images, texts, temperature), allow_unused=True, materialize_grads=True
        )
    return Contrast(
        loss_sum=result.loss_sum.detach(),
        right_and_asked=torch.cat((result.right, result.asked)),
        image_gradients=torch.split(gradients[0], [len(output.pooled_images) for output in outputs]),
        text_gradients=torch.split(gradients[1], [len(output.pooled_texts) for output in outputs]),
        temperature_gradient=gradients[2],
    )


def carry(output: ModelOutput, contrast: Contrast, index: int) -> torch.Tensor:
    """A scalar with the gradient of the contrastive loss; that of the temperature only in the first micro-batch.

    output: of micro-batch `index`, with gradients.
    """
    of_temperature = contrast.temperature_gradient
    return carried(
        (output.pooled_images, output.pooled_texts, output.temperature),
        (
            contrast.image_gradients[index],
            contrast.text_gradients[index],
            of_temperature if index == 0 else torch.zeros_like(of_temperature),
        ),
    )
