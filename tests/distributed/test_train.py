"""The trainer through its real launchers: stopped on one rank and resumed bit for bit, and poisoned on one rank."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from tests.distributed.launching import deepspeed, launch, mpirun, processes_of_rank, started, torchrun
from tests.runs import await_two_steps, logged, write_small_corpus
from unimo_ds.engine import checkpoint_folder

TRAIN = Path(__file__).parents[2] / "unimo_ds" / "train.py"
SPOILING = Path(__file__).with_name("spoiling_worker.py")
FAILING = Path(__file__).with_name("failing_worker.py")
TOTAL_STEPS = 14
SETTINGS = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.feed_forward_size": 64,
    "model.hidden_dropout": 0.1,
    "model.attention_dropout": 0.1,
    "batch.global_samples": 14,
    "schedule.total_steps": TOTAL_STEPS,
    "schedule.warmup_steps": 2,
    "logging.every_steps": 1,
    "checkpoint.every_steps": 5,
    "evaluation.every_steps": 0,
    "data.num_workers": 2,
}


def arguments(corpus: Path, run_dir: Path, **changes: object) -> list[str]:
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--data", str(corpus), "--run-dir", str(run_dir), *flags]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "demo")


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under torchrun that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    launch(TRAIN, arguments(corpus, run_dir), processes=2)
    return run_dir


@pytest.mark.parametrize("launcher", [deepspeed, mpirun])
def test_every_launcher_takes_the_same_steps(
    launcher: Callable[[int], list[str]], corpus: Path, straight: Path, tmp_path: Path
) -> None:
    launch(TRAIN, arguments(corpus, tmp_path / "run"), processes=2, launcher=launcher)
    assert len(logged(straight)) == TOTAL_STEPS
    assert logged(tmp_path / "run") == logged(straight)


def test_stopped_by_a_signal_to_one_rank_and_resumed_bit_for_bit(corpus: Path, straight: Path, tmp_path: Path) -> None:
    """R1, R6, R7: SIGUSR1 to the second rank and its loader workers; two launchers; the same numbers as a straight run."""
    stopped = tmp_path / "stopped"
    with started([*deepspeed(2), str(TRAIN), *arguments(corpus, stopped)]) as family:
        await_two_steps(stopped, family)
        targets = processes_of_rank(family.pid, 1)
        assert len(targets) >= 3, "a rank and its two loader workers"
        for target in targets:
            os.kill(target, signal.SIGUSR1)
        output, _ = family.communicate(timeout=300)
    assert family.returncode == 75, output[-4000:]
    match = re.search(r"stopped at step (\d+) \(SIGUSR1\)", output)
    assert match, output[-4000:]
    step = int(match[1])
    assert 2 <= step < TOTAL_STEPS
    assert (stopped / "checkpoints" / "latest").read_text() == f"step-{step}\n"

    assert f"resuming from {stopped}/checkpoints/step-{step}" in launch(TRAIN, arguments(corpus, stopped), processes=2)
    assert logged(stopped) == logged(straight)
    assert list(logged(straight)) == list(range(1, TOTAL_STEPS + 1))
    for name in ("model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"):
        files = [folder / "checkpoints" / f"step-{TOTAL_STEPS}" / name for folder in (straight, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(("launcher", "number"), [(deepspeed, signal.SIGTERM), (torchrun, signal.SIGUSR1)])
def test_a_launcher_that_dies_and_a_storm_of_signals_leave_a_good_checkpoint(
    launcher: Callable[[int], list[str]], number: signal.Signals, corpus: Path, tmp_path: Path
) -> None:
    """R6: the launcher itself is signalled, and ends without a word to its ranks; those then get SIGTERM until they are gone."""
    run_dir = tmp_path / "run"
    flags = arguments(corpus, run_dir, schedule__total_steps=10_000, data__num_workers=0)
    with started([*launcher(2), str(TRAIN), *flags]) as family:
        deadline = time.monotonic() + 600
        await_two_steps(run_dir, family)
        ranks = [process for rank in range(2) for process in processes_of_rank(family.pid, rank)]
        os.kill(family.pid, number)
        assert family.wait(60) != 0
        storm = number == signal.SIGTERM
        while any(map(is_running, ranks)) and time.monotonic() < deadline:
            for rank in ranks if storm else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGTERM)
            time.sleep(0.002)
        output, _ = family.communicate(timeout=60)
    (stop,) = [line for line in read_lines(run_dir) if line.get("event") == "stopped"]
    assert stop["exit_status"] == 75
    assert stop["text"] in (("SIGTERM", "the launcher has ended") if storm else ("the launcher has ended",)), output
    assert (run_dir / "checkpoints" / "latest").read_text() == f"step-{stop['step']}\n"
    assert checkpoint_folder.problems_of(run_dir / "checkpoints" / f"step-{stop['step']}") == []
    assert max(logged(run_dir)) == stop["step"]


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def read_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_not_a_number_on_one_rank_skips_on_all_then_stops(corpus: Path, tmp_path: Path) -> None:
    """R9: one bad step is skipped and survived; three in a row end the run with a reason, and the samples are on record."""
    run_dir = tmp_path / "run"
    flags = arguments(corpus, run_dir, engine__max_skipped_steps=3, checkpoint__every_steps=2)
    with started([*torchrun(2), str(SPOILING), "nan=2,6,7,8", *flags]) as family:
        output, _ = family.communicate(timeout=300)
    assert family.returncode != 0
    assert "exitcode  : 2" in output, output[-4000:]
    assert "3 steps in a row up to step 9" in output
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line for line in lines if line.get("event") == "skipped"}
    assert sorted(skipped) == [3, 7, 8, 9]
    assert all(len(keys) == 2 and all(keys) for keys in (line["samples_by_rank"] for line in skipped.values()))
    losses = {line["step"]: line["loss/total"] for line in lines if "event" not in line}
    assert [step for step, loss in losses.items() if loss is None] == [3, 7, 8, 9]
    assert losses[6] is not None, "weights are still good after a skipped step"


def test_data_that_one_rank_cannot_read_stops_all_with_the_shards_named(corpus: Path, tmp_path: Path) -> None:
    """R11's bound over ranks: the others read well, yet all stop at one step, with status 2 and a sentence."""
    flags = arguments(corpus, tmp_path / "run", data__num_workers=0)
    with started([*torchrun(2), str(SPOILING), "unreadable=2", *flags]) as family:
        output, _ = family.communicate(timeout=300)
    assert "exitcode  : 2" in output, output[-4000:]
    (sentence,) = re.findall(r"^error: \d+ of \d+ samples could not be read in (.*)$", output, re.MULTILINE)
    assert ".tar, more than" in sentence
    assert f"for example, on {socket.gethostname()}, " in sentence, "though rank 0 has met none"
    assert "Permission denied" in sentence


