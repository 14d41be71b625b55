"""The compilers of the native kernels: where they are, what they support, and their command lines."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.utils.errors import UserError

_LAST_WITH_VOLTA = "12.9"
_NEWEST_OF_VOLTA = 72


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and what it can compile for."""

    path: str
    version: str
    """Such as `12.9`."""
    architectures: tuple[str, ...]
    """Such as `sm_90`."""


def architecture_number(architecture: str) -> int:
    """90 for `sm_90`.

    Raises:
        UserError: not of that form, or older than sm_70.
    """
    matched = re.fullmatch(r"sm_(\d{2,3})", architecture)
    if matched is None:
        raise UserError(f"{architecture!r} is no architecture; write it as sm_70 (V100) or sm_90 (H100, H200)")
    number = int(matched.group(1))
    if number < 70:
        raise UserError(f"the kernels need tensor cores, sm_70 (V100) or newer, not {architecture}")
    return number


def find_nvcc(named: str | None = None) -> Nvcc:
    """`named`, else `$CUDA_HOME/bin/nvcc`, else `nvcc` on PATH, else the one in /usr/local/cuda.

    Raises:
        UserError: not found, or it does not run.
    """
    home = os.environ.get("CUDA_HOME")
    if named is not None:
        path = shutil.which(named)
        if path is None:
            raise UserError(f"there is no program {named}; give --nvcc the path of nvcc itself")
    elif home:
        path = shutil.which(str(Path(home) / "bin" / "nvcc"))
        if path is None:
            raise UserError(f"CUDA_HOME is {home}, but there is no bin/nvcc in it; correct or unset it")
    else:
        path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        if path is None:
            raise UserError(
                "there is no nvcc here: install a CUDA toolkit (12.9 or older for a V100), or name its nvcc with "
                "--nvcc or its folder with CUDA_HOME"
            )
    return _examine(path)


@functools.cache
def _examine(path: str) -> Nvcc:
    answer = _answer([path, "--version"])
    matched = re.search(r"release (\d+\.\d+)", answer)
    if matched is None:
        raise UserError(f"{path} does not answer like nvcc: {answer.strip()[-200:]!r}")
    listed = re.findall(r"compute_(\d+)", _answer([path, "--list-gpu-arch"]))
    return Nvcc(path, matched.group(1), tuple(f"sm_{number}" for number in listed))


def _answer(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]} does not run: {error}") from error
    return done.stdout + done.stderr


def require_architecture(nvcc: Nvcc, architecture: str) -> None:
    """Refuse an architecture that this compiler does not support.

    Raises:
        UserError: names a toolkit that does.
    """
    number = architecture_number(architecture)
    if architecture in nvcc.architectures:
        return
    known = f"{nvcc.architectures[0]} to {nvcc.architectures[-1]}" if nvcc.architectures else "nothing"
    cure = (
        f"CUDA {_LAST_WITH_VOLTA} is the last toolkit that does" if number <= _NEWEST_OF_VOLTA else "take a newer one"
    )
    raise UserError(
        f"nvcc {nvcc.version} ({nvcc.path}) does not compile for {architecture} (it knows {known}); {cure}: name its nvcc "
        "with --nvcc or its folder with CUDA_HOME"
    )


def cuda_command(nvcc: Nvcc, architecture: str, source: Path, target: Path) -> list[str]:
    """nvcc's command line: machine code for one architecture, the CUDA runtime linked in, a register report on stderr."""
    number = architecture_number(architecture)
    half_only = ["-DUNIMO_HALF_ONLY"] if number < 80 else []
    # sm_90a: Hopper's own instructions, which nvcc does not allow for plain sm_90.
    exact = f"{number}a" if number == 90 else str(number)
    code = f"-gencode=arch=compute_{exact},code=sm_{exact}"
    kind = ["-cubin"] if target.suffix == ".cubin" else ["-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
    return [
        nvcc.path,
        "-O3",
        "-std=c++17",
        code,
        *half_only,
        *_hopper(number),
        "-Xptxas",
        "-v",
        *kind,
        str(source),
        "-o",
        str(target),
    ]


def _hopper(number: int) -> list[str]:
    """Enables the warpgroup kernels, on the only architecture with their instructions."""
    return ["-DUNIMO_HOPPER"] if number == 90 else []


def host_command(architecture: str, source: Path, target: Path, *, sanitize: bool = False) -> list[str]:
    """The C++ compiler's command line: the same source on emulated threads, with that architecture's matrix instructions."""
    number = architecture_number(architecture)
    compiler = os.environ.get("CXX", "g++")
    family = "700" if number < 80 else "900" if number == 90 else "800"
    flags = [f"-DUNIMO_HOST={family}", *(["-DUNIMO_HALF_ONLY"] if number < 80 else []), *_hopper(number)]
    checks = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if sanitize else ["-O2"]
    kind = ["-shared", "-fPIC"] if target.suffix == ".so" else []
    language = ["-x", "c++", "-std=c++20", "-Wno-unknown-pragmas"]
    return [compiler, *language, "-march=native", *checks, *flags, *kind, str(source), "-o", str(target)]
