"""Contrastive loss on the single encodings of a step's pairs: pre-training's, its temperature included.

A model fine-tuned only on joint encodings forgets how single encodings of images and texts match. Single encodings rank better
until joint scores have seen very many pairs (docs/experiments.md). ALBEF and BLIP also fine-tune with both.
"""

from __future__ import annotations

from collections.abc import Sequence

from unimo_ds.config import ContrastConfig, LossWeights
from unimo_ds.data.schema import PackedBatch
from unimo_ds.engine.contrast import Contrast, carry, contrast_of, rehearse
from unimo_ds.engine.setup import Engine
from unimo_ds.losses.contrast_plan import join_tables, make_plan, share_sizes
from unimo_ds.models.unimo import anchor
from unimo_ds.tasks.pretraining import PretrainingTask


def accumulate(engine: Engine, singles: Sequence[PackedBatch], *, scale: float, path: str = "auto") -> Contrast:
    """Add the gradients of the loss summed over all pairs of the step, scaled by `scale`. A collective.

    singles: this rank's micro-batches of single encodings, on the host; the same number on every rank. path: of the loss, see
    `engine.contrastive`.
    """
    # A pair's only positive is itself, so all forms are the same loss.
    task = PretrainingTask(contrast=ContrastConfig(form="one_log"), weights=LossWeights(), contrastive_path=path)
    table = join_tables(singles)
    sizes = share_sizes(table, engine.communicator)
    batches = [one.to(engine.device) for one in singles]
    first = engine.forward(batches[0])  # while a GPU computes this, the host makes lists
    outputs = [first, *rehearse(engine, singles[1:], batches[1:])]
    plan = make_plan(table, form=task.contrast.form, sizes=sizes).to(engine.device)
    contrast = contrast_of(engine, task, plan, outputs, scale=scale)
    for index, batch in enumerate(batches):
        output = engine.forward(batch) if index else first
        engine.backward(carry(output, contrast, index) + anchor(output), is_boundary=False)
    return contrast
