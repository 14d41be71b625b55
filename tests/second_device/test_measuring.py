"""What is measured, written and found on a device is what the CPU measures, writes and finds: by functions and by commands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.data.prepare.raw import picture
from tests.evaluation import small as pairs
from tests.finetune import small, test_writing
from tests.huggingface import small as runs
from tests.huggingface.test_family import HEADS
from tests.serving.test_foils import WINOGROUND
from unimo_ds import cli
from unimo_ds.config import ContrastConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.evaluation.held_out import evaluate_held_out
from unimo_ds.export.folder import export
from unimo_ds.finetune.model import TaskModel
from unimo_ds.generation.generate import GenerationSettings
from unimo_ds.huggingface import heads
from unimo_ds.huggingface.modeling import UnimoForPreTraining
from unimo_ds.models.unimo import Unimo
from unimo_ds.serving.model import ServedModel

CPU = torch.device("cpu")


def numbers_of(value: object, name: str = "") -> dict[str, object]:
    """Everything in nested objects, under its path."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: one for part, held in parts for key, one in numbers_of(held, f"{name}/{part}").items()}
    return {name: value}


ROUNDING = {"second": {"rel": 1e-5, "abs": 1e-6}, "cuda": {"rel": 0.05, "abs": 0.15}}
"""On a GPU it may move a rank: one of a dozen."""


def assert_same(device: torch.device, found: object, expected: object) -> None:
    there, here = numbers_of(found), numbers_of(expected)
    assert there.keys() == here.keys()
    for name, value in here.items():
        wanted = pytest.approx(value, **ROUNDING[device.type], nan_ok=True) if isinstance(value, float) else value
        assert there[name] == wanted, name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs.write_corpus(tmp_path_factory.mktemp("pairs"), num_pairs=12)


@pytest.fixture(scope="module")
def of_pairs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has the corpus' regions."""
    config = pairs.run_config(corpus)
    return runs.write_run(tmp_path_factory.mktemp("runs") / "pairs", Unimo(config.model, seed=3), config)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that extracts its regions."""
    return runs.write_run(tmp_path_factory.mktemp("runs") / "photographs")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(run, folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(6):
        target = folder / ("red_ball" if number % 2 else "boat") / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        picture(number).save(target)
    return folder


@pytest.fixture
def ask(device: torch.device, tmp_path: Path) -> Callable[..., None]:
    """A command's JSON on the device is that on the CPU."""

    def compare(*words: object) -> None:
        found = []
        for where in (device, CPU):
            result = tmp_path / f"{where.type}.json"
            assert cli.main([*map(str, words), "--device", str(where), "--json", str(result)]) == 0
            found.append(json.loads(result.read_text()))
        assert_same(device, *found)

    return compare


def test_evaluation_during_training(device: torch.device, corpus: Path) -> None:
    shared = ContrastConfig(joint_encoding="shared_image")
    config = dataclasses.replace(pairs.run_config(corpus), contrast=shared)

    def measured(where: torch.device) -> dict[str, Any]:
        model = Unimo(config.model, seed=3).to(where)
        report = evaluate_held_out(pairs.PlainEngine(model, device=where), Corpus.open(corpus), config)
        assert report.embeddings is not None
        return {
            **report.metrics,
            "vectors": report.embeddings.matrix.ravel().tolist(),
            "pictures": len(report.pictures),
        }

    expected = measured(CPU)
    assert {"held_out/loss/masked_language", "held_out/rewrites/joint/word"} <= expected.keys()
    assert_same(device, measured(device), expected)


def test_zero_shot(ask, of_pairs: Path, corpus: Path, tmp_path: Path) -> None:
    drawn = ("--pictures", tmp_path / "pictures")
    ask("evaluate", "zero-shot", "--checkpoint", of_pairs, "--data", corpus, "--rerank", 4, *drawn)


