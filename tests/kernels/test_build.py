"""Finding nvcc, refusing the wrong one, what a build reports; and the real thing where an nvcc is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unimo_ds.ops.native import build, library, toolchain
from unimo_ds.ops.native.command import main
from unimo_ds.utils.errors import UserError

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5unimo17attention_forwardINS_4HalfELb1ELb1EEEvNS_18AttentionArgumentsE' for 'sm_90'
ptxas info    : Function properties for _ZN5unimo17attention_forwardINS_4HalfELb1ELb1EEEvNS_18AttentionArgumentsE
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size
"""


def fake_nvcc(folder: Path, version: str, architectures: list[int], body: str = "exit 1") -> Path:
    """A program that introduces itself as nvcc does."""
    listed = "\n".join(f"compute_{number}" for number in architectures)
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo "Cuda compilation tools, release {version}, V{version}.0";;\n'
        f'--list-gpu-arch) echo "{listed}";;\n*) {body};;\nesac\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UNIMO_KERNELS_DIR", str(tmp_path / "built"))


def test_without_nvcc_the_cure_is_named(no_nvcc, capsys):
    if Path("/usr/local/cuda/bin/nvcc").exists():
        assert toolchain.find_nvcc().path == "/usr/local/cuda/bin/nvcc"
        return
    assert main(["build", "--arch", "sm_90"]) == 2
    assert "install a CUDA toolkit" in capsys.readouterr().err


def test_the_wrong_nvcc_is_refused_before_anything_is_compiled(no_nvcc, tmp_path, monkeypatch, capsys):
    new = fake_nvcc(tmp_path / "cuda13", "13.0", [75, 80, 90, 100])
    assert main(["build", "--arch", "sm_70,sm_90", "--nvcc", str(new)]) == 2
    message = capsys.readouterr().err
    assert "nvcc 13.0" in message
    assert "does not compile for sm_70 (it knows sm_75 to sm_100); CUDA 12.9 is the last toolkit that does" in message
    old = fake_nvcc(tmp_path / "cuda11", "11.0", [70, 80])
    with pytest.raises(UserError, match=r"does not compile for sm_90 .* take a newer one"):
        toolchain.require_architecture(toolchain.find_nvcc(str(old)), "sm_90")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"CUDA_HOME is .*nowhere, but there is no bin/nvcc in it"):
        toolchain.find_nvcc()


@pytest.mark.parametrize(("name", "reason"), [("sm90", "write it as sm_70"), ("sm_61", "need tensor cores")])
def test_architectures_are_checked(name, reason, capsys):
    assert main(["build", "--arch", name]) == 2
    assert reason in capsys.readouterr().err


def test_a_failed_compilation_shows_the_compilers_words_and_leaves_no_library(no_nvcc, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cuda"
    fake_nvcc(folder, "12.9", [70, 90], body='echo "error: no such thing" >&2; exit 1')
    monkeypatch.setenv("CUDA_HOME", str(folder))
    assert main(["build", "--arch", "sm_90"]) == 2
    assert "error: no such thing" in capsys.readouterr().err
    assert not list((tmp_path / "built").glob("*.so"))


def test_a_build_is_kept_with_its_report_and_found_by_capability(no_nvcc, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cuda"
    log = tmp_path / "log"
    log.write_text(PTXAS)
    # The last word of nvcc's command line is the library.
    fake_nvcc(
        folder, "12.9", [70, 80], body=f'for last; do :; done; : > "$last"; while read -r l; do echo "$l"; done < {log}'
    )
    monkeypatch.setenv("CUDA_HOME", str(folder))
    assert main(["build", "--arch", "sm_80"]) == 0
    assert (
        "| sm_80 | nvcc 12.9 | attention_forward fp16 dropout shared prefixes | 168 | 20 | 16 |"
        in capsys.readouterr().out
    )
    library._built_for.cache_clear()
    assert library._built_for(86) == library._built_for(80) == build.library_path("sm_80")
    assert library._built_for(75) is None
    assert library._built_for(90) is None
    library._built_for.cache_clear()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))  # a second build takes what is there
    assert build.build("sm_80").kernels[0].registers == 168


