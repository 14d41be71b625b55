"""`unimo export`: one folder that transformers reads after `import unimo_ds`, and that every command here accepts too.

config.json, model.safetensors (or several and their index)     the model in transformers' format
tokenizer.json, tokenizer_config.json                           the tokenizer
processor_config.json, preprocessor_config.json, extractor.safetensors   images and texts to inputs
run_config.json, task.json                                      settings of the run; assets of its task (answers, names)
generation_config.json                                          decoding settings, if fine-tuned to generate text
README.md                                                       model card, from the run's records
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.schema import CLS, PAD
from unimo_ds.evaluation.checkpoint import RUN_CONFIG_FILE, fill
from unimo_ds.export import SHARD_BYTES
from unimo_ds.export import source as sources
from unimo_ds.export.card import write_card
from unimo_ds.export.source import Source
from unimo_ds.finetune import model as task_models
from unimo_ds.finetune import tasks
from unimo_ds.finetune.loaded import ASSETS_FILE
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune.task import Task
from unimo_ds.finetune.writing import WritingTask
from unimo_ds.huggingface import heads, modeling
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.image_processing import UnimoImageProcessor
from unimo_ds.huggingface.processing import UnimoProcessor, fast_tokenizer
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.new_folder import new_folder, refuse_occupied

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CLASSES: dict[tuple[type[nn.Module], bool], type[modeling.UnimoPreTrainedModel]] = {
    (task_models.NoHead, False): heads.UnimoForConditionalGeneration,
    (task_models.TextHead, False): heads.UnimoForSequenceClassification,
    (task_models.SumHead, False): heads.UnimoForVisualEntailment,
    (task_models.ProductHead, False): heads.UnimoForImageTextRetrieval,
    (task_models.ProductHead, True): heads.UnimoForVisualQuestionAnswering,
}
"""(fine-tuning head, whether it has an answer vocabulary) -> class with the same weights under the same names."""


def export(
    checkpoint: Path,
    to: Path,
    *,
    tokenizer: Path | None = None,
    extractor: Path | None = None,
    dtype: str = "fp32",
    max_shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write the model at `checkpoint` (a run, a checkpoint or an export) into the new folder `to`. Returns the files written.

    tokenizer, extractor: file or folder; None: those of the run's data. dtype: of the stored weights, fp32, fp16 or bf16.
    max_shard_bytes: larger weights are split over several files. The folder appears complete or not at all.

    Raises:
        UserError: `to` is not empty, or no tokenizer is found, or it is not the model's; and as `source.load`.
    """
    refuse_occupied(to, option="--to")
    found = sources.load(checkpoint, tokenizer=tokenizer, extractor=extractor, device=torch.device("cpu"))
    return write(found, to, dtype=dtype, max_shard_bytes=max_shard_bytes, card=functools.partial(write_card, found))


def write(
    found: Source, to: Path, *, dtype: str, max_shard_bytes: int = SHARD_BYTES, card: Callable[[str], str]
) -> list[Path]:
    """Write a model's folder. card: text of README.md, given the class name of the exported model."""
    config = found.config
    model = to_transformers(found, dtype=DTYPES[dtype])
    processor = UnimoProcessor(
        UnimoImageProcessor(config.data.max_regions, extractor=found.extractor),
        fast_tokenizer(found.tokenizer, max_tokens=found.max_text_tokens),
        **_object_names(found),
    )
    # The initial weights do not matter to users of the export, and their files may not exist there.
    fresh = dataclasses.replace(config.model, initialize_from=None, initialize_images_from=None)
    config = dataclasses.replace(config, model=fresh)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with new_folder(to, option="--to") as folder:
            model.save_pretrained(folder, max_shard_size=max_shard_bytes)
            processor.save_pretrained(folder)
            (folder / RUN_CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2) + "\n")
            if found.assets:
                (folder / ASSETS_FILE).write_text(json.dumps(dict(found.assets)))
            (folder / "README.md").write_text(card(type(model).__name__), encoding="utf-8")
            _let_others_read(folder)
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()
    return sorted(to.iterdir())


