"""ZeRO stages, precisions and rates by part on this machine's GPUs, one rank each, by the tests of CPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed import test_rate_factors as rates
from tests.distributed.launching import launch
from tests.distributed.test_checkpoint import NAMES, OFFLOADED

pytestmark = pytest.mark.gpu
MOVES = ["zero3_fp32:zero0_fp32", "zero0_fp32:zero3_fp32", "zero1_bf16:zero3_bf16"]


def run(folder: Path, names: list[str], moves: list[str]) -> dict[int, dict]:
    output = folder / "results.json"
    arguments = [str(folder), str(output), ",".join(names), ",".join(moves)]
    launch(rates.WORKER, arguments, processes=torch.cuda.device_count())
    return {2: json.loads(output.read_text())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    return run(tmp_path_factory.mktemp("plain"), NAMES, MOVES)


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """DeepSpeed compiles its optimizer for CPUs."""
    return run(tmp_path_factory.mktemp("offloaded"), OFFLOADED, [])


def check(found: dict[int, dict], name: str) -> None:
    rates.test_two_ranks_equal_a_plain_loop(found, name)
    rates.test_frozen_weights_keep_every_bit_and_have_no_moments(found, name)
    rates.test_resume_is_bit_equal_and_dropped_gradients_leave_no_trace(found, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_and_precision_equals_a_plain_loop_and_resumes(plain: dict[int, dict], name: str) -> None:
    check(plain, name)


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_optimizers_do_too(offloaded: dict[int, dict], name: str) -> None:
    check(offloaded, name)


@pytest.mark.parametrize("move", MOVES)
def test_state_moves_between_stages(plain: dict[int, dict], move: str) -> None:
    rates.test_state_moves_between_world_sizes_and_stages({1: plain[2], 2: plain[2]}, 1, move)
