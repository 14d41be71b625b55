"""A setting that a fine-tuning does not read is refused by name; what it reads is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.finetune import small
from unimo_ds import cli
from unimo_ds.config import RunConfig, from_dict, to_dict
from unimo_ds.finetune import reads, tasks
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils.errors import UserError

CONFIG = RunConfig("finetune", finetune=FinetuneConfig("sst2"))
HEADS = {"sst2", "mnli", "cola", "stsb", "retrieval", "snli-ve", "vqa"}
READERS = {
    "finetune.head_dropout=0.2": HEADS,
    "finetune.label_smoothing=0.1": set(tasks.NAMES) - HEADS,
    "finetune.max_target_tokens=9": set(tasks.NAMES) - HEADS,
    "finetune.generation.beams=3": set(tasks.NAMES) - HEADS,
    "finetune.retrieval.hard_share=0": {"retrieval"},
    "engine.contrastive=tiled": {"retrieval"},
    "contrast.max_temperature=0.4": {"retrieval"},
    "finetune.captioning.min_confidence=0.5": {"captioning"},
    "finetune.answer_min_count=2": {"vqa"},
    "finetune.adversarial.steps=1": set(tasks.NAMES),
    "data.max_text_tokens=32": set(tasks.NAMES),
    "optimizer.betas=0.9,0.99": set(tasks.NAMES),
    "spikes.ratio=5": set(tasks.NAMES),
}


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Of all settings, and of their groups."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")


def test_what_is_listed_exists() -> None:
    assert {*reads.OF_EVERY_TASK, *reads.OF_SOME_TASKS} <= set(keys(to_dict(CONFIG)))


@pytest.mark.parametrize(
    "override",
    [
        "masking.language_share=0.2",
        "losses.contrastive=0",
        "contrast.form=one_log",
        "contrast.exchange=ring",
        "data.kind_weights.text=2",
        "data.source_weights.coco=2",
        "data.num_workers=3",
        "data.smallest_crop=0.5",
        "evaluation.num_pairs=9",
        "logging.num_pictures=0",
    ],
)
def test_what_pre_training_alone_reads_is_refused(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UserError) as caught:
        reads.check(["finetune.epochs=1", override])
    assert str(caught.value) == f"--set {key}=... is not taken; pre-training alone reads it"


@pytest.mark.parametrize("name", tasks.NAMES)
def test_each_task_takes_what_it_reads(name: str) -> None:
    task = tasks.load(name)
    for override, readers in READERS.items():
        reads.check([override])
        if name in readers:
            reads.check_task([override], task.reads, task=name)
            continue
        with pytest.raises(UserError, match=rf"is not taken; {name} does not read it, .+ do(es)?$"):
            reads.check_task([override], task.reads, task=name)


@pytest.mark.parametrize(
    ("task", "override", "said"),
    [
        ("sst2", "masking.phrases=false", "--set masking.phrases=... is not taken; pre-training alone reads it"),
        ("sst2", "masking.phrase=false", "unknown key 'masking.phrase'; did you mean 'phrases'?"),
        ("cola", "finetune.generation.beams=1", "cola does not read it, tasks that write do"),
        ("captioning", "finetune.head_dropout=0", "captioning does not read it, tasks that do not write do"),
    ],
)
def test_the_command_says_it_with_status_2(
    task: str, override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", task, "--data", str(tmp_path), "--checkpoint", str(tmp_path), "--set", override]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_what_pre_training_reads_is_told_before_heavy_imports(tmp_path: Path) -> None:
    code = "import sys; from unimo_ds import cli; print(cli.main(sys.argv[1:]), *{'torch', 'numpy'} & {*sys.modules})"
    words = [
        "finetune",
        "sst2",
        "--data",
        str(tmp_path),
        "--checkpoint",
        str(tmp_path),
        "--set",
        "losses.contrastive=0",
    ]
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    assert "--set losses.contrastive=... is not taken" in found.stderr
    assert found.stdout.split() == ["2"]


def test_a_stored_run_with_such_a_setting_still_loads() -> None:
    config = small.task_config("sst2", small.train_tokenizer(), "masking.language_share=0.4", "losses.contrastive=0")
    assert config.masking.language_share == 0.4
    assert from_dict(RunConfig, to_dict(config)) == config
