"""Checkpoints under damage, kills and a full disk, on one process (groups: tests/distributed/test_checkpoint.py)."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.engine.disks import fill
from unimo_ds.config import CheckpointConfig, ModelConfig, RunConfig
from unimo_ds.engine import checkpoint, checkpoint_folder, ds_config
from unimo_ds.engine.launch import stop_processes
from unimo_ds.engine.setup import Engine, make_engine
from unimo_ds.engine.state import Best, Progress
from unimo_ds.engine.tensor_file import TensorFileWriter
from unimo_ds.utils.errors import UserError

CONFIG = RunConfig(recipe="test", checkpoint=CheckpointConfig(keep_last=2))


def make_model(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = make_engine(make_model(), CONFIG, ds_config.load("zero0_fp32", CONFIG, 1))
    yield made
    made.close()
    stop_processes()


def save(engine: Engine, run_dir: Path, step: int, config: RunConfig = CONFIG, best: Best | None = None) -> Path:
    checkpoint.Saver(engine, run_dir, config).save(Progress(step=step, best=best), wait=True)
    return run_dir / "checkpoints" / f"step-{step}"


def loaded_step(engine: Engine, run_dir: Path) -> int | None:
    loaded = checkpoint.load(engine, run_dir, CONFIG, say=lambda _: None)
    return None if loaded is None else loaded.progress.step


def test_nothing_there_is_a_fresh_start(engine: Engine, tmp_path: Path) -> None:
    assert loaded_step(engine, tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert loaded_step(engine, tmp_path) is None


def test_weights_file_is_plain_safetensors(engine: Engine, tmp_path: Path) -> None:
    folder = save(engine, tmp_path, 1)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert weights.keys() == engine.module.state_dict().keys()
    for name, tensor in engine.module.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-1\n"


def test_what_is_loaded_is_what_was_saved(engine: Engine, tmp_path: Path) -> None:
    def tensors() -> list[torch.Tensor]:
        state = engine._optimizer.state
        return [
            tensor.detach()
            for one in engine.module.parameters()
            for tensor in (one, *(state[one][slot] for slot in checkpoint_folder.MOMENTS))
        ]

    for number, tensor in enumerate(tensors()):
        tensor.fill_(number + 0.5)
    engine.set_applied_steps(7)
    save(engine, tmp_path, 1)
    for tensor in tensors():
        tensor.zero_()
    engine.set_applied_steps(0)
    assert loaded_step(engine, tmp_path) == 1
    assert engine.applied_steps == 7
    for number, tensor in enumerate(tensors()):
        assert (tensor == number + 0.5).all()


@pytest.mark.parametrize("pointer", ["absent", "empty", "to nowhere"])
def test_latest_is_no_single_point_of_failure(engine: Engine, tmp_path: Path, pointer: str) -> None:
    save(engine, tmp_path, 1)
    save(engine, tmp_path, 2)
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink()
    if pointer != "absent":
        latest.write_text("" if pointer == "empty" else "step-77\n")
    assert loaded_step(engine, tmp_path) == 2
    assert latest.read_text() == "step-2\n"


@pytest.mark.parametrize("name", ["model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_falls_back_to_the_one_before(engine: Engine, tmp_path: Path, name: str, damage: str) -> None:
    save(engine, tmp_path, 1)
    path = save(engine, tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[random.Random(name).randrange(len(content))] ^= 16
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    said: list[str] = []
    loaded = checkpoint.load(engine, tmp_path, CONFIG, say=said.append)
    assert loaded is not None
    assert loaded.progress.step == 1
    assert name in said[0]


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        '{"format": 1, "files": {}}',
        '{"format": 9, "files": {}}',
        '{"format": 1, "files": {"state.json": null}}',
    ],
)
def test_all_damaged_is_never_a_fresh_start(engine: Engine, tmp_path: Path, manifest: str) -> None:
    folder = save(engine, tmp_path, 1)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"no checkpoint .* is good"):
        loaded_step(engine, tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="there is no checkpoint beside it"):
        loaded_step(engine, tmp_path)


@pytest.mark.parametrize("change", ["progress of later", "no optimizer", "no JSON", "pointer of bytes"])
def test_what_another_version_wrote_is_named(engine: Engine, tmp_path: Path, change: str) -> None:
    """Its hashes are good. Other ranks wait for the verdict, so that no error may pass by them."""
    folder = save(engine, tmp_path, 1)
    values = json.loads((folder / "state.json").read_text())
    if change == "pointer of bytes":  # is mended
        (tmp_path / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
        assert loaded_step(engine, tmp_path) == 1
        return
    values["progress"]["new"] = 1
    if change == "no optimizer":
        del values["optimizer"]
    write_state(folder, "{" if change == "no JSON" else json.dumps(values))
    with pytest.raises(UserError, match="of another version"):
        loaded_step(engine, tmp_path)


def write_state(folder: Path, content: str) -> None:
    """Into a checkpoint whose hashes stay good."""
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "state.json").write_text(content)
    entries["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": checkpoint_folder.FORMAT, "files": entries}))
    assert checkpoint_folder.problems_of(folder) == []


def test_a_checkpoint_of_code_that_knew_fewer_settings_is_one_where_they_are_off(
    engine: Engine, tmp_path: Path
) -> None:
    folder = save(engine, tmp_path, 1)
    values = json.loads((folder / "state.json").read_text())
    del values["model"]["region_tag_sizes"]
    write_state(folder, json.dumps(values))
    assert loaded_step(engine, tmp_path) == 1
    other = dataclasses.replace(CONFIG, model=ModelConfig(region_tag_sizes=(4,)))
    with pytest.raises(UserError, match=r"model\.region_tag_sizes is None in it and \[4\] in this run"):
        checkpoint.load(engine, tmp_path, other)


def test_another_model_is_refused(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 1)
    other = dataclasses.replace(CONFIG, model=ModelConfig(num_layers=3))
    with pytest.raises(UserError, match=r"model\.num_layers is 12 in it and 3 in this run"):
        checkpoint.load(engine, tmp_path, other)
    wider = make_engine(make_model(7), CONFIG, ds_config.load("zero0_fp32", CONFIG, 1))
    with pytest.raises(UserError, match=r"'0\.bias' is \(6,\) in it and \(7,\)"):
        checkpoint.load(wider, tmp_path, CONFIG)
    wider.close()


def test_pruning_keeps_the_last_the_regular_and_the_best(engine: Engine, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, checkpoint=CheckpointConfig(keep_last=2, keep_every=4))
    for step in range(1, 10):
        best = Best("recall", 0.5, 3) if step >= 3 else None
        save(engine, tmp_path, step, config, best)
    assert checkpoint_folder.completed_steps(tmp_path) == [3, 4, 8, 9]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-3\n"
    assert not list((tmp_path / "checkpoints").glob(".[a-z]*-step-*"))


def test_saving_the_same_step_again_replaces_it(engine: Engine, tmp_path: Path) -> None:
    folder = save(engine, tmp_path, 1)
    (folder / "model.safetensors").write_bytes(b"spoilt")
    save(engine, tmp_path, 1)
    assert checkpoint_folder.problems_of(folder) == []
    # What a kill between the two renames leaves: the old one under another name.
    folder.rename(folder.with_name(".old-step-1"))
    assert loaded_step(engine, tmp_path) == 1


def test_checkpoints_that_are_gone_are_no_fresh_start(engine: Engine, tmp_path: Path) -> None:
    """On a disk that is not mounted, say. A start without any is one until the first was saved."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "event": "spike"}\n')
    assert loaded_step(engine, tmp_path) is None
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 5, "event": "saved"}\n')
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not_mounted")
    with pytest.raises(UserError, match="checkpoints has lost the checkpoint of step 5; restore it"):
        loaded_step(engine, tmp_path)
    (tmp_path / "checkpoints").unlink()
    save(engine, tmp_path, 5)
    assert loaded_step(engine, tmp_path) == 5


