"""Building the native kernels: one library per architecture, named by a hash of its sources, built once, under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from unimo_ds.ops.native import toolchain
from unimo_ds.utils.errors import UserError

_CHECKOUT = Path(__file__).parents[3]
_TIMEOUT = 1800
_FLAGS = {
    "attention": ("dropout", "shared prefixes"),
    "hopper": ("dropout", "shared prefixes"),
    "dropout_norm": ("dropout",),
    "contrastive_pair_gradients": ("to fp32", "few scores a row"),
    "contrastive": ("both directions",),
    "cross_entropy_parts": ("smoothing or correctness",),
}
"""Prefix of names of kernels with flags -> what each flag turns on."""


@dataclass(frozen=True)
class KernelUse:
    """Resources of one kernel, as ptxas reports them."""

    kernel: str
    registers: int
    """Per thread."""
    spilled_bytes: int
    """Stored to and loaded from local memory per thread."""
    stack_bytes: int


@dataclass(frozen=True)
class Built:
    """One library and how it was built."""

    path: Path
    architecture: str
    compiler: str
    kernels: tuple[KernelUse, ...]


def sources_folder() -> Path:
    """`kernels/` of this checkout.

    Raises:
        UserError: the package was installed without it.
    """
    folder = _CHECKOUT / "kernels"
    if not (folder / "kernels.cu").is_file():
        raise UserError(f"the kernels' sources are not at {folder}; work from a checkout of the project")
    return folder


def libraries_folder() -> Path:
    """Folder of the libraries: `$UNIMO_KERNELS_DIR`, or `build/kernels` of the checkout."""
    named = os.environ.get("UNIMO_KERNELS_DIR")
    return Path(named) if named else _CHECKOUT / "build" / "kernels"


def sources_hash() -> str:
    """Of every source's name and content; 12 hexadecimal digits."""
    folder = sources_folder()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".cu", ".cuh", ".h", ".cpp"):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def library_path(target: str) -> Path:
    """Path of the library of a target (`sm_90`, `host_sm_80`) built from the current sources."""
    return libraries_folder() / f"{target}-{sources_hash()}.so"


def require_own(path: Path) -> None:
    """Refuse a file that somebody else may have put there, before it is run.

    Raises:
        UserError: it or its folder belongs to neither this user, root nor the owner of this code, or everybody may write to it.
    """
    trusted = {os.geteuid(), 0, Path(__file__).stat().st_uid}
    for place in (path.parent, path):
        status = place.stat()
        if status.st_uid not in trusted or status.st_mode & stat.S_IWOTH:
            raise UserError(
                f"{place} belongs to another user, or everybody may write to it, and what it holds would be run; set "
                "UNIMO_KERNELS_DIR to a folder of your own"
            )


def build(architecture: str, *, nvcc: str | None = None) -> Built:
    """Compile for one architecture, unless built already.

    Raises:
        UserError: no nvcc, one that does not support the architecture, or a failed compilation.
    """
    toolchain.architecture_number(architecture)
    target = library_path(architecture)
    with _locked(target):
        notes = target.with_suffix(".json")
        if not (target.exists() and notes.exists()):
            compiler = toolchain.find_nvcc(nvcc)
            toolchain.require_architecture(compiler, architecture)
            aside = target.with_suffix(f".{os.getpid()}.so")
            source = sources_folder() / "kernels.cu"
            log = compile_file(toolchain.cuda_command(compiler, architecture, source, aside))
            uses = [asdict(use) for use in parse_kernel_uses(log)]
            notes.write_text(json.dumps({"compiler": f"nvcc {compiler.version}", "kernels": uses}, indent=1))
            aside.replace(target)
        return read_built(architecture, target)


def build_host(architecture: str) -> Path:
    """The library that runs the same sources on the CPU."""
    source = sources_folder() / "kernels.cu"
    return _made(
        library_path(f"host_{architecture}"), lambda aside: toolchain.host_command(architecture, source, aside)
    )


def build_check(name: str, architecture: str, *, sanitize: bool) -> Path:
    """The program that compares a kernel on the CPU with fp64 on random cases: `kernels/NAME/host_check.cpp`."""
    kind = "sanitized" if sanitize else "plain"
    source = sources_folder() / name / "host_check.cpp"
    return _made(
        library_path(f"check_{name}_{kind}_{architecture}").with_suffix(".exe"),
        lambda aside: toolchain.host_command(architecture, source, aside, sanitize=sanitize),
    )


def _made(target: Path, command: Callable[[Path], Sequence[str]]) -> Path:
    """`target`, compiled unless it is there. command: that compiles into a path."""
    with _locked(target):
        if not target.exists():
            aside = target.with_suffix(f".{os.getpid()}{target.suffix}")
            compile_file(command(aside))
            aside.replace(target)
    return target


def read_built(architecture: str, path: Path) -> Built:
    """A library with the notes stored beside it."""
    notes = json.loads(path.with_suffix(".json").read_text())
    return Built(path, architecture, notes["compiler"], tuple(KernelUse(**use) for use in notes["kernels"]))


def compile_file(command: Sequence[str]) -> str:
    """Run a compiler. Returns its output.

    Raises:
        UserError: it failed; the message has the first lines of its output.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise UserError(f"there is no compiler {command[0]}; install it, or name another one with CXX") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} took longer than {_TIMEOUT} s") from error
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise UserError("\n".join([f"{' '.join(command)} failed:", *lines[:20]]))
    return done.stdout + done.stderr


def parse_kernel_uses(log: str) -> list[KernelUse]:
    """Kernels in the output of a compilation with `-Xptxas -v`, by name."""
    uses = []
    for part in re.split(r"Compiling entry function ", log)[1:]:
        mangled = re.match(r"'(\w+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if mangled and registers and memory:
            stack, stores, loads = (int(number) for number in memory.groups())
            uses.append(KernelUse(readable_name(mangled.group(1)), int(registers.group(1)), stores + loads, stack))
    return sorted(uses, key=lambda use: use.kernel)


def readable_name(mangled: str) -> str:
    """For example `attention_forward fp16 dropout` from the mangled `unimo::attention_forward<Half, true, false>`."""
    matched = re.match(r"_ZN5unimo(\d+)", mangled)
    if matched is None:
        return mangled
    size = int(matched.group(1))
    name, rest = mangled[matched.end() : matched.end() + size], mangled[matched.end() + size :]
    formats = {"4Half": " fp16", "8BFloat16": " bf16"}
    name += next((word for tag, word in formats.items() if tag in rest), "")
    width = re.search(r"Li(\d+)E", rest)
    name += f" to {256 * int(width.group(1))} columns" if name.startswith("dropout_norm") and width else ""
    meanings = next((words for start, words in _FLAGS.items() if name.startswith(start)), ())
    flags = re.findall(r"Lb([01])E", rest)
    return " ".join([name, *(word for word, flag in zip(meanings, flags, strict=False) if flag == "1")])


def table(built: Iterable[Built]) -> str:
    """Registers and spills of libraries, as a Markdown table."""
    lines = [
        "| architecture | compiler | kernel | registers | spilled bytes | stack bytes |",
        "|---|---|---|---|---|---|",
    ]
    for library in built:
        lines += [
            f"| {library.architecture} | {library.compiler} | {use.kernel} | {use.registers} | {use.spilled_bytes} | "
            f"{use.stack_bytes} |"
            for use in library.kernels
        ]
    return "\n".join(lines)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process builds; others on this machine wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
