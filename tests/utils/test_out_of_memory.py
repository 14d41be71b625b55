"""Memory that ran out comes as a sentence; other errors stay what they are."""

from __future__ import annotations

import pytest
import torch

from unimo_ds.utils.errors import EXIT_FAILED, MemoryRanOutError
from unimo_ds.utils.out_of_memory import out_of_memory_told
from unimo_ds.utils.running import run_command

MORE_THAN_ANY = 1 << 50
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", DEVICES)
def test_the_place_the_device_and_the_cure_are_told(name: str) -> None:
    device = torch.device(name)
    sentence = r"^rank 3 on \S+ ran out of memory in step 7 \(.* GiB .*\); take less$"
    told = out_of_memory_told("step 7", "take less", device=device, rank=3)
    with pytest.raises(MemoryRanOutError, match=sentence), told:
        torch.empty(MORE_THAN_ANY, device=device)


def test_other_errors_pass() -> None:
    told = out_of_memory_told("step 7", "take less", device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="shape"), told:
        torch.ones(2).view(3)


def test_a_command_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: torch.empty(MORE_THAN_ANY).numel()) == EXIT_FAILED
    assert capsys.readouterr().err.startswith("error: memory ran out (")
    with pytest.raises(RuntimeError, match="shape"):
        run_command(lambda: torch.ones(2).view(3).numel())