def test_a_place_that_takes_no_checkpoint_is_refused_before_training(engine: Engine, tmp_path: Path) -> None:
    saver = checkpoint.Saver(engine, tmp_path, CONFIG)
    saver.check_room()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match=r"cannot make \S+: Not a directory; free space or give another --run-dir"):
        saver.check_room()


def test_a_disk_that_is_too_small_is_refused_before_training(engine: Engine, small_disk: Path) -> None:
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 2**16)  # room for a folder alone
    with pytest.raises(UserError, match=r"no room for a checkpoint in .* bytes are free"):
        checkpoint.Saver(engine, small_disk, CONFIG).check_room()


def test_no_room_is_told_before_writing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(engine, tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=1234))
        with pytest.raises(checkpoint.CheckpointError, match=r"1,234 bytes are free and [\d,]+ are needed"):
            save(engine, tmp_path, 2)
    assert loaded_step(engine, tmp_path) == 1


def settled(engine: Engine, run_dir: Path, step: int, saver: checkpoint.Saver | None = None) -> checkpoint.Saved:
    saver = saver or checkpoint.Saver(engine, run_dir, CONFIG)
    saver.save(Progress(step=step), wait=False)
    saver.settle()
    saved = saver.take_saved()
    assert saved is not None
    return saved


def test_in_the_background_the_same_bytes_are_written(engine: Engine, tmp_path: Path) -> None:
    saved = settled(engine, tmp_path / "one", 4)
    waited = save(engine, tmp_path / "two", 4)
    assert saved.folder == tmp_path / "one" / "checkpoints" / "step-4"
    names = sorted(item.name for item in waited.iterdir())
    assert names == sorted(item.name for item in saved.folder.iterdir())
    for name in names:
        assert (saved.folder / name).read_bytes() == (waited / name).read_bytes()
    assert checkpoint_folder.problems_of(saved.folder) == []


