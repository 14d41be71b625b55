"""UNIMO's pre-training task: four objectives that a micro-batch scores alone, and one that pairs of a whole step share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unimo_ds.config import ContrastConfig, LossWeights
from unimo_ds.data.schema import ContrastTable, LanguageObjective, PackedBatch
from unimo_ds.losses.contrast_plan import ContrastPlan
from unimo_ds.losses.contrastive import ContrastiveResult, contrastive_loss
from unimo_ds.losses.language import language_loss_sum
from unimo_ds.losses.regions import region_classification_sum, region_regression_sum
from unimo_ds.models.unimo import ModelOutput
from unimo_ds.utils.communicator import Communicator


@dataclass(frozen=True)
class Objective:
    """A named loss as (sum, count). A new objective is one more of these in `PretrainingTask.objectives`."""

    name: str
    weight: float
    count: Callable[[PackedBatch], int]
    loss_sum: Callable[[ModelOutput, PackedBatch], torch.Tensor]


class PretrainingTask:
    """What to minimise: sum over objectives of weight * (sum over all ranks) / (count over all ranks)."""

    def __init__(self, *, contrast: ContrastConfig, weights: LossWeights, contrastive_path: str = "auto") -> None:
        self.contrast, self.contrastive_path = contrast, contrastive_path
        self.contrast_weight = weights.contrastive
        self.objectives = (
            _language("masked_language", weights.masked_language, LanguageObjective.MASKED),
            _language("sequence_to_sequence", weights.sequence_to_sequence, LanguageObjective.SEQUENCE_TO_SEQUENCE),
            Objective(
                "region_regression",
                weights.region_regression,
                lambda batch: len(batch.masked_region_at),
                lambda output, batch: region_regression_sum(output.region_predictions, batch.masked_region_features),
            ),
            Objective(
                "region_classification",
                weights.region_classification,
                lambda batch: len(batch.masked_region_at),
                lambda output, batch: region_classification_sum(
                    output.region_class_logits,
                    batch.masked_region_class_ids,
                    batch.masked_region_class_probabilities,
                ),
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all losses, the contrastive one last."""
        return (*(objective.name for objective in self.objectives), "contrastive")

    def counts(self, micro_batches: Sequence[PackedBatch]) -> list[int]:
        """What each loss sums over on this rank, the pairs last. From batches on the host, before any forward."""
        rows = [
            [objective.count(batch) for objective in self.objectives]
            + [len(batch.contrast.pair_image) if self.contrast.enabled else 0]
            for batch in micro_batches
        ]
        return [sum(column) for column in zip(*rows, strict=True)]

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


def _language(name: str, weight: float, objective: LanguageObjective) -> Objective:
    return Objective(
        name,
        weight,
        lambda batch: int((batch.language_objectives.numpy() == objective).sum()),
        lambda output, batch: language_loss_sum(output.language_losses, batch.language_objectives, objective=objective),
    )


def join_tables(batches: Sequence[PackedBatch]) -> ContrastTable:
    """One table over several micro-batches whose pooled vectors are concatenated in the same order."""
    tables = [batch.contrast for batch in batches]
    images = _starts([len(batch.pooled_image_at) for batch in batches])
    texts = _starts([len(batch.pooled_text_at) for batch in batches])
    pairs = _starts([len(table.pair_image) for table in tables])

    def joined(name: str, starts: Sequence[int] | None = None) -> torch.Tensor:
        columns = [getattr(table, name) for table in tables]
        return torch.cat([column + start for column, start in zip(columns, starts or [0] * len(columns), strict=True)])

    return ContrastTable(
        pair_position=joined("pair_position"),
        pair_group=joined("pair_group"),
        pair_image=joined("pair_image", images),
        pair_text=joined("pair_text", texts),
        pair_image_key=joined("pair_image_key"),
        pair_text_key=joined("pair_text_key"),
        score_pair=joined("score_pair", pairs),
        score_image=joined("score_image", images),
        score_text=joined("score_text", texts),
        score_role=joined("score_role"),
        score_level=joined("score_level"),
        score_key=joined("score_key"),
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]
