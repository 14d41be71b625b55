"""Imports go downward only, DeepSpeed has one importer, and nothing dangerous is called."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unimo_ds"
LEAVES = {"config", "overrides", "finetune_config", "utils"}
MAY_IMPORT = {
    "utils": {"utils"},
    "config": {"finetune_config", "utils"},
    "overrides": {"config", "utils"},
    "finetune_config": {"utils"},
    "config_check": LEAVES,
    "recipes": LEAVES | {"recipes"},
    "data": LEAVES | {"data"},
    "ops": LEAVES | {"ops", "data.schema"},
    "models": LEAVES | {"models", "ops", "data.schema"},
    "losses": LEAVES | {"losses", "ops", "data.schema"},
    "tasks": LEAVES | {"tasks", "losses", "models", "data.schema"},
    "engine": LEAVES | {"engine", "tasks", "losses", "models", "ops.native.library", "data.schema"},
    "generation": LEAVES | {"generation", "models", "ops", "data"},
    "huggingface": LEAVES | {"huggingface", "generation", "models", "ops", "data"},
    "evaluation": LEAVES
    | {"evaluation", "config_check", "huggingface", "engine", "tasks", "losses", "models", "data", "ops"},
    "finetune": LEAVES
    | {"finetune", "generation", "evaluation", "engine", "tasks", "losses", "models", "data", "ops", "config_check"}
    | {"planning.host"},
    "reporting": {"reporting", "utils"},
    "preflight": LEAVES | {"preflight", "data.storage.manifest", "data.storage.open_folder"},
    "export": LEAVES | {"export", "huggingface", "finetune", "evaluation", "models", "data"},
    "serving": LEAVES | {"serving", "export", "generation", "huggingface", "finetune", "evaluation", "models", "data"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> list[str]:
    """Full names of everything a file imports, function bodies included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path):
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported_modules(path):
        if name.split(".")[0] == "deepspeed":
            assert layer in ("engine", "doctor"), f"{path}: only engine/ imports deepspeed"
        if layer not in MAY_IMPORT or not name.startswith("unimo_ds."):
            continue
        target = name.removeprefix("unimo_ds.")
        assert any(target == allowed or target.startswith(f"{allowed}.") for allowed in MAY_IMPORT[layer]), (
            f"{path}: {layer} may not import {target}"
        )


def test_no_file_imports_itself_by_way_of_others():
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    imports = {}
    for name, path in paths.items():
        found = imported_modules(path)
        imports[name] = {one if one in paths else one.rpartition(".")[0] for one in found} & paths.keys()
    graphlib.TopologicalSorter(imports).prepare()  # names the circle


@pytest.mark.parametrize("path", sorted((PACKAGE / "data/storage").glob("*.py")), ids=lambda path: path.name)
def test_storage_knows_nothing_of_preparation(path: Path):
    assert not [name for name in imported_modules(path) if name.startswith("unimo_ds.data.prepare")]


@pytest.mark.parametrize("path", sorted((PACKAGE / "data/vision").rglob("*.py")), ids=lambda path: path.name)
def test_vision_knows_nothing_of_shards(path: Path):
    assert not [
        name for name in imported_modules(path) if name.startswith(("unimo_ds.data.storage", "unimo_ds.data.prepare"))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_dangerous_is_called(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        where = f"{path}:{node.lineno}"
        assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), where
        if name == "torch.load":
            assert any(keyword.arg == "weights_only" and keyword.value.value is True for keyword in node.keywords), (
                where
            )
        assert not name.endswith(".extractall"), where
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", None)
            assert not (keyword.arg == "allow_pickle" and value is True), where
            assert not (keyword.arg == "shell" and value is True), where
