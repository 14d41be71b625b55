"""What `pip install .` puts elsewhere is whole: commands find what they read beside the code, far from any checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as site-packages has it, from a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("unimo_ds", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    make = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_a_recipe_is_planned_far_from_the_checkout(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "unimo_ds", "plan", "--recipe", "base_32xv100"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zero" in done.stdout.lower()


def test_every_file_beside_the_code_is_there(installed):
    beside = {
        path.relative_to(ROOT)
        for path in (ROOT / "unimo_ds").rglob("*")
        if path.is_file() and path.suffix in (".json", ".html", ".gz")
    } | {Path("unimo_ds/ds_configs") / path.name for path in (ROOT / "ds_configs").glob("*.json")}
    assert len(beside) > 14
    assert [str(path) for path in sorted(beside) if not (installed / path).is_file()] == []
