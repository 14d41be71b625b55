"""Memory and time of opening a task's training files at their official numbers of examples, in a process of its own each.

    python -m benchmarks.finetuning_files FOLDER [--tasks mnli snli-ve vqa] [--share 0.1]

Files of made-up words are written into FOLDER first, in the official forms: 392,702 lines of MNLI, 529,527 of SNLI-VE, 443,757
questions of VQA with ten answers each; the photographs are two thousand small samples. `--share` takes fewer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimo_ds.config import ModelConfig, RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.folder import finish_folder
from unimo_ds.data.schema import Kind, Regions, Sample
from unimo_ds.data.shards import ShardWriter
from unimo_ds.finetune import tasks
from unimo_ds.finetune.settings import configure

EXAMPLES = {"mnli": 392_702, "snli-ve": 529_527, "vqa": 443_757}
_IMAGES, _FEATURES, _CLASSES = 2_000, 8, 6
_WORDS, _SYLLABLES = 20_000, ("ba", "den", "ki", "lor", "mu", "nes", "pa", "ri", "sto", "ve", "za", "chen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_task(options.tasks[0], options.folder)))
        return
    print(f"{'task':<10}{'examples':>10}{'before, MiB':>13}{'peak, MiB':>11}{'seconds':>9}")
    for name in options.tasks:
        folder = options.folder / name
        if not (folder / "tokenizer.json").is_file():
            write(name, folder, round(options.share * EXAMPLES[name]))
        command = [sys.executable, "-m", "benchmarks.finetuning_files", str(folder), "--open", "--tasks", name]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
        print(
            f"{name:<10}{found['examples']:>10,}{found['before']:>13.0f}{found['peak']:>11.0f}{found['seconds']:>9.1f}"
        )


def open_task(name: str, folder: Path) -> dict[str, float]:
    """What this process holds before and at the most, MiB."""
    tokenizer, task = tokenizers.load(folder), tasks.load(name)
    model = ModelConfig(
        vocabulary_size=tokenizer.vocabulary_size, region_feature_size=_FEATURES, num_region_classes=_CLASSES
    )
    start = RunConfig(recipe="benchmark", model=model)
    config = configure(task, "base", start, data=folder, run_dir=folder / "run", start_name="", seed=0)
    before, began = _peak(), time.perf_counter()
    config, assets = task.settle(config, folder)
    examples = task.open(folder, "train", tokenizer=tokenizer, config=config, assets=assets)
    return {"examples": len(examples), "before": before, "peak": _peak(), "seconds": time.perf_counter() - began}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(name: str, folder: Path, number: int) -> None:
    """A task's training files, a tokenizer, and its photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(_SYLLABLES, random.integers(1, 5))) for _ in range(_WORDS)])
    texts = _texts(words, random)
    _WRITERS[name](folder, number, texts, random)
    tokenizer = tokenizers.train([next(texts) for _ in range(2_000)], vocabulary_size=8_000)
    if name != "mnli":
        with ShardWriter(folder / "images", "images", max_samples=500) as writer:
            for image in range(_IMAGES):
                sample = Sample(key="", kind=Kind.IMAGE, source="made-up", regions=_regions(random))
                writer.write(sample, details={"file": f"COCO_train2014_{image:012d}.jpg"})
        tokenizer.save(folder / "images")
        finish_folder(folder / "images", tokenizer=tokenizer, num_region_classes=_CLASSES, command="benchmark")
    tokenizer.save(folder)  # last: the folder is whole


def _texts(words: np.ndarray, random: np.random.Generator) -> Iterator[str]:
    """Sentences of 4 to 24 words, frequent ones more often."""
    while True:
        drawn = words[np.minimum(random.zipf(1.3, 2**16), len(words)) - 1]
        starts = np.cumsum(random.integers(4, 25, 2**12))
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if stop <= len(drawn):
                yield " ".join(drawn[start:stop])


def _regions(random: np.random.Generator) -> Regions:
    return Regions(
        boxes=np.array([[0.1, 0.1, 0.5, 0.5]], np.float32),
        features=random.standard_normal((1, _FEATURES)).astype(np.float16),
        class_ids=np.zeros((1, 2), np.int32),
        class_probabilities=np.full((1, 2), 0.4, np.float16),
    )


def _write_mnli(folder: Path, number: int, texts: Iterator[str], random: np.random.Generator) -> None:
    header = (
        *(
            "index",
            "promptID",
            "pairID",
            "genre",
            "sentence1_binary_parse",
            "sentence2_binary_parse",
            "sentence1_parse",
        ),
        *("sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
    )
    labels = ("contradiction", "entailment", "neutral")
    with (folder / "train.tsv").open("w") as file:
        file.write("\t".join(header) + "\n")
        for row in range(number):
            one, other, label = next(texts), next(texts), labels[row % 3]
            parses = (f"( {one} )", f"( {other} )", f"(ROOT (S {one}))", f"(ROOT (S {other}))")
            file.write("\t".join((str(row), f"{row}p", f"{row}n", "fiction", *parses, one, other, label, label)) + "\n")


def _write_snli_ve(folder: Path, number: int, texts: Iterator[str], random: np.random.Generator) -> None:
    labels = ("contradiction", "entailment", "neutral")
    with (folder / "snli_ve_train.jsonl").open("w") as file:
        for row in range(number):
            line = {
                "annotator_labels": [labels[row % 3]] * 5,
                "captionID": f"{row}.jpg#2",
                "gold_label": labels[row % 3],
                "pairID": f"{row}r1n",
                "sentence1": next(texts),
                "sentence2": next(texts),
                "Flickr30K_ID": f"COCO_train2014_{row % _IMAGES:012d}",
            }
            file.write(json.dumps(line) + "\n")


def _write_vqa(folder: Path, number: int, texts: Iterator[str], random: np.random.Generator) -> None:
    answers = [next(texts).rpartition(" ")[2] for _ in range(40_000)]
    with (folder / "v2_OpenEnded_mscoco_train2014_questions.json").open("w") as file:
        file.write('{"info": {"version": "2.0"}, "questions": [')
        for row in range(number):
            one = {
                "image_id": row % _IMAGES,
                "question": next(texts) + "?",
                "question_id": 1000 * (row % _IMAGES) + row,
            }
            file.write((", " if row else "") + json.dumps(one))
        file.write("]}")
    with (folder / "v2_mscoco_train2014_annotations.json").open("w") as file:
        file.write('{"info": {"version": "2.0"}, "annotations": [')
        for row in range(number):
            drawn = np.minimum(random.zipf(1.4, 10), len(answers)) - 1
            given = [
                {"answer": answers[place], "answer_confidence": "yes", "answer_id": one}
                for one, place in enumerate(drawn.tolist(), start=1)
            ]
            one = {
                "question_type": "what is",
                "multiple_choice_answer": answers[drawn[0]],
                "answers": given,
                "image_id": row % _IMAGES,
                "answer_type": "other",
                "question_id": 1000 * (row % _IMAGES) + row,
            }
            file.write((", " if row else "") + json.dumps(one))
        file.write("]}")


_WRITERS = {"mnli": _write_mnli, "snli-ve": _write_snli_ve, "vqa": _write_vqa}


if __name__ == "__main__":
    main()
