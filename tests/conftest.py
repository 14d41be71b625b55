"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """A file's tests leave no variables to the next file's: who starts a process group in the test process (MASTER_PORT, RANK,
    WORLD_SIZE) would give its place in it to all that others launch."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
