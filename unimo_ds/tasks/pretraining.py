"""UNIMO's pre-training task: four objectives per micro-batch, and one over the pairs of a whole step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unimo_ds.config import ContrastConfig, LossWeights, ModelConfig, RunConfig
from unimo_ds.data.schema import LanguageObjective, PackedBatch
from unimo_ds.losses.contrast_plan import ContrastPlan
from unimo_ds.losses.contrastive import ContrastiveResult, contrastive_loss
from unimo_ds.losses.language import language_loss_sum
from unimo_ds.losses.regions import region_classification_sum, region_regression_sum
from unimo_ds.models.heads import ObjectiveHead
from unimo_ds.tasks.objective import Objective
from unimo_ds.utils.communicator import Communicator


def _language(name: str, objective: LanguageObjective) -> Objective:
    return Objective(
        name,
        count=lambda batch: int((batch.language_objectives.numpy() == objective).sum()),
        loss_sum=lambda output, batch: language_loss_sum(
            output.language_losses, batch.language_objectives, objective=objective
        ),
    )


OBJECTIVES = (
    _language("masked_language", LanguageObjective.MASKED),
    _language("sequence_to_sequence", LanguageObjective.SEQUENCE_TO_SEQUENCE),
    Objective(
        "region_regression",
        count=lambda batch: len(batch.masked_region_at),
        loss_sum=lambda output, batch: region_regression_sum(output.region_predictions, batch.masked_region_features),
    ),
    Objective(
        "region_classification",
        count=lambda batch: len(batch.masked_region_at),
        loss_sum=lambda output, batch: region_classification_sum(
            output.region_class_logits, batch.masked_region_class_ids, batch.masked_region_class_probabilities
        ),
    ),
)
"""Computed per micro-batch."""


class PretrainingTask:
    """Minimises the sum over objectives of weight * (sum over all ranks) / (count over all ranks)."""

    def __init__(self, *, contrast: ContrastConfig, weights: LossWeights, contrastive_path: str = "auto") -> None:
        self.contrast, self.contrastive_path = contrast, contrastive_path
        # An objective with a head of its own is left out at weight 0: its head does not exist then.
        self.objectives = [one for one in OBJECTIVES if one.make_head is None or getattr(weights, one.name) > 0]
        self.weights: list[float] = [getattr(weights, one.name) for one in self.objectives]
        self.contrast_weight = weights.contrastive

    @classmethod
    def of(cls, config: RunConfig) -> PretrainingTask:
        """The task of a run."""
        return cls(contrast=config.contrast, weights=config.losses, contrastive_path=config.engine.contrastive)

    def make_heads(self, model: ModelConfig) -> dict[str, ObjectiveHead]:
        """The objectives' own heads, for `Unimo`."""
        return {one.name: one.make_head(model) for one in self.objectives if one.make_head is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all losses, the contrastive one last."""
        return (*(objective.name for objective in self.objectives), "contrastive")

    def counts(self, micro_batches: Sequence[PackedBatch]) -> list[int]:
        """Number of terms of each loss on this rank, pairs last. From batches on the host, before any forward."""
        counts = [sum(map(objective.count, micro_batches)) for objective in self.objectives]
        pairs = [len(batch.contrast.pair_image) for batch in micro_batches if self.contrast.enabled]
        return [*counts, sum(pairs)]

    def contrastive(
        self,
        images_ND: torch.Tensor,
        texts_ND: torch.Tensor,
        plan: ContrastPlan,
        *,
        temperature: torch.Tensor,
        communicator: Communicator,
    ) -> ContrastiveResult:
        """CMCL over this rank's pairs of the step; see `losses/contrastive.py`."""
        return contrastive_loss(
            images_ND,
            texts_ND,
            plan,
            temperature=temperature,
            form=self.contrast.form,
            in_batch=self.contrast.in_batch,
            communicator=communicator,
            exchange=self.contrast.exchange,
            path=self.contrastive_path,
        )
