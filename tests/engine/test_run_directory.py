"""A run directory takes the configuration that made it, and says what differs from another."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.disks import fill
from unimo_ds.config import OptimizerConfig, RunConfig, ScheduleConfig
from unimo_ds.engine import run_directory
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.records import METRICS_FILE


def prepare(folder: Path, config: RunConfig, *, data: str = "aaaa") -> None:
    config = dataclasses.replace(config, run_dir=str(folder))
    run_directory.prepare(
        config, {"bf16": {"enabled": True}}, data_fingerprint=data, communicator=SingleProcess(), command=["t"]
    )


def prepare_and_begin(folder: Path, config: RunConfig, *, data: str = "aaaa") -> None:
    """A start that came to its first numbers."""
    prepare(folder, config, data=data)
    (folder / METRICS_FILE).write_text('{"step": 0}\n')


def test_first_start_writes_everything_and_the_second_adds_to_the_history(tmp_path: Path) -> None:
    config = RunConfig(recipe="test")
    prepare(tmp_path / "run", config)
    prepare(tmp_path / "run", config)
    folder = tmp_path / "run"
    assert json.loads((folder / "config.json").read_text())["model"]["hidden_size"] == 768
    assert json.loads((folder / "deepspeed.json").read_text()) == {"bf16": {"enabled": True}}
    assert json.loads((folder / "environment.json").read_text())["versions"]["deepspeed"] == "0.19.8"
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert [start["command"] for start in starts] == [["t"], ["t"]]


def test_secrets_in_addresses_and_arguments_are_not_kept(tmp_path: Path) -> None:
    """Neither in any file of the run, and the same address again continues it."""
    config = apply_overrides(RunConfig(recipe="test"), ["data.path=s3://user:hunter2@bucket/train"])
    config = dataclasses.replace(config, run_dir=str(tmp_path))
    command = ["--data", config.data.path, "--set=x.api_key=hunter2"]
    for _ in range(2):
        run_directory.prepare(config, {}, data_fingerprint="a", communicator=SingleProcess(), command=command)
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert any("s3://***@bucket/train" in text for text in written)
    assert not any("hunter2" in text for text in written)


def test_a_run_goes_on_where_the_code_has_learned_what_is_off(tmp_path: Path) -> None:
    off, on = (apply_overrides(RunConfig(recipe="test"), [f"losses.contrastive={weight}"]) for weight in (0, 1))
    prepare_and_begin(tmp_path, off)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["losses"]["contrastive"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"losses.contrastive \(None there, 1.0 now\)"):
        prepare(tmp_path, on)
    prepare(tmp_path, off)
    assert json.loads((tmp_path / "config.json").read_text())["losses"]["contrastive"] == 0


def test_a_setting_that_was_not_known_is_the_same_where_it_is_off() -> None:
    off, on = ({"schedule.decay_share": share} for share in (ScheduleConfig().decay_share, 0.3))
    assert not run_directory.differs({}, off, "schedule.decay_share")
    assert run_directory.differs({}, on, "schedule.decay_share")
    assert run_directory.differs(off, on, "schedule.decay_share")


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "model.hidden_size=384",
        "batch.global_samples=7",
        "contrast.form=one_log",
        "data.max_regions=3",
        "data.folder_weights=1,2",
    ],
)
def test_another_run_is_refused_by_name(tmp_path: Path, change: str) -> None:
    config = RunConfig(recipe="test")
    prepare_and_begin(tmp_path, config)
    with pytest.raises(UserError, match=change.partition("=")[0]):
        prepare(tmp_path, apply_overrides(config, [change]))


@pytest.mark.parametrize(
    "change",
    [
        "schedule.total_steps=9",
        "logging.every_steps=3",
        "evaluation.every_steps=0",
        "engine.deepspeed_config=zero3_fp32",
        "batch.micro_batch_tokens=99",
        "data.num_workers=5",
        "data.path=elsewhere",
        "checkpoint.keep_last=1",
    ],
)
def test_length_logging_and_engine_may_differ(tmp_path: Path, change: str) -> None:
    config = RunConfig(recipe="test")
    prepare_and_begin(tmp_path, config)
    prepare(tmp_path, apply_overrides(config, [change]))


@pytest.mark.parametrize("left", [METRICS_FILE, "checkpoints/step-3/state.json"])
def test_other_settings_take_the_place_of_a_start_of_which_nothing_came(tmp_path: Path, left: str) -> None:
    """One that its optimizer refused, say; but neither of a run that has numbers or checkpoints, nor of what is no run."""
    config = RunConfig(recipe="test")
    changed = apply_overrides(config, ["optimizer.name=apex_adam"])
    prepare(tmp_path, changed, data="bbbb")
    (tmp_path / METRICS_FILE).touch()
    prepare(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["name"] == "adamw"
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("{}\n")
    with pytest.raises(UserError, match=r"optimizer\.name"):
        prepare(tmp_path, changed)
    other = tmp_path / "exported"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "unimo_ds"}')
    with pytest.raises(UserError, match="differs in"):
        prepare(other, config)


def test_a_run_whose_configuration_is_gone_does_not_go_on_with_any(tmp_path: Path) -> None:
    prepare_and_begin(tmp_path, RunConfig(recipe="test"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"holds a run whose config\.json is gone; restore it or give another --run-dir"
    ):
        prepare(tmp_path, RunConfig(recipe="test", seed=1))


def test_other_data_is_refused(tmp_path: Path) -> None:
    prepare_and_begin(tmp_path, RunConfig(recipe="test"), data="aaaa")
    with pytest.raises(UserError, match=r"other data than data\.path='' \(data\.path='' there\)"):
        prepare(tmp_path, RunConfig(recipe="test"), data="bbbb")


@pytest.mark.parametrize("said", ["its command or code", "data.path='here'", "data.held_out_path=None"])
def test_ranks_that_differ_among_themselves_are_refused(tmp_path: Path, said: str) -> None:
    """Copies of the data or the code on disks of nodes, one of them stale."""

    class Two(SingleProcess):
        world_size = 2

        def all_gather_object(self, value: Any) -> list[Any]:
            if isinstance(value, tuple) and isinstance(value[1], dict):
                machine, equal = value
                return [value, ({**machine, "host": "other"}, {**equal, said: "stale"})]
            return [value, value]

    config = apply_overrides(RunConfig(recipe="test", run_dir=str(tmp_path / "run")), ["data.path=here"])
    with pytest.raises(UserError, match=f"rank 1 on other differs from rank 0 in {re.escape(said)};"):
        run_directory.prepare(config, {}, data_fingerprint="aaaa", communicator=Two(), command=["t"])
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_and_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare(tmp_path / "file" / "run", RunConfig(recipe="test"))
    prepare_and_begin(tmp_path, RunConfig(recipe="test"))
    for content in ("{", "[]", "null"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json .*; restore it or give another --run-dir"):
            prepare(tmp_path, RunConfig(recipe="test"))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is a data folder"):
        prepare(tmp_path, RunConfig(recipe="test"))


def test_what_made_the_data_is_learned_by_runs_of_older_versions(tmp_path: Path) -> None:
    config = RunConfig(recipe="test")
    prepare(tmp_path, config)
    known = dataclasses.replace(config, data=dataclasses.replace(config.data, made_with={"extractor": "1" * 16}))
    prepare(tmp_path, known)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["made_with"] == {"extractor": "1" * 16}


def test_a_key_that_one_side_lacks_counts_as_different() -> None:
    before = dataclasses.asdict(RunConfig(recipe="test"))
    after = {key: value for key, value in before.items() if key != "seed"}
    assert run_directory.differing_keys(before, after) == ["seed"]
    assert run_directory.differing_keys(before, before) == []


@pytest.mark.parametrize(
    ("before", "after", "differing"),
    [
        ({}, {"image_transformer": 0.0}, ["image_transformer"]),
        ({"layers.0": 0.5}, {"layers.0": 0.5, "layers.1": 0.0}, ["layers.1"]),
        ({"layers.0": 0.0}, {}, ["layers.0"]),
        ({"layers.0": 0.5}, {"layers.0": 0.25}, ["layers.0"]),
        ({"layers.0": 0.5}, {"layers.0": 0.5}, []),
    ],
)
def test_a_run_goes_on_with_its_own_rate_factors_alone(before, after, differing) -> None:
    """A factor of 0 is not the same as none."""
    one, other = (
        dataclasses.asdict(RunConfig(recipe="test", optimizer=OptimizerConfig(rate_factors=factors)))
        for factors in (before, after)
    )
    assert run_directory.differing_keys(one, other) == [f"optimizer.rate_factors.{part}" for part in differing]
    if not before:
        del one["optimizer"]["rate_factors"]  # as of a run from before
        assert run_directory.differing_keys(one, other) == [f"optimizer.rate_factors.{part}" for part in differing]


def test_a_full_disk_is_no_reason_for_another_directory(small_disk: Path) -> None:
    config = RunConfig(recipe="test")
    prepare(small_disk / "run", config)
    fill(small_disk)
    with pytest.raises(UserError, match="No space left on device; make room and give the same command again"):
        prepare(small_disk / "run", config)
