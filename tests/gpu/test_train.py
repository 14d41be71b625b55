"""The trainer on this machine's GPUs through its launchers: stopped and resumed bit for bit, compared with a CPU, refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import deepspeed, launch, started, torchrun
from tests.distributed.test_train import TOTAL_STEPS, TRAIN, arguments
from tests.runs import await_two_steps, logged, write_small_corpus

pytestmark = pytest.mark.gpu
ON_KERNELS = {
    "model__hidden_size": 128,
    "model__num_heads": 2,
    "model__feed_forward_size": 256,
    "engine__deepspeed_config": "zero1_bf16",
    "engine__attention": "native",
    "engine__contrastive": "native",
    "engine__deterministic": "true",
    "logging__trace_steps": "2,3",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "demo")


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    flags = arguments(corpus, run_dir, **ON_KERNELS)
    launch(TRAIN, flags, processes=torch.cuda.device_count(), launcher=deepspeed)
    return run_dir


def test_stopped_and_resumed_bit_for_bit(corpus: Path, straight: Path, tmp_path: Path) -> None:
    """bf16 on kernels, `engine.deterministic`; the stopped run is torchrun's."""
    run_dir, processes = tmp_path / "stopped", torch.cuda.device_count()
    flags = arguments(corpus, run_dir, **ON_KERNELS)
    with started([*torchrun(processes), str(TRAIN), *flags]) as family:
        await_two_steps(run_dir, family, seconds=300)
        family.send_signal(signal.SIGTERM)
        output, _ = family.communicate(timeout=120)
    step = int((run_dir / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert 2 <= step < TOTAL_STEPS, output[-4000:]
    assert f"resuming from {run_dir}/checkpoints/step-{step}" in launch(TRAIN, flags, processes=processes)
    assert list(logged(straight)) == list(range(1, TOTAL_STEPS + 1))
    one, other = (
        {  # the peak of memory is one of a start, not of the run
            step: {name: value for name, value in values.items() if not name.startswith("memory/")}
            for step, values in logged(run).items()
        }
        for run in (run_dir, straight)
    )
    assert one == other
    for name in ("model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"):
        files = [folder / "checkpoints" / f"step-{TOTAL_STEPS}" / name for folder in (straight, run_dir)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_steps_are_traced(straight: Path) -> None:
    (trace,) = (straight / "traces").iterdir()
    assert "attention_" in trace.read_text(), "the kernels' names"


def test_a_gpu_loses_what_a_cpu_loses(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32: every logged loss of every step, and of the evaluations before, between and after."""
    settings = {
        "engine__deepspeed_config": "zero1_fp32",
        "engine__contrastive": "tiled",
        "batch__micro_batch_tokens": 1 << 16,
        "evaluation__every_steps": TOTAL_STEPS // 2,
    }
    launch(TRAIN, arguments(corpus, tmp_path / "gpu", **settings), processes=torch.cuda.device_count())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(TRAIN, arguments(corpus, tmp_path / "cpu", **settings), processes=1)
    there, here = logged(tmp_path / "gpu"), logged(tmp_path / "cpu")
    assert list(there) == list(here)
    for step, values in here.items():
        losses = {name: value for name, value in values.items() if name.startswith(("loss/", "held_out/loss/"))}
        assert losses
        assert {name: there[step][name] for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-5), step


def test_more_processes_than_gpus_are_refused_in_a_sentence(corpus: Path, tmp_path: Path) -> None:
    flags = arguments(corpus, tmp_path / "run", model__hidden_size=32)
    with started([*torchrun(torch.cuda.device_count() + 1), str(TRAIN), *flags]) as family:
        output, _ = family.communicate(timeout=300)
    assert "exitcode  : 2" in output, output[-4000:]
    assert re.search(
        r"^error: there are more processes than GPUs on \S+, where \d can be seen; ", output, re.MULTILINE
    ), output


def unimo(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "unimo_ds", *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_evaluation_and_generation_give_what_a_cpu_gives(corpus: Path, straight: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        result = tmp_path / f"{device}.json"
        unimo(
            "evaluate",
            "zero-shot",
            "--checkpoint",
            straight,
            "--data",
            corpus / "held_out",
            "--device",
            device,
            "--json",
            result,
        )
        captions = unimo(
            *("generate", "--checkpoint", straight, "--text", "a red ball", "two blue boxes", "--device", device),
            *("--beams", 3, "--max-tokens", 12, "--json"),
        )
        found[device] = json.loads(result.read_text()), json.loads(captions)
    numbers = [flat(result[0]) for result in found.values()]
    assert numbers[0].keys() == numbers[1].keys()
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.15)
    assert found["cuda"][1] == found["cpu"][1]


def flat(value: object, name: str = "") -> dict[str, float]:
    """Every number of nested objects."""
    if isinstance(value, dict):
        return {key: number for part in value for key, number in flat(value[part], f"{name}/{part}").items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {name: float(value)} if is_number else {}
