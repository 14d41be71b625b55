"""Any number of workers makes the same bytes, and a stage that is killed goes on to the same bytes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.prepare.foreign import write_samples
from tests.data.prepare.raw import captions, picture, small_extractor
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.corpus_plan import read_plan
from unimo_ds.data.prepare.settings import PhraseSettings, RewriteSettings
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.utils.errors import UserError

NUM_TARS = 5


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tars of four samples, five text files, an extractor, and corpus.toml over all of it."""
    folder = tmp_path_factory.mktemp("raw")
    small_extractor(folder)
    (folder / "tars").mkdir()
    for number in range(NUM_TARS):
        samples = {}
        for i in range(4 * number, 4 * number + 4):
            jpeg = encode_jpeg(picture(i))
            samples[f"{i:09d}"] = {"jpg": jpeg if i != 7 else jpeg[:300], "txt": captions(i)[0].encode()}
        write_samples(folder / "tars" / f"{number:05d}.tar", samples)
        lines = [f"{captions(i)[1]} , file {number} ." for i in range(12)]
        (folder / f"lines{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "corpus.toml").write_text(
        """
        output = "OUTPUT"
        extractor = "extractor.safetensors"
        vocabulary_size = 300
        keep_images = true
        [[import]]
        format = "webdataset"
        input = "tars"
        source = "pairs"
        [[import]]
        kind = "images"
        format = "webdataset"
        input = "tars"
        source = "pictures"
        [[import]]
        kind = "texts"
        input = ["lines0.txt", "lines1.txt", "lines2.txt", "lines3.txt", "lines4.txt"]
        source = "lines"
        [rewrite]
        negatives = 2
        [retrieve]
        number = 3
        """,
        encoding="utf-8",
    )
    return folder


def command(raw: Path, output: Path, *options: str) -> list[str]:
    """`unimo prepare all` into a folder of its own."""
    config = raw / f"{output.name}.toml"
    config.write_text(
        (raw / "corpus.toml").read_text(encoding="utf-8").replace("OUTPUT", str(output)), encoding="utf-8"
    )
    return ["all", "--config", str(config), *options]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Shards and their indices."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".npz")}


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one process makes without disturbance."""
    output = tmp_path_factory.mktemp("data") / "whole"
    assert main(command(raw, output, "--workers", "1")) == 0
    return output


def test_a_finished_folder_is_left_alone(raw: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(whole) == []
    manifest = load_manifest(whole)
    assert manifest.totals == {"pair": 19, "image": 19, "text": 60}
    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert main(command(raw, whole)) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == times
    assert main(["retrieve", str(whole), "--number", "3", "--workers", "1"]) == 0
    assert "already retrieved" in capsys.readouterr().out
    # Another plan must not be taken for this one.
    config = raw / f"{whole.name}.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("number = 3", "number = 2"), encoding="utf-8")
    assert main(["all", "--config", str(config)]) == 2
    assert "is a data folder already" in capsys.readouterr().err


def run_and_kill(arguments: Sequence[str], output: Path, *, after: int) -> bool:
    """Run the command in a process of its own, and kill it for good at its `after`th change of the folder. False: it ended."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(list(arguments)))
    seen: set[tuple[str, int]] = set()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        # Folders and files come and go meanwhile; os.walk takes no offence.
        for folder, _, files in os.walk(output):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    seen.add((name, os.stat(os.path.join(folder, name)).st_mtime_ns))
        if len(seen) >= after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.005)