def _let_others_read(folder: Path) -> None:
    """safetensors makes files that only their owner can read; give them the mode of the other files (the umask's)."""
    mode = (folder / "README.md").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def to_transformers(found: Source, *, dtype: torch.dtype) -> modeling.UnimoPreTrainedModel:
    """The model as the class of `huggingface/` with exactly its weights, which are copied.

    Raises:
        UserError: a fine-tuned model with a head that no class has.
    """
    config = _config_of(found.config)
    task = None if found.task is None else tasks.load(found.task)
    weights = {name: weight.detach().to(dtype) for name, weight in found.module.named_parameters()}
    family: type[modeling.UnimoPreTrainedModel] = modeling.UnimoForPreTraining
    if isinstance(found.module, task_models.TaskModel):
        head: Any = found.module.head["scores"]
        labels = _labels_of(found, task, number=head.output.out_features if hasattr(head, "output") else 1)
        kind = type(head), "answers" in found.assets
        if kind not in _CLASSES:
            raise UserError(
                f"{found.files.name} is fine-tuned on {found.task}, whose parts no class of transformers' family has yet; "
                "use the run itself, or export the pre-trained model"
            )
        family = _CLASSES[kind]
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        if family is heads.UnimoForSequenceClassification and not getattr(task, "labels", ()):
            config.problem_type = "regression"  # otherwise a pipeline applies a sigmoid
        if isinstance(head, task_models.SumHead):
            config.classifier_hidden_size = head.middle.out_features
        if isinstance(task, WritingTask):
            config.tag_sizes = list(task.tag_sizes) or None
            config.gnmt_length_penalty = True
    model: Any = family(config)
    if isinstance(task, WritingTask):
        model.generation_config = _generation_of(found, task)
    model.to(dtype)
    own = {name.removeprefix("unimo."): parameter for name, parameter in model.named_parameters()}
    fill(own, weights, where=f"{type(model).__name__} does not fit {found.files.name}")
    result: modeling.UnimoPreTrainedModel = model
    return result


def _object_names(found: Source) -> dict[str, Any]:
    """Processor settings of a model trained with the names of detected objects."""
    objects = ObjectWords.of(found.config, found.assets, found.tokenizer)
    if objects is None:
        return {}
    return {
        "object_names": objects.names,
        "min_confidence": objects.min_confidence,
        "max_object_tokens": objects.max_tokens,
    }


def _generation_of(found: Source, task: WritingTask) -> GenerationConfig:
    """A fine-tuned model's decoding settings for transformers, which has none for blocking word trigrams."""
    settings = task.generation_settings(found.config, found.tokenizer)
    special = np.flatnonzero(Vocabulary.of(found.tokenizer).special).tolist()
    beams = {"length_penalty": settings.length_penalty, "early_stopping": False} if settings.num_beams > 1 else {}
    return GenerationConfig(
        num_beams=settings.num_beams,
        min_new_tokens=settings.min_tokens,
        max_new_tokens=settings.max_tokens,
        eos_token_id=settings.end_id,
        pad_token_id=PAD,
        decoder_start_token_id=CLS,
        suppress_tokens=[token for token in special if token != settings.end_id],
        **beams,
    )


def _labels_of(found: Source, task: Task | None, *, number: int) -> list[str]:
    """Names of the `number` outputs of a fine-tuned model's head: answers, the task's labels, or numbers."""
    names = [*getattr(task, "labels", ())]
    if "answers" in found.assets:
        names = strict_json.typed(list[str], found.assets["answers"], where=f"{ASSETS_FILE}: answers")
    return names if len(names) == number else [f"LABEL_{place}" for place in range(number)]


def _config_of(config: RunConfig) -> UnimoConfig:
    contrast = config.contrast
    return UnimoConfig.of(
        config.model,
        contrastive_temperature=contrast.temperature,
        min_contrastive_temperature=contrast.min_temperature,
        max_contrastive_temperature=contrast.max_temperature,
        classifier_dropout=config.finetune.head_dropout if config.finetune else config.model.hidden_dropout,
    )
