"""Held-out losses of the masked and generative objectives, with the same corruption at every evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from unimo_ds.config import LossWeights, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.examples import Visit, make_examples, texts_to_encode
from unimo_ds.data.inputs import prepare_sample, text_input
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import Example, LanguageObjective
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.encode import Evaluable, Integers, deal, evaluating, micro_batches
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils import heartbeat

_SEED = 2021
"""Of the corruption; independent of the run's seed, so that runs of different seeds are compared on the same inputs."""
_LANGUAGE = {
    "masked_language": LanguageObjective.MASKED,
    "sequence_to_sequence": LanguageObjective.SEQUENCE_TO_SEQUENCE,
}


def held_out_losses(
    engine: Evaluable, corpus: Corpus, samples: Integers, tokenizer: Tokenizer, config: RunConfig
) -> dict[str, float]:
    """Mean of each loss over `samples`, and the fraction of tokens predicted right; losses without targets are left out.

    A collective; every rank gets the same results. Names: `loss/masked_language`, ..., `accuracy/masked_language`.
    """
    # Clean sequences are for the contrastive loss; retrieval and rewrites measure that instead.
    config = dataclasses.replace(
        config, seed=_SEED, contrast=dataclasses.replace(config.contrast, enabled=False), losses=LossWeights()
    )
    task = PretrainingTask.of(config)
    selection = select_step(corpus, samples, np.arange(len(samples)), config)
    dealt = deal(
        micro_batches(selection.num_positions, micro_batch_tokens=config.batch.micro_batch_tokens),
        world_size=engine.communicator.world_size,
    )
    vocabulary = Vocabulary.of(tokenizer)
    totals = torch.zeros(3, len(task.objectives), dtype=torch.float64, device=engine.device)
    with evaluating(engine):
        for rows in dealt[engine.communicator.rank]:
            examples = _examples(corpus, selection.rows(rows), tokenizer, vocabulary, config)
            batch = pack(examples, feature_size=corpus.feature_size, classes_per_region=corpus.classes_per_region)
            on_device = batch.to(engine.device)
            output = engine.forward(on_device)
            heartbeat.beat()
            for column, objective in enumerate(task.objectives):
                totals[0, column] += objective.loss_sum(output, on_device)
                totals[1, column] += objective.count(batch)
                if objective.name in _LANGUAGE:
                    assert output.language_correct is not None  # set in evaluation
                    of_objective = on_device.language_objectives == int(_LANGUAGE[objective.name])
                    totals[2, column] += (output.language_correct & of_objective).sum()
    sums, counts, correct = engine.communicator.all_reduce_sum(totals).tolist()
    result: dict[str, float] = {}
    for column, objective in enumerate(task.objectives):
        if counts[column]:
            result[f"loss/{objective.name}"] = sums[column] / counts[column]
            if objective.name in _LANGUAGE:
                result[f"accuracy/{objective.name}"] = correct[column] / counts[column]
    return result


def _examples(
    corpus: Corpus, selections: Iterable[Selection], tokenizer: Tokenizer, vocabulary: Vocabulary, config: RunConfig
) -> list[Example]:
    visits = []
    texts: set[str] = set()
    for selection in selections:
        sample = prepare_sample(corpus.read(selection.sample), max_regions=config.data.max_regions)
        visits.append(Visit(selection, sample, {}))
        texts.update(texts_to_encode(sample, selection))
    if not visits:
        return []
    ordered = sorted(texts)
    inputs = [text_input(ids, max_text_tokens=config.data.max_text_tokens) for ids in tokenizer.encode_batch(ordered)]
    text_inputs = dict(zip(ordered, inputs, strict=True))
    return make_examples(visits, text_inputs=text_inputs, vocabulary=vocabulary, config=config)