def test_memory_that_runs_out_on_one_rank_is_told_with_ways_out_and_the_run_goes_on(
    corpus: Path, straight: Path, tmp_path: Path
) -> None:
    flags = arguments(corpus, tmp_path / "run")
    with started([*torchrun(2), str(SPOILING), "memory=7", *flags]) as family:
        output, _ = family.communicate(timeout=300)
    assert "exitcode  : 1" in output, output[-4000:]
    (sentence,) = re.findall(r"^error: rank 1 on \S+ ran out of memory in step 8 (.*)$", output, re.MULTILINE)
    assert "GiB may be used" in sentence
    assert "lower batch.micro_batch_tokens=8192, or set engine.activation_checkpointing=true" in sentence
    assert "error: another rank has gone, and this one ends with it" in output
    cured = arguments(corpus, tmp_path / "run", engine__activation_checkpointing="true")
    assert "resuming from" in launch(TRAIN, cured, processes=2)
    assert logged(tmp_path / "run") == logged(straight)


def test_a_rank_that_hangs_ends_all_with_their_stacks(corpus: Path, tmp_path: Path) -> None:
    """R12: the limit is twelve seconds here; both ranks say where they stood."""
    flags = arguments(corpus, tmp_path / "run", engine__hang_minutes=0.2)
    with started([*torchrun(2), str(SPOILING), "hang=3", *flags]) as family:
        output, _ = family.communicate(timeout=300)
    assert family.returncode != 0
    assert output.count("Timeout (0:00:12)!") == 2, output[-4000:]
    assert "spoiling_worker.py" in output, "the line that slept"
    assert "all_reduce" in output, "the line that waited"
    assert output.count("no progress for") == 1, "one rank tells"
    assert re.search(r"rank 1 \(\S+, process \d+\) at spoiling_worker\.py:\d+ spoil under .*, in no collective", output)
    assert re.search(r"rank 0 \(\S+, process \d+\) in all_reduce at .*communicator\.py", output)
    assert "rank 0 waits for rank 1" in output


