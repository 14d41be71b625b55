"""Plans a step before anything is read: its samples, what is drawn for each, and which rank makes which of them.

A pure function of (index, configuration, world size, step), so every rank and worker gets the same plan; the global batch does
not depend on the world size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import ModelConfig, RunConfig
from unimo_ds.data.balance import Split, contrast_groups, estimate_costs, split_step
from unimo_ds.data.draws import Integers
from unimo_ds.data.mixture import Order
from unimo_ds.data.schema import Kind
from unimo_ds.data.selection import CorpusIndex, select_step
from unimo_ds.data.step_selection import StepSelection
from unimo_ds.utils.errors import UserError


class OrderedCorpus(CorpusIndex, Protocol):
    """The part of `corpus.Corpus` that planning uses."""

    source_ids: NDArray[np.int32]
    source_names: tuple[str, ...]
    shard_of: NDArray[np.int32]
    folder_of_shard: NDArray[np.int32]
    folder_names: tuple[str, ...]

    def key(self, sample: int, /) -> str: ...


@dataclass(frozen=True)
class PlannedStep:
    """One step's global batch, in position order, and its split."""

    step: int
    selection: StepSelection
    groups: Integers
    """[B] contrastive group of each pair."""
    split: Split

    @property
    def samples(self) -> Integers:
        """[B] global sample indices."""
        return self.selection.samples


def sample_costs(selection: StepSelection, model: ModelConfig) -> NDArray[np.float64]:
    """[B] relative cost of each sample: its positions, their attention, image layers, and the language head.

    In units of a position in all layers, 12 h^2 multiplications each. The head does h^2 + V h per predicted token, which adds a
    tenth to the cost of a text.
    """
    encoder = estimate_costs(
        selection.lengths,
        selection.sequence_starts,
        hidden_size=model.hidden_size,
        shared_lengths=selection.shared_lengths,
    )
    head = selection.predicted * (1 + model.vocabulary_size / model.hidden_size) / (12 * model.num_layers)
    if not model.num_image_layers:
        return encoder + head
    images = estimate_costs(selection.encoded_images, selection.sequence_starts, hidden_size=model.hidden_size)
    return encoder + head + images * (model.num_image_layers / model.num_layers)


def order_of(corpus: OrderedCorpus, config: RunConfig) -> Order:
    """The samples of a run, in order.

    Raises:
        UserError: as `mixture.Order`, or `data.folder_weights` is not one weight per folder.
    """
    folders: dict[str, Any] = {}
    if weights := config.data.folder_weights:
        names = corpus.folder_names
        if len(weights) != len(names):
            raise UserError(
                f"data.folder_weights={','.join(f'{weight:g}' for weight in weights)} is not one weight for each data folder, "
                f"which are, in this order, {', '.join(names)}"
            )
        folders = {
            "folder_ids": corpus.folder_of_shard[corpus.shard_of],
            "folder_weights": dict(zip(names, weights, strict=True)),
        }
    return Order(
        corpus.kinds,
        corpus.source_ids,
        corpus.shard_of,
        config.data.kind_weights,
        config.data.source_weights,
        config.data.shuffle_window_shards,
        config.seed,
        source_names=corpus.source_names,
        **folders,
    )


class StepPlanner:
    """Plans any step of a run, each in the same time."""

    def __init__(self, corpus: OrderedCorpus, config: RunConfig, *, world_size: int) -> None:
        """Raises UserError as `order_of`."""
        self._corpus, self.config, self.world_size = corpus, config, world_size
        self.order = order_of(corpus, config)

    def plan(self, step: int) -> PlannedStep:
        """The samples at positions step * B ... of the global sequence, B = `batch.global_samples`.

        Raises:
            UserError: a sample is too large for a micro-batch, naming its key.
        """
        size = self.config.batch.global_samples
        positions = np.arange(step * size, (step + 1) * size)
        samples = self.order.samples_at(positions)
        selection = select_step(self._corpus, samples, positions, self.config)
        is_pair = selection.kinds == Kind.PAIR
        split = split_step(
            sample_costs(selection, self.config.model),
            selection.num_positions,
            is_pair,
            self.world_size,
            self.config.batch.micro_batch_tokens,
            name_of=lambda row: f"sample {self._corpus.key(int(samples[row]))}",
        )
        groups = contrast_groups(is_pair, group_pairs=self.config.contrast.group_pairs)
        return PlannedStep(step=step, selection=selection, groups=groups, split=split)
