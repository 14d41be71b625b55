"""What is told of a system that refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.engine.disks import files_of_at_most
from unimo_ds.utils.agreement import failing_together
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError, sentence_of
from unimo_ds.utils.running import run_command

MAKE_ROOM = "make room and give the same command again"


def no_characters() -> None:
    "é".encode("ascii")


def no_unicode() -> None:
    os.fsdecode(b"run-\xff").encode()


def no_folder() -> None:
    Path("nowhere/file").write_bytes(b"")


def no_such_name() -> None:
    Path("n" * 300).exists()


def no_room() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"1")


def no_room_by_rust() -> None:
    with files_of_at_most(100):
        safetensors.torch.save_file({"x": torch.zeros(100)}, "weights")


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (no_folder, "error: cannot use nowhere/file: No such file or directory\n"),
        (no_such_name, f"error: cannot use {'n' * 300}: File name too long\n"),
        (
            no_room,
            "error: cannot write what was made: No space left on device; make room and give the same command again\n",
        ),
        (
            no_room_by_rust,
            "error: cannot write what was made: File too large; make room and give the same command again\n",
        ),
        (no_unicode, r"error: 'run-\\udcff' is no Unicode; give it a name in UTF-8" + "\n"),
        (
            no_characters,
            "error: ascii lacks characters of what is to be written; set PYTHONUTF8=1\n",
        ),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    fail, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(fail) == 2
    assert capsys.readouterr().err == sentence
    with pytest.raises(UserError), failing_together(SingleProcess()):
        fail()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError("of no number"),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        OSError(errno.EIO, "a disk that fails", "file"),
    ],
)
def test_nothing_else_is_taken_for_bad_input(error: Exception) -> None:
    assert sentence_of(error) is None
    with pytest.raises(type(error)):
        run_command(lambda: (_ for _ in ()).throw(error))


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (
            ">/dev/full",
            2,
            "error: cannot write what was made: No space left on device; make room and give the same command again\n",
        ),
        (">&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing(redirected: str, status: int, said: str) -> None:
    command = f'"$0" -m unimo_ds plan --recipe small {redirected}'
    ended = subprocess.run(["sh", "-c", command, sys.executable], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (status, said)