def test_training_that_goes_on_does_not_change_what_is_being_saved(engine: Engine, tmp_path: Path) -> None:
    """The writer is held up by a pipe in place of a file, while the weights change."""
    before = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    saver = checkpoint.Saver(engine, tmp_path, CONFIG)
    make_folder = checkpoint_folder.begin

    def begin_with_pipe(*arguments: object) -> Path:
        folder = make_folder(*arguments)  # type: ignore[arg-type]
        os.mkfifo(folder / "model.safetensors")
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_folder, "begin", begin_with_pipe)
        saver.save(Progress(step=1), wait=False)
    assert saver.take_saved() is None
    with pytest.raises(AssertionError, match="the save before"):
        saver.save(Progress(step=2), wait=False)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.add_(1.0)
    (content,) = [(tmp_path / "checkpoints" / ".tmp-step-1" / "model.safetensors").read_bytes()]
    with pytest.raises(checkpoint.CheckpointError, match="cannot write"):  # a pipe cannot be synchronised to disk
        saver.settle()
    weights = safetensors.torch.load(content)
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert not (tmp_path / "checkpoints" / ".tmp-step-1").exists()
    settled(engine, tmp_path, 2, saver)
    assert loaded_step(engine, tmp_path) == 2
    weights = safetensors.torch.load_file(tmp_path / "checkpoints" / "step-2" / "model.safetensors")
    assert torch.equal(weights["0.weight"], before["0.weight"] + 1.0)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    engine: Engine, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room when the save begins; then somebody else takes it."""
    save(engine, small_disk, 1)
    make_folder = checkpoint_folder.begin
    fillers: list[Path] = []

    def begin_then_fill(*items: object) -> Path:
        made = make_folder(*items)  # type: ignore[arg-type]
        fillers.append(fill(small_disk))
        return made

    for in_background in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_folder, "begin", begin_then_fill)
            saver = checkpoint.Saver(engine, small_disk, CONFIG)
            if in_background:
                saver.save(Progress(step=2), wait=False)
            with pytest.raises(checkpoint.CheckpointError, match=r"No space left .* [\d,]+ bytes are free and"):
                saver.settle() if in_background else saver.save(Progress(step=2), wait=True)
        assert sorted(item.name for item in (small_disk / "checkpoints").iterdir()) == ["latest", "step-1"]
        assert loaded_step(engine, small_disk) == 1
        fillers.pop().unlink()
    save(engine, small_disk, 3)
    assert loaded_step(engine, small_disk) == 3


def test_old_checkpoints_that_cannot_be_looked_through_cast_no_doubt_on_the_new_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run_dir: Path) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle", run_dir)

    monkeypatch.setattr(checkpoint_folder, "completed_steps", refuse)
    save(engine, tmp_path, 1)
    assert settled(engine, tmp_path, 2).step == 2
    assert loaded_step(engine, tmp_path) == 2


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_directory_that_vanishes_while_a_checkpoint_is_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """The save fails with a sentence on all ranks; the next one makes the folder again."""
    run_dir = tmp_path / "run"
    saver = checkpoint.Saver(engine, run_dir, CONFIG)
    make_folder = checkpoint_folder.begin

    def begin_then_vanish(*items: object) -> Path:
        made = make_folder(*items)  # type: ignore[arg-type]
        shutil.rmtree(run_dir)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "begin", begin_then_vanish)
        if in_background:
            saver.save(Progress(step=1), wait=False)
        with pytest.raises(checkpoint.CheckpointError, match="checkpoints is gone"):
            saver.settle() if in_background else saver.save(Progress(step=1), wait=True)
    settled(engine, run_dir, 2, saver)
    assert loaded_step(engine, run_dir) == 2


def in_child(work: object) -> int:
    """Run `work()` in a forked process; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(9)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_write_that_fails_half_way_leaves_the_previous_one(
    engine: Engine, tmp_path: Path, in_background: bool
) -> None:
    save(engine, tmp_path, 1)

    def fail() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        try:
            if in_background:
                settled(engine, tmp_path, 2)
            else:
                save(engine, tmp_path, 2)
        except checkpoint.CheckpointError as error:
            os._exit(3 if "bytes are free" in str(error) and "intact" in str(error) else 4)

    _, status = os.waitpid(in_child(fail), 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-1"]
    assert loaded_step(engine, tmp_path) == 1


@pytest.mark.parametrize("in_background", [False, True])
def test_killed_at_any_moment_of_saving_a_whole_checkpoint_remains(
    engine: Engine, tmp_path: Path, in_background: bool
) -> None:
    """R4: fifty kills each; each restart finds a complete checkpoint, and at most the one being written is lost."""
    first = 1
    save(engine, tmp_path, first)
    delays = random.Random(0)
    durations = []  # of a save, fork included: kills are spread over several of them however busy the machine is
    for _ in range(5):
        before = time.monotonic()
        os.waitpid(in_child(lambda: save(engine, tmp_path, 2)), 0)
        durations.append(time.monotonic() - before)
    typical = sorted(durations)[2]
    kinds = set()
    for _ in range(50):
        start = loaded_step(engine, tmp_path)
        assert start is not None
        assert start >= first
        first = start

        def save_on_and_on(start: int = start) -> None:
            saver = checkpoint.Saver(engine, tmp_path, CONFIG)
            for step in range(start + 1, start + 1000):
                saver.save(Progress(step=step), wait=not in_background)
                saver.settle()
                (tmp_path / "announced").write_text(str(step))

        child = in_child(save_on_and_on)
        time.sleep(delays.uniform(0.1, 1.6) * typical)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kinds |= {item.name.split("-")[0] for item in (tmp_path / "checkpoints").iterdir()}
        announced = (tmp_path / "announced").read_text() if (tmp_path / "announced").exists() else ""
        newest = checkpoint_folder.completed_steps(tmp_path)[-1]
        assert newest >= int(announced or 1)
        assert checkpoint_folder.problems_of(tmp_path / "checkpoints" / f"step-{newest}") == []
    assert ".tmp" in kinds, "no kill hit a save"
    assert first > 5, "hardly any save came to its end"


def test_tensor_file_refuses_the_wrong_tensor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was expected"), TensorFileWriter(tmp_path / "a", {"x": (2,)}) as writer:
        writer.write("y", torch.zeros(2))
    with pytest.raises(ValueError, match="ends before x"), TensorFileWriter(tmp_path / "b", {"x": (2,)}):
        pass


def test_pruning_keeps_the_best_that_was_saved_not_the_best_that_failed(engine: Engine, tmp_path: Path) -> None:
    config = RunConfig(recipe="test", checkpoint=CheckpointConfig(keep_last=1))
    save(engine, tmp_path, 1, config, Best("recall", 0.5, 1))
    save(engine, tmp_path, 3, config, Best("recall", 0.6, 2))  # step 2 was better, but could not be written
    assert checkpoint_folder.completed_steps(tmp_path) == [1, 3]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-1\n"