def test_foils(ask, run: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text(json.dumps(WINOGROUND) + "\n")
    words = ("--data", tmp_path, "--images", photographs / "boat", photographs / "red_ball")
    ask("evaluate", "foils", "--checkpoint", run, "--benchmark", "winoground", *words)


def test_classification(ask, run: Path, photographs: Path) -> None:
    ask("evaluate", "classification", "--checkpoint", run, "--data", photographs)


@pytest.mark.parametrize("way", [("--beams", 1), ("--beams", 3, "--texts", 2, "--block-words", 2)])
def test_generation(ask, run: Path, photographs: Path, way: tuple) -> None:
    ask("generate", "--checkpoint", run, "--image", photographs / "boat", "--max-tokens", 8, *way)
    ask("generate", "--checkpoint", run, "--text", "a red ball", "two dogs", "--max-tokens", 8, *way)


def test_sampling(device: torch.device, run: Path) -> None:
    def drawn(where: torch.device) -> list:
        settings = GenerationSettings(num_beams=1, num_texts=3, max_tokens=8, sample=True, top_k=5)
        return ServedModel.open(run, device=where).write([None], ["a red ball"], settings)

    assert drawn(device) == drawn(device)
    if device.type == "second":  # a GPU draws other numbers
        assert drawn(device) == drawn(CPU)


@pytest.mark.parametrize("task", ["sst2", "gigaword"])
def test_a_fine_tuned_checkpoint(ask, task: str, tmp_path: Path) -> None:
    tokenizer, changes = runs.make_tokenizer(), ("finetune.generation.max_tokens=6", "finetune.generation.beams=2")
    if task == "sst2":
        small.write_sst2(tmp_path)
    else:
        test_writing.gigaword(tmp_path, tokenizer)
        for name in ("src", "tgt"):
            (tmp_path / f"train.{name}").rename(tmp_path / f"dev.{name}")
    found, config, _ = small.open_task(task, tmp_path, tokenizer, "dev", *changes)
    model = TaskModel(config, found.make_head(config), tag_sizes=found.tag_sizes)
    checkpoint = runs.write_run(tmp_path / "run", model, config)
    ask("evaluate", task, "--checkpoint", checkpoint, "--data", tmp_path)


def test_search(device: torch.device, run: Path, photographs: Path, tmp_path: Path, capsys) -> None:
    found = []
    for where in (device, CPU):
        index, names = tmp_path / where.type, ("--device", str(where))
        given = ["--checkpoint", str(run), "--images", str(photographs), "--output", str(index), *names]
        assert cli.main(["search", "build", *given]) == 0
        capsys.readouterr()
        assert cli.main(["search", "two dogs", "--index", str(index), "--json", *names]) == 0
        found.append(json.loads(capsys.readouterr().out)["found"])
    assert_same(device, *found)


def everything_of(model: transformers.PreTrainedModel, inputs: dict, labels: torch.Tensor | None) -> dict[str, Any]:
    """Outputs of one of transformers' classes on its device; with labels, the gradient of the loss."""
    there = {name: value.to(model.device) for name, value in inputs.items()}
    output = model.eval()(**there, **({} if labels is None else {"labels": labels.to(model.device)}))
    found = {name: value.detach().cpu() for name, value in output.items()}
    if labels is not None:
        output.loss.backward()
        found["gradient"] = model.unimo.text_embedding.word.weight.grad.cpu()
        model.zero_grad()
    if model.can_generate():
        found["written"] = model.generate(**there, num_beams=2, max_new_tokens=5).cpu()
    return found


CLASSES = [
    (UnimoForPreTraining, None, {}),
    (heads.UnimoForConditionalGeneration, torch.tensor([[9, 10, 2], [12, 2, -100]]), {}),
    *HEADS,
]


@pytest.mark.parametrize(("kind", "labels", "changes"), CLASSES)
def test_transformers_classes(device: torch.device, exported: Path, kind, labels, changes, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = kind.from_pretrained(exported, **changes)
    processor = transformers.AutoProcessor.from_pretrained(exported)
    inputs = processor(text=["a red ball", "two dogs in the snow"], images=[picture(0), picture(1)])
    here = everything_of(model, inputs, labels)
    model.save_pretrained(tmp_path / "here")
    there = everything_of(model.to(device), inputs, labels)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "there")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]
