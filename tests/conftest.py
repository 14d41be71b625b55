"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that others share. All else is as Hypothesis has it, here or in CI.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m gpu` runs what needs a GPU; everything else runs on CPUs, on machines with GPUs too.

    Before torch looks for GPUs, and for the processes that tests start: two ranks on the one GPU of a workstation are refused.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once; equal bits in two runs need it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    of_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if not of_gpus:  # torch takes seconds to import
        return
    import torch

    if not torch.cuda.is_available():
        for item in of_gpus:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and `pytest -m gpu`"))


@pytest.fixture(scope="module", autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """A file's tests leave no variables to the next file's: who starts a process group in the test process (MASTER_PORT, RANK,
    WORLD_SIZE) would give its place in it to all that others launch."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
