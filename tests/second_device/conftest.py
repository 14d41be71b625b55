"""The devices that tests compare with the CPU: the second one everywhere, by `pytest -m gpu` a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.second_device import second_device

if not torch.cuda.is_available():  # GPUs are hidden unless only their tests run
    # When tests are collected: the first backward pass of a process, of whatever test, counts the devices that there are.
    second_device()


@pytest.fixture(scope="session", params=["second", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "second":
        return second_device()
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions round fp32 inputs to ten bits there
    return torch.device(request.param, 0)
