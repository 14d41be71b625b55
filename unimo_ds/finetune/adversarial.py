"""Adversarial training as in VILLA and UNIMO's fine-tuning: noise that ascends the gradient of the loss for some steps.

Noise is added to the text embedding sums in one forward, and to the raw region features in another. The loss of a micro-batch
is the sum over the ascents of

    (clean loss + loss with noisy texts + loss with noisy regions) / ascents + weight * (both divergences from the clean output)

and after each ascent the noise moves a fixed length along its gradient. The initial noise is a function of the sequences' own
seeds, and all norms are per sequence, so nothing depends on rank or stream. (The limit applies to the norm of the noise, as in
VILLA; the release compares it with the gradient's.)

Letters: N rows, D their size, S sequences, K outputs, V vocabulary size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

from unimo_ds.engine.setup import Engine
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.finetune.task import Task
from unimo_ds.finetune_config import AdversarialConfig, FinetuneConfig
from unimo_ds.models.unimo import anchor
from unimo_ds.utils import seed
from unimo_ds.utils.moving import moved

_TEXT_SITE, _REGION_SITE = 1 << 20, (1 << 20) + 1
"""Outside the range of dropout sites, so that noise and dropout share no random bits."""
_SMALLEST_NORM = 1e-12


def accumulate(
    engine: Engine, task: Task, on_host: TaskBatch, *, finetuning: FinetuneConfig, scale: float, is_last: bool
) -> tuple[torch.Tensor, TaskOutput]:
    """Add the gradients of a micro-batch, scaled by `scale`; returns the clean loss's sum and output of the last ascent.

    is_last: whether it is the step's last micro-batch. Not for ZeRO-3, which cannot run several forwards before one backward.
    """
    settings = finetuning.adversarial
    # Counted on the host, which on a GPU would wait for the number of images.
    tokens_S, regions_S = (_number_per_sequence(on_host, at) for at in (on_host.token_at, on_host.region_at))
    image_starts = functional.pad(regions_S[regions_S > 0].cumsum(0), (1, 0)).int()
    tokens_S, regions_S, image_starts = moved((tokens_S, regions_S, image_starts), engine.device)
    batch = _with_own_regions(on_host.to(engine.device), image_starts)
    text_sequence_N = batch.position_sequence[batch.token_at].long()
    region_sequence_N = batch.position_sequence[batch.region_at].long()
    hidden_size = engine.module.get_parameter("text_embedding.word.weight").shape[1]
    text_shape, region_shape = (tokens_S, hidden_size), (regions_S, batch.region_features.shape[1])
    text_ND = _first_noise(batch, batch.token_at, text_sequence_N, *text_shape, settings, site=_TEXT_SITE)
    region_ND = _first_noise(batch, batch.region_at, region_sequence_N, *region_shape, settings, site=_REGION_SITE)
    for ascent in range(settings.steps):
        text_ND, region_ND = text_ND.detach().requires_grad_(), region_ND.detach().requires_grad_()
        clean: TaskOutput = engine.forward(batch)
        with_texts: TaskOutput = engine.forward(batch, text_ND)
        noisy = dataclasses.replace(batch, region_features=batch.region_features.float() + region_ND)
        with_regions: TaskOutput = engine.forward(noisy)
        outputs = (clean, with_texts, with_regions)
        losses = [task.loss_sum(output, batch, finetuning) for output in outputs]
        divergence = _divergence(with_texts, clean) + _divergence(with_regions, clean)
        loss = sum(losses) / settings.steps + settings.divergence_weight * divergence
        anchors = sum(anchor(output) for output in outputs)
        engine.backward(loss * scale + anchors, is_boundary=is_last and ascent == settings.steps - 1)
        text_ND = _climb(text_ND, text_sequence_N, batch.num_sequences, settings)
        region_ND = _climb(region_ND, region_sequence_N, batch.num_sequences, settings)
    return losses[0], clean


def _number_per_sequence(batch: TaskBatch, at_N: torch.Tensor) -> torch.Tensor:
    """[S] how many of these stream positions are in each sequence."""
    return torch.bincount(batch.position_sequence[at_N], minlength=batch.num_sequences)


def _with_own_regions(batch: TaskBatch, image_starts: torch.Tensor) -> TaskBatch:
    """Give every sequence region rows of its own: whether two share an image's rows depends on the stream they are in."""
    return dataclasses.replace(
        batch,
        region_features=batch.region_features[batch.region_row],
        region_boxes=batch.region_boxes[batch.region_row],
        region_tags=batch.region_tags[batch.region_row],
        region_row=torch.arange(len(batch.region_row), device=batch.region_row.device),
        image_starts=image_starts,
    )


def _first_noise(
    batch: TaskBatch,
    at_N: torch.Tensor,
    sequence_N: torch.Tensor,
    rows_S: torch.Tensor,
    size: int,
    settings: AdversarialConfig,
    *,
    site: int,
) -> torch.Tensor:
    """[N, size] fp32, uniform in +-magnitude / sqrt(elements of the row's sequence). rows_S: of each sequence."""
    keys_N = seed.position_keys(batch.sequence_seeds, sequence_N, batch.position_offset[at_N])
    uniform_ND = seed.uniform(seed.row_keys(keys_N, site), size) * 2 - 1
    elements_N = (rows_S * size)[sequence_N]
    return uniform_ND * (settings.initial_magnitude / elements_N.clamp_min(1).sqrt())[:, None]


def _climb(
    noise_ND: torch.Tensor, sequence_N: torch.Tensor, num_sequences: int, settings: AdversarialConfig
) -> torch.Tensor:
    """The noise after a step along its gradient, scaled back to the limit if it is beyond."""
    if noise_ND.grad is None:
        return noise_ND.detach()
    gradient_ND = noise_ND.grad.float()
    norm_N = _norms(gradient_ND, sequence_N, num_sequences)[sequence_N]
    moved_ND = noise_ND.detach() + settings.step_size * gradient_ND / norm_N.clamp_min(_SMALLEST_NORM)[:, None]
    if not settings.limit:
        return moved_ND
    norm_N = _norms(moved_ND, sequence_N, num_sequences)[sequence_N]
    return moved_ND * (settings.limit / norm_N.clamp_min(_SMALLEST_NORM)).clamp_max(1.0)[:, None]


def _norms(rows_ND: torch.Tensor, sequence_N: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """[S] L2 norm over all elements of a sequence's rows."""
    squares_N = rows_ND.square().sum(1)
    return squares_N.new_zeros(num_sequences).index_add(0, sequence_N, squares_N).sqrt()


def _divergence(noisy: TaskOutput, clean: TaskOutput) -> torch.Tensor:
    """Symmetric Kullback-Leibler divergence, summed over answers or predicted tokens; 0 if there is no distribution."""
    total = clean.scores.new_zeros((), dtype=torch.float32)
    for noisy_NV, clean_NV in ((noisy.scores, clean.scores), (noisy.language_logits, clean.language_logits)):
        if noisy_NV.shape[1] > 1:
            one = functional.log_softmax(noisy_NV.float(), dim=-1)
            other = functional.log_softmax(clean_NV.float(), dim=-1)
            total = total + ((one.exp() - other.exp()) * (one - other)).sum()
    return total
