"""The page of a run, made from files such as the trainer writes."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unimo_ds import cli, inspection
from unimo_ds.run_page import read_run, start_steps, summary, to_html, write_page
from unimo_ds.utils.errors import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Ten steps of a second each from 00:01:00 on; after step 6 a minute is lost to a restart."""
    folder = tmp_path / "run <1>"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"recipe": "test", "schedule": {"total_steps": 12}}))
    begun = 1_800_000_000.0
    lines: list[dict[str, object]] = []
    for step in range(1, 11):
        at = begun + step + (60.0 if step > 6 else 0.0)
        loss = None if step == 3 else 10.0 - step
        lines.append({"step": step, "time": at, "loss/total": loss, "gradient_norm": 2.0, "learning_rate": 0.1 * step})
    lines.insert(6, {"step": 6, "event": "saved", "stall_seconds": 0.25, "write_seconds": 1.0})
    lines.insert(3, {"step": 3, "event": "skipped", "text": "loss scale <4>", "samples_by_rank": [["a"]]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 11')
    (folder / "last_samples.json").write_text(
        json.dumps({"step": 10, "samples_of_rank_0": [f"a:{n}" for n in range(40)]})
    )
    (folder / "pictures").mkdir()
    (folder / "pictures" / "0.jpg").write_bytes(b"jpeg")
    starts = [
        {"time": "2027-01-15T08:00:00+0000", "world_size": 2, "host": "n1", "versions": {"torch": "2.13.0"}},
        {"time": "2027-01-15T09:01:04+0100", "world_size": 1, "host": "n2", "slurm_job": "7", "revision": "abc"},
    ]
    starts[1]["machines"] = [{"host": "n2", "ranks": 1, "gpus": ["V100, 32 GiB"] * 8, "cores": 40, "memory_gib": 500.0}]
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    return folder


def test_summary(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert start_steps(run) == [1, 7]
    found = summary(run)
    assert (found["steps"], found["total_steps"], found["starts"]) == (10, 12, 2)
    assert (found["saves"], found["save_stall_seconds"], found["skipped_steps"]) == (1, 0.25, 1)
    assert found["hours"] == pytest.approx(70 / 3600)
    assert found["training_share"] == pytest.approx(8 / 70)
    # Steps after a start train too: here the first of each takes a second, a quarter of which waits for data.
    speeds = {"speed/seconds_per_step": 1.0, "speed/data_wait_share": 0.25}
    timed = dataclasses.replace(run, steps=[{**line, **speeds} for line in run.steps])
    assert summary(timed)["training_share"] == pytest.approx((8 + 2 * 0.75) / 70)


def test_pictures_of_another_place_are_not_taken(run_dir: Path) -> None:
    (run_dir / "secret").write_bytes(b"a key")
    (run_dir / "pictures" / "1.jpg").symlink_to(run_dir / "secret")
    assert read_run(run_dir).pictures == [b"jpeg"]


class Outline(HTMLParser):
    """Which elements a page has, and whether any of them asks for something outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [name for name, value in attrs if name in ("src", "href") and "data:" not in (value or "")]


def test_page_is_whole_and_self_contained(run_dir: Path) -> None:
    page = to_html(read_run(run_dir))
    outline = Outline(page)
    assert outline.tags.count("svg") == 3
    assert outline.outside == []
    assert "script" not in outline.tags
    assert "run &lt;1&gt;" in page
    assert "loss scale &lt;4&gt;" in page
    assert page.count("stroke-dasharray") == 3, "a restart in each chart"
    assert "<td>n2</td><td>7</td>" in page
    assert "8 x V100, 32 GiB" in page
    assert outline.tags.count("img") == 1
    assert "Step 10, rank 0: a:0, a:1" in page
    assert "and 8 more" in page


def test_command(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run_dir / "pages" / "page.html"
    assert cli.main(["inspect", str(run_dir), "--html", str(target)]) == 0
    assert target.read_text().startswith("<!doctype html>")
    assert "<td>time</td><td>70 s</td>" in target.read_text()
    assert "time: 70 s\ntraining share: 0.114\n" in capsys.readouterr().out


def test_not_a_run_and_a_damaged_one(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_page(tmp_path, tmp_path / "page.html")
    for content in (b"{\n", b"\xff\xfe\n", b"[]\n"):
        for name in ("starts.jsonl", "config.json"):
            before = (run_dir / name).read_bytes()
            (run_dir / name).write_bytes(content)
            with pytest.raises(UserError, match=rf"{name} .*; restore it"):
                write_page(run_dir, tmp_path / "page.html")
            (run_dir / name).write_bytes(before)
        steps = (run_dir / "metrics.jsonl").read_bytes()
        (run_dir / "metrics.jsonl").write_bytes(content + steps)
        assert write_page(run_dir, tmp_path / "page.html")["steps"] == 10
        assert (
            "<td>damaged</td><td>a line of metrics.jsonl that cannot be read</td>"
            in (tmp_path / "page.html").read_text()
        )
        (run_dir / "metrics.jsonl").write_bytes(steps + content)
        assert inspection.inspect_path(run_dir)["metrics"]["step"] == 10
    (run_dir / "metrics.jsonl").unlink()
    assert write_page(run_dir, tmp_path / "page.html")["steps"] == 0
    with pytest.raises(UserError, match="cannot write"):
        write_page(run_dir, run_dir / "config.json" / "page.html")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("starts.jsonl", {"time": "2027-01-15T08:00:00+0000", "versions": []}, r"a line: versions has \[\]"),
        ("starts.jsonl", {"time": "2027-01-15T08:00:00+0000", "machines": [3]}, r"a line: machines\[0\] has 3"),
        ("starts.jsonl", {"time": "yesterday"}, "Invalid isoformat string"),
        ("last_samples.json", {"step": 3, "samples_of_rank_0": 7}, "samples_of_rank_0 has 7"),
        ("config.json", {"schedule": 3}, "config.json: schedule has 3 where an object belongs"),
    ],
)
def test_what_is_no_text_or_table_is_said(run_dir: Path, tmp_path: Path, name: str, content: object, said: str) -> None:
    (run_dir / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=said):
        write_page(run_dir, tmp_path / "page.html")


def test_what_is_no_number_counts_nothing(run_dir: Path, tmp_path: Path) -> None:
    with (run_dir / "metrics.jsonl").open("w") as lines:
        lines.write(json.dumps({"step": 1, "time": 1.8e9, "speed/data_wait_share": "much"}) + "\n")
        lines.write(json.dumps({"step": 1, "event": "saved", "stall_seconds": [1]}) + "\n")
    assert write_page(run_dir, tmp_path / "page.html")["save_stall_seconds"] == 0
