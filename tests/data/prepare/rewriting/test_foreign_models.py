"""Folders of models that bring code: it is not run, whatever stands on the terminal's input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.prepare.rewriting.test_parsers import CAPTIONS, t5  # noqa: F401
from unimo_ds.data.prepare.rewriting.scene_graph.factual import FactualParser
from unimo_ds.data.prepare.rewriting.translation import marian
from unimo_ds.utils.errors import UserError


@pytest.mark.parametrize("load", [FactualParser, marian._load_model, marian.load_tokenizer])
def test_code_beside_a_model_is_not_run(
    load: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trace = tmp_path / "model", tmp_path / "it ran"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nfrom transformers import PretrainedConfig as Config\n")
    told = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Config", None]}}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(told))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UserError, match=r"no T5 parser in|no Marian"):
        load(folder)
    assert not trace.exists()


def test_kernels_that_a_model_names_are_not_fetched(t5: Path, tmp_path: Path) -> None:  # noqa: F811
    named = tmp_path / "named"
    shutil.copytree(t5, named)
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**config, "_attn_implementation": "somebody/kernels"}))
    assert FactualParser(named).parse(CAPTIONS) == FactualParser(t5).parse(CAPTIONS)
