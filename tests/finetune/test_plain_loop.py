"""A fine-tuning takes the steps of a plain loop: transformers' class, padded batches, torch's AdamW and clipping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.distributed.launching import launch
from tests.finetune import small
from tests.finetune.test_run import MAIN
from tests.runs import logged
from unimo_ds.config import KindWeights
from unimo_ds.data.mixture import Order as Visits
from unimo_ds.data.schema import PAD, Kind
from unimo_ds.engine.schedule import learning_rate
from unimo_ds.finetune import run, start, tasks
from unimo_ds.finetune.model import TaskModel
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.heads import UnimoForSequenceClassification

RATE, DECAY, CLIP, AT_ONCE = 1e-3, 0.1, 0.3, 8
SETTINGS = (
    *("finetune.epochs=2", "finetune.head_dropout=0", "finetune.warmup_share=0.2", "logging.every_steps=1"),
    *("model.hidden_dropout=0", "model.attention_dropout=0", f"batch.global_samples={AT_ONCE}"),
    *(f"optimizer.peak_learning_rate={RATE}", f"optimizer.weight_decay={DECAY}", f"optimizer.clip_norm={CLIP}"),
)


def test_losses_and_norms_are_those_of_a_plain_loop(tmp_path: Path):
    begun, data = small.write_checkpoint(tmp_path / "start"), small.write_sst2(tmp_path / "data", train=42)
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    paths = ["--data", str(data), "--checkpoint", str(begun), "--run-dir", str(tmp_path / "run")]
    launch(MAIN, ["finetune", "sst2", *paths, *changes], processes=1)
    task = tasks.load("sst2")
    order = run.Order(task, "base", data, tmp_path / "other", start.read_start(begun), False, SETTINGS)
    read = run._read(order, 0)
    config, examples = read.config, read.training

    own = TaskModel(config, task.make_head(config))
    start.fill(own, order.start)
    model = UnimoForSequenceClassification(UnimoConfig.of(config.model, classifier_dropout=0.0, num_labels=2)).train()
    weights = dict(own.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name.removeprefix("unimo.")].data)
    groups = [
        {"params": [one for one in model.parameters() if one.ndim >= 2], "weight_decay": DECAY},
        {"params": [one for one in model.parameters() if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.epsilon)
    zeros = np.zeros(len(examples), np.int64)
    visits = Visits(zeros + Kind.TEXT, zeros, zeros, KindWeights(image=0.0, text=1.0, pair=0.0), seed=config.seed)
    norms = []
    for step, values in sorted(logged(tmp_path / "run" / "seed-0").items()):
        indices = visits.samples_at(np.arange((step - 1) * AT_ONCE, step * AT_ONCE)).tolist()
        made = [examples.make(index, 0) for index in indices]
        rows = [torch.from_numpy(one.sequences[0].token_ids).long() for one in made]
        ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
        labels = torch.tensor([int(one.targets[0]) for one in made])
        loss = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        assert values["loss/total"] == pytest.approx(loss.item(), abs=1e-5)
        assert values["gradient_norm"] == pytest.approx(norms[-1], rel=1e-3, abs=1e-5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, peak=RATE, schedule=config.schedule)
        optimizer.step()
    assert len(norms) == 12
    assert min(norms) < CLIP < max(norms), "some steps are clipped and some are not"
