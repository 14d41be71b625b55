"""What is made of a module's `run`, a fixture of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from unimo_ds.export.folder import export
from unimo_ds.huggingface.processing import UnimoProcessor


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "exported"
    export(run, folder)
    return folder


@pytest.fixture(scope="module")
def processor(exported: Path) -> UnimoProcessor:
    return transformers.AutoProcessor.from_pretrained(exported)
