"""Ranks that would compute with and without the CUDA kernels are refused, and a run without them says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from unimo_ds.engine.kernels import agree_on_kernels, kernels_missing
from unimo_ds.ops.native import library
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError


class Rank(SingleProcess):
    """One of several ranks that are threads."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self.values, self.barrier = rank, len(values), values, barrier

    def all_gather_object(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(timeout=10)
        found = list(self.values)
        self.barrier.wait(timeout=10)
        return found


def agree(*missing: str) -> list[str]:
    """What each rank is told, given what it lacks."""
    values: list[Any] = [None] * len(missing)
    barrier = threading.Barrier(len(missing))

    def told(rank: int) -> str:
        try:
            agree_on_kernels(missing[rank], Rank(rank, values, barrier))
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(missing)) as ranks:
        return list(ranks.map(told, range(len(missing))))


def test_ranks_that_differ_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = agree("", "", "there is no nvcc")
    assert first.startswith("rank 2 on ")
    assert "the CUDA kernels, which other ranks have, cannot run here: there is no nvcc; cure that" in first
    assert rest == [first, first]
    assert agree("there is no nvcc", "")[1].startswith("the CUDA kernels, which other ranks have")
    assert "not used" not in capsys.readouterr().out, "some ranks have them"


def test_where_nobody_has_them_it_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert agree(*["UNIMO_KERNELS=off"] * number) == [""] * number
        assert (
            capsys.readouterr().out == "note: the CUDA kernels are not used, and steps take longer: UNIMO_KERNELS=off\n"
        )
    assert agree("", "") == ["", ""]
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert kernels_missing(cpu, "fp32") == "it runs on NVIDIA GPUs"
    monkeypatch.setenv(library.ON_HOST, "sm_70")
    assert kernels_missing(cpu, "fp32") == kernels_missing(cpu, "fp16") == ""
    assert "bfloat16 needs" in kernels_missing(cpu, "bf16")