@pytest.mark.parametrize("architecture", ["sm_70", "sm_90"])
def test_kernels_compile_with_next_to_no_spills(architecture, tmp_path):
    try:
        nvcc = toolchain.find_nvcc()
    except UserError as error:
        pytest.skip(str(error))
    if architecture not in nvcc.architectures:
        pytest.skip(f"nvcc {nvcc.version} does not know {architecture}")
    source = build.sources_folder() / "kernels.cu"
    log = build.compile_file(toolchain.cuda_command(nvcc, architecture, source, tmp_path / "kernels.cubin"))
    uses = build.parse_kernel_uses(log)
    attention = "hopper" if architecture == "sm_90" else "attention"
    expected = {f"{attention}_{part}" for part in ("forward", "backward_queries", "backward_keys")}
    expected |= {"dropout_norm_forward", "dropout_norm_backward", "contrastive_statistics", "contrastive_weights"}
    expected |= {"cross_entropy_parts", "cross_entropy_losses", "cross_entropy_slopes"}
    assert expected <= {use.kernel.split()[0] for use in uses}, log
    # 16 bytes: a loop counter or two of hopper_backward_queries, at the 128 registers that let four blocks fit. Where prefixes
    # are shared the kernels hold the code of sequences that share and of those that do not, and keep addresses for the end.
    for use in uses:
        most = 256 if "hopper" in use.kernel and "shared prefixes" in use.kernel else 16
        assert use.spilled_bytes <= most, build.table([build.Built(source, architecture, "nvcc", tuple(uses))])


@pytest.mark.parametrize("numbers", [["--cases", "0"], ["--cases", "-3"], ["--first", "-1"]])
def test_a_check_of_nothing_is_refused(numbers, capsys):
    assert main(["check", *numbers]) == 2
    assert "check nothing" in capsys.readouterr().err


def test_the_command_is_part_of_unimo():
    done = subprocess.run(
        [sys.executable, "-m", "unimo_ds", "kernels", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert "build" in done.stdout
    assert "check" in done.stdout


def test_a_build_that_fails_is_a_reason_not_an_end(monkeypatch, tmp_path):
    """What `auto` meets on a GPU without a compiler."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    monkeypatch.setenv("UNIMO_KERNELS_DIR", str(tmp_path))
    library._refusal_to_build.cache_clear()
    reason = library._refusal_to_build(80)
    assert reason is not None
    assert "could not be built" in reason
    assert "gone" in reason
    library._refusal_to_build.cache_clear()


def test_the_report_by_nvrtc_says_what_it_lacks(tmp_path):
    script = build.sources_folder() / "nvrtc_report.py"
    command = [sys.executable, script, "--packages", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no nvidia/cuda_nvrtc/lib/libnvrtc.so" in done.stderr


def test_a_library_that_others_may_have_put_there_is_not_loaded(tmp_path: Path) -> None:
    own, evil = tmp_path / "own", tmp_path / "everybodys"
    for folder, mode in ((own, 0o755), (evil, 0o777)):
        folder.mkdir()
        folder.chmod(mode)
        (folder / "sm_90-0.so").write_bytes(b"no library")
    build.require_own(own / "sm_90-0.so")
    with pytest.raises(UserError, match=r"everybody may write to it.* set UNIMO_KERNELS_DIR to a folder of your own"):
        library.load(evil / "sm_90-0.so")
    (own / "sm_90-0.so").chmod(0o666)
    with pytest.raises(UserError, match=r"sm_90-0\.so belongs to another user, or everybody may write to it"):
        library.load(own / "sm_90-0.so")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_library_of_another_user_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "sm_90-0.so"
    path.write_bytes(b"no library")
    os.chown(path, 12345, 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        library.load(path)