def test_killed_at_many_moments_and_continued(raw: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    arguments = command(raw, output, "--workers", "1")
    kills = 0
    # Every run sees the files of the one before, so the moments lie ever later: planning, shards, rewriting, retrieval.
    for after in range(4, 400, 14):
        if not run_and_kill(arguments, output, after=after):
            break
        kills += 1
    else:
        assert main(arguments) == 0
    assert kills >= 5
    assert shard_bytes(output) == shard_bytes(whole)
    assert verify(output) == []
    assert not list(output.glob("**/*.partial"))


def test_a_kill_within_retrieval_leaves_the_rest_to_do(raw: Path, whole: Path, tmp_path: Path) -> None:
    """In-place stages: shards are replaced one by one, and the manifest last."""
    output = tmp_path / "again"
    shutil.copytree(whole, output)
    arguments = ["retrieve", str(output), "--number", "2", "--workers", "1"]
    assert run_and_kill(arguments, output, after=len(list(output.rglob("*"))) + 30)
    assert (output / ".prepare" / "retrieve").is_dir()
    assert main(arguments) == 0
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(whole, undisturbed)
    assert main(["retrieve", str(undisturbed), "--number", "2", "--workers", "1"]) == 0
    assert shard_bytes(output) == shard_bytes(undisturbed)
    assert shard_bytes(output) != shard_bytes(whole)
    assert verify(output) == []


def test_worker_processes_make_the_same_bytes(raw: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    assert main(command(raw, output, "--workers", "2")) == 0
    assert shard_bytes(output) == shard_bytes(whole)
    reports = sorted(path.name for path in whole.glob("report-*.json"))
    assert len(reports) == 3
    for name in reports:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), "its time is no part of the tokenizer"


def test_a_plan_holds_every_setting_of_the_rewrites(tmp_path: Path) -> None:
    """Paths are relative to the file; what is not said is as the command has it."""
    (tmp_path / "corpus.toml").write_text(
        """
        output = "data"
        seed = 5
        [[import]]
        kind = "texts"
        input = "a.txt"
        [phrases]
        parser = "spacy"
        parser_path = "pipeline"
        [rewrite]
        translator = "marian"
        to_pivot = ["en-de", "en-fr"]
        from_pivot = ["de-en", "fr-en"]
        back_translations = 2
        """,
        encoding="utf-8",
    )
    plan = read_plan(tmp_path / "corpus.toml")
    assert plan.phrases == PhraseSettings("spacy", tmp_path / "pipeline")
    assert plan.rewrite == RewriteSettings(
        translator="marian",
        to_pivot=(tmp_path / "en-de", tmp_path / "en-fr"),
        from_pivot=(tmp_path / "de-en", tmp_path / "fr-en"),
        back_translations=2,
        seed=5,
    )
    (tmp_path / "less.toml").write_text("output = 'x'\nphrases = false\nrewrite = false\n[[import]]\nkind = 'texts'\n")
    less = read_plan(tmp_path / "less.toml")
    assert less.phrases is less.rewrite is None
    (tmp_path / "far.toml").write_text("output = 'x'\n[[import]]\nkind = 'texts'\ninput = ['a', 'https://h/b.txt']\n")
    with pytest.raises(UserError, match=r"^https://h/b\.txt is a URL where a path on this machine belongs"):
        read_plan(tmp_path / "far.toml")


def test_ranks_of_an_mpi_job_make_the_same_bytes(raw: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "ranks"
    pytest.importorskip("mpi4py")
    launcher = Path(sys.executable).with_name("mpirun")
    if not launcher.exists():
        pytest.skip("no mpirun beside this Python")
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = [str(launcher), "--oversubscribe", "-n", "2", sys.executable, "-m", "unimo_ds", "prepare"]
    done = subprocess.run(
        [*words, *command(raw, output), "--executor", "mpi"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert shard_bytes(output) == shard_bytes(whole)


def test_options_of_workers(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(raw, tmp_path / "a", "--workers", "0")) == 2
    assert "--workers 0 must be at least 1" in capsys.readouterr().err
    assert main(command(raw, tmp_path / "a", "--executor", "mpi", "--workers", "2")) == 2
    assert "the launcher's number of ranks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("outputs = 'x'\n[[import]]\nkind = 'texts'", "unknown key 'outputs'; did you mean 'output'"),
        ("output = 'x'\n[[import]]\nkind = 'text'", "kind is 'text', not one of pairs, texts, images"),
        ("output = 'x'\n[[import]]\nformat = 5", "format has an ill-typed value 5"),
        ("output = 'x'\n[[import]]\nseed = 5", "unknown key 'seed'"),
        (f"output = 'x'\nseed = {2**63}\n[[import]]\nkind = 'texts'", f"seed has an ill-typed value {2**63}"),
        ("output = 'x'", "has no [[import]]"),
        ("output = ", "cannot read --config"),
        ("output = 'x'\nretrieve = 5\n[[import]]\nkind = 'texts'", "either a table of options or false"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[retrieve]\nnumbers = 5", "unknown key 'numbers'"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'lost.txt'", "does not exist"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\n[rewrite]\ntranslater = 'marian'", "did you mean 'translator'"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\n[rewrite]\ntranslator = 'babel'", "'babel', not one of marian"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[rewrite]\ntranslator = 'marian'", "at least one"),
        (
            "output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[rewrite]\nnegatives = -1",
            "--negatives -1 must be from 0 to 10000",
        ),
        (
            "output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[rewrite]\nlearn_from = 'lost'",
            "no data folder at",
        ),
        (
            "output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[phrases]\nparser = 'spacy'\nparser_path = 'lost'",
            "lost does not exist",
        ),
        ("output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[retrieve]\nnumber = 'x'", "ill-typed value 'x'"),
        ("output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[retrieve]\nnumber = 0", "--number 0 must be at"),
        (
            "output = 'x'\n[[import]]\nkind = 'texts'\ninput = 'a.txt'\n[phrases]\nparser = 'factual'",
            "needs --parser-path",
        ),
    ],
)
def test_wrong_plans_are_one_sentence(line: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("a dog\n", encoding="utf-8")
    (tmp_path / "corpus.toml").write_text(line, encoding="utf-8")
    assert main(["all", "--config", str(tmp_path / "corpus.toml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    # It is said before anything is made.
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("option", ["--extractor=grid", "--keep-images", "--texts=a.txt", "--output=x"])
def test_what_a_plan_would_ignore_is_refused(option: str, tmp_path: Path, capsys) -> None:
    assert main(["all", "--config", str(tmp_path / "corpus.toml"), option]) == 2
    assert f"--config says everything; leave {option.partition('=')[0]} out" in capsys.readouterr().err


def test_a_refused_plan_leaves_nothing(raw: Path, tmp_path: Path, capsys) -> None:
    """What the inputs hold is known only once it is read."""
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    plan = f"output = '{tmp_path / 'data'}'\n[[import]]\nkind = 'texts'\ninput = 'empty.txt'\n"
    (tmp_path / "corpus.toml").write_text(plan, encoding="utf-8")
    for _ in range(2):
        assert main(["all", "--config", str(tmp_path / "corpus.toml")]) == 2
        assert "nothing to import" in capsys.readouterr().err
        assert not (tmp_path / "data").exists()