@pytest.mark.parametrize(
    ("kind", "status", "last_line"),
    [("user", 2, "error: bad input of one rank"), ("bug", 1, "RuntimeError: a bug on one rank")],
)
def test_a_rank_that_fails_is_gone_with_its_own_status(kind: str, status: int, last_line: str) -> None:
    """Though a collective of it is pending which the other rank never joins; so that the launcher can end that one."""
    with started([*torchrun(2), str(FAILING), kind]) as family:
        output, _ = family.communicate(timeout=600)
    assert f"exitcode  : {status}" in output, output[-4000:]
    assert any(line.endswith(last_line) for line in output.splitlines())


@pytest.mark.parametrize(
    ("launcher", "flags", "sentence"),
    [
        (torchrun, ["--set", "sed=1"], "unknown key 'sed'; did you mean 'seed'?"),
        (
            torchrun,
            ["--set", "model.num_image_layers=0", "--set", "model.initialize_images_from=vit"],
            "model.initialize_images_from needs image layers; set model.num_image_layers, or it to none",
        ),
        (
            mpirun,
            ["--data", "nowhere"],
            "no data folder at nowhere; make one with `unimo prepare import` or `unimo prepare demo`",
        ),
    ],
)
def test_bad_input_of_all_ranks_is_told_once(
    launcher: Callable[[int], list[str]], flags: list[str], sentence: str, corpus: Path, tmp_path: Path
) -> None:
    with started([*launcher(2), str(TRAIN), *arguments(corpus, tmp_path / "run"), *flags]) as family:
        output, _ = family.communicate(timeout=600)
    assert family.returncode != 0
    assert output.count("error: ") == output.count(f"error: {sentence}\n") == 1, output[-4000:]
    assert not (tmp_path / "run").exists()


def test_rates_of_parts_that_are_not_there_and_other_rates_on_the_way_are_refused(corpus: Path, tmp_path: Path) -> None:
    """The first in the run's own directory, which the right name then takes."""

    def flags(**factors: float) -> list[str]:
        changes = {f"optimizer__rate_factors__{part}": factor for part, factor in factors.items()}
        return arguments(corpus, tmp_path / "run", schedule__total_steps=2, **changes)

    with started([*torchrun(2), str(TRAIN), *flags(text_embeding=0)]) as family:
        output, _ = family.communicate(timeout=600)
    sentence = "optimizer.rate_factors.text_embeding: the model has no such part; did you mean 'text_embedding'?"
    assert family.returncode != 0
    assert output.count("error: ") == output.count(f"error: {sentence}\n") == 1, output[-4000:]
    launch(TRAIN, flags(text_embedding=0), processes=2)
    moments = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / "step-2" / "exp_avg.safetensors")
    still = {name.partition(".")[0] for name, moment in moments.items() if not moment.any()}
    assert still == {"text_embedding"}
    with started([*torchrun(1)[:1], str(TRAIN), *flags(text_embedding=0, layers=0)]) as family:
        output, _ = family.communicate(timeout=600)
    assert family.returncode == 2
    assert "holds a run that differs in optimizer.rate_factors.layers (None there, 0.0 now); give the same" in output


def test_bad_input_is_one_sentence_and_status_2(corpus: Path, tmp_path: Path) -> None:
    command = [*torchrun(1)[:1], str(TRAIN), "--data", str(corpus), "--run-dir", str(tmp_path), "--set", "sed=1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: unknown key 'sed'; did you mean 'seed'?"
