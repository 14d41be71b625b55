"""One self-contained HTML page about a run: curves, speed, restarts, machines, configuration; needs only its directory."""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from unimo_ds.utils import records, strict_json
from unimo_ds.utils.batched import batched
from unimo_ds.utils.duration import duration
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import printable

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 220, 64, 24
_MOST_POINTS = 400
_MOST_KEYS = 32
_MACHINE_HEAD = ("host", "ranks", "GPUs", "processor", "cores", "memory", "system")
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_CHARTS = (
    ("Loss", r"loss/(.+)"),
    ("Held-out loss", r"held_out/loss/(.+)"),
    ("Held-out retrieval, share found", r"held_out/retrieval/(.+/r@\d+|mean_recall)"),
    ("Held-out retrieval, median rank", r"held_out/retrieval/(.+)/median_rank"),
    ("Held-out captions above their rewrites", r"held_out/rewrites/(.+)(?<!_chance)"),
    ("Held-out accuracy", r"held_out/accuracy/(.+)"),
    ("Accuracy of the contrast in the step", r"accuracy/(.+)"),
    ("Gradient norm", r"(gradient_norm)"),
    ("Learning rate", r"(learning_rate)"),
    ("Temperature", r"(temperature)"),
    ("Tokens per second", r"speed/(tokens_per_second)"),
    ("Share of time that waits for data", r"speed/(data_wait_share)"),
    ("Own work of the slowest rank, the median rank's being 1", r"speed/(slowest_rank_ratio)"),
    ("Loss scale", r"(loss_scale)"),
)
"""Title, and a pattern for the metrics to draw: it matches the whole name, and its group is the curve's label."""
_TOLD = ("skipped", "spike", "rolled_back", "slow_rank", "stopped", records.DAMAGED)
"""Events listed on the page."""
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#1f2937}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;
border-bottom:1px solid #e5e7eb;vertical-align:top}figure{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:1rem;margin-top:2rem}
figcaption{font-weight:600}svg text{font:11px system-ui,sans-serif;fill:#4b5563}pre{background:#f3f4f6;padding:1rem;overflow:auto}
img{max-width:100%;display:block;margin:.3rem 0}
.key{display:inline-block;font-size:12px;margin-right:.8rem}"""


@dataclass(frozen=True)
class Machine(strict_json.Partial):
    """One machine of a start."""

    host: Any = ""
    ranks: Any = ""
    gpus: Sequence[str] = ()
    processor: Any = ""
    cores: Any = ""
    memory_gib: Any = ""
    system: Any = ""


@dataclass(frozen=True)
class Start(strict_json.Partial):
    """A line of starts.jsonl."""

    time: str
    host: Any = ""
    slurm_job: Any = ""
    world_size: Any = ""
    revision: Any = ""
    versions: Mapping[str, Any] = field(default_factory=dict)
    machines: Sequence[Machine] = ()

    @property
    def seconds(self) -> float:
        """Since the epoch. May raise ValueError."""
        return datetime.datetime.fromisoformat(self.time).timestamp()


@dataclass(frozen=True)
class LastSamples(strict_json.Partial):
    """Keys of rank 0's samples in the last logged step."""

    step: int = 0
    samples_of_rank_0: Sequence[str] = ()


@dataclass(frozen=True)
class RunFiles:
    """Content of a run directory. steps: lines with metrics, ascending; events: the other lines."""

    name: str
    steps: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    starts: Sequence[Start]
    config: Mapping[str, Any]
    last_samples: LastSamples
    pictures: Sequence[bytes]
    """JPEGs of the last evaluation."""


def read_run(run_dir: Path) -> RunFiles:
    """Read metrics.jsonl, starts.jsonl, config.json, last_samples.json and the pictures of a run.

    Raises:
        UserError: not a run, or one of its files is damaged.
    """
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    lines = list(records.read(run_dir / records.METRICS_FILE))
    samples = run_dir / "last_samples.json"
    return RunFiles(
        name=run_dir.name,
        steps=[line.values for line in lines if not line.event],
        events=[line.values for line in lines if line.event],
        starts=_starts(run_dir / "starts.jsonl"),
        config=strict_json.read(run_dir / "config.json", dict[str, Any]),
        last_samples=strict_json.read(samples, LastSamples) if samples.is_file() else LastSamples(),
        # A link in the run of somebody else may lead to any file, which the page would hold.
        pictures=[path.read_bytes() for path in sorted((run_dir / "pictures").glob("*.jpg")) if not path.is_symlink()],
    )


def write_page(run_dir: Path, target: Path) -> dict[str, Any]:
    """Write the page of a run to `target`. Returns its `summary` and paths.

    Raises:
        UserError: as `read_run`, or the page cannot be written.
    """
    run = read_run(run_dir)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(printable(to_html(run)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give another --html") from None
    return {"run": str(run_dir), "page": str(target), **summary(run)}


def start_steps(run: RunFiles) -> list[int]:
    """For each start, the first step logged after it; starts without a step have that of the next start."""
    found = []
    for start in run.starts:
        began = start.seconds
        later = [int(line["step"]) for line in run.steps if line["time"] >= began]
        found.append(min(later, default=int(run.steps[-1]["step"]) if run.steps else 0))
    return found


def summary(run: RunFiles) -> dict[str, Any]:
    """A run in a few numbers. training_share: fraction of the time since the first start that was between lines of one
    start; of a gap with a start in it, only the steps themselves count.
    """
    steps = run.steps
    if not steps:
        return {"steps": 0, "starts": len(run.starts)}
    begins = [start.seconds for start in run.starts]
    # Sum gaps instead of last minus first: wall clocks may be set back.
    trained = elapsed = 0.0
    for before, after in itertools.pairwise([{"step": 0, "time": min([*begins, steps[0]["time"]])}, *steps]):
        gap = max(0.0, after["time"] - before["time"])
        elapsed += gap
        if any(before["time"] <= began <= after["time"] for began in begins):
            working = 1.0 - _value(after, "speed/data_wait_share")
            seconds_per_step = _value(after, "speed/seconds_per_step") * working
            gap = min(gap, (after["step"] - before["step"]) * seconds_per_step)
        trained += gap
    saves = [event for event in run.events if event["event"] == "saved"]
    schedule = strict_json.typed(dict[str, Any], run.config.get("schedule", {}), where="config.json: schedule")
    return {
        "steps": int(steps[-1]["step"]),
        "total_steps": schedule.get("total_steps"),
        "starts": len(run.starts),
        "hours": elapsed / 3600.0,
        "training_share": trained / elapsed if elapsed > 0 else math.nan,
        "saves": len(saves),
        "save_stall_seconds": sum(_value(event, "stall_seconds") for event in saves),
        "skipped_steps": sum(event["event"] == "skipped" for event in run.events),
        "spikes": sum(event["event"] == "spike" for event in run.events),
    }


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result of `summary` or `write_page` as readable (name, value) rows."""
    return [
        ("time", duration(value / 24))
        if name == "hours"
        else (name.replace("_", " "), _number(value) if isinstance(value, float) else str(value))
        for name, value in found.items()
    ]


def to_html(run: RunFiles) -> str:
    """The page. Self-contained: no script, no picture file, no address."""
    firsts, machines = start_steps(run), _machines(run)
    marks = firsts[1:]
    charts = []
    names = sorted({name for line in run.steps for name in line})
    for title, pattern in _CHARTS:
        matches = [match for name in names if (match := re.fullmatch(pattern, name))]
        curves = {match[1]: _points(run.steps, match[0]) for match in matches}
        curves = {label: points for label, points in curves.items() if points}
        if curves:
            charts.append(_figure(title, curves, marks))
    starts = [
        (
            number,
            start.time,
            step,
            start.host,
            start.slurm_job,
            start.world_size,
            str(start.revision)[:12],
            ", ".join(f"{name} {version}" for name, version in start.versions.items()),
        )
        for number, (start, step) in enumerate(zip(run.starts, firsts, strict=True), start=1)
    ]
    notes = [(event["step"], event["event"], event.get("text", "")) for event in run.events if event["event"] in _TOLD]
    head = ("start", "time", "first step", "host", "Slurm job", "ranks", "revision", "versions")
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        _table((), facts(summary(run))),
        "<p>Dashed lines are restarts.</p>" if marks else "",
        f'<div class="charts">{"".join(charts)}</div>',
        f"<h2>Starts</h2>{_table(head, starts)}",
        f"<h2>What happened</h2>{_table(('step', 'kind', 'what'), notes)}" if notes else "",
        f"<h2>Hardware of the last start</h2>{_table(_MACHINE_HEAD, machines)}" if machines else "",
        f"<h2>Last samples</h2>{_last_samples(run)}",
        f"<h2>Configuration</h2><pre>{escape(json.dumps(run.config, indent=2))}</pre>",
    ]
    title = escape(f"run {run.name}")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>{"".join(parts)}\n'


def _machines(run: RunFiles) -> list[Sequence[object]]:
    """One row per machine of the last start."""
    return [
        (
            machine.host,
            machine.ranks,
            "; ".join(f"{count} x {name}" for name, count in Counter(machine.gpus).items()) or "none",
            machine.processor,
            machine.cores,
            f"{machine.memory_gib} GiB",
            machine.system,
        )
        for start in run.starts[-1:]
        for machine in start.machines
    ]


def _last_samples(run: RunFiles) -> str:
    """What the last evaluation retrieved, and rank 0's last samples."""
    shown = [f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(one).decode()}">' for one in run.pictures]
    parts = (
        ["<p>Held-out captions of the last evaluation, and what was retrieved for each:</p>", *shown] if shown else []
    )
    keys = run.last_samples.samples_of_rank_0
    if keys:
        more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
        told = f"Step {run.last_samples.step}, rank 0: {', '.join(keys[:_MOST_KEYS])}{more}"
        parts.append(f"<p>{escape(told)} (<code>unimo inspect sample</code> shows one)</p>")
    return "".join(parts) or "<p>none yet</p>"


def _figure(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], marks: Sequence[int]) -> str:
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1.0)
    low_y, high_y = min(ys), max(ys)
    if high_y == low_y:
        low_y, high_y = low_y - abs(low_y or 1.0) * 0.5, high_y + abs(high_y or 1.0) * 0.5

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - 8)
        down = 8 + (high_y - y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - 8)
        return f"{across:.1f},{down:.1f}"

    drawn = []
    for share in (0.0, 0.5, 1.0):
        y = low_y + share * (high_y - low_y)
        left, right = place(low_x, y), place(high_x, y)
        drawn.append(f'<polyline points="{left} {right}" stroke="#e5e7eb" fill="none"/>')
        drawn.append(
            f'<text x="{_LEFT - 6}" y="{float(left.split(",")[1]) + 4:.1f}" text-anchor="end">{_number(y)}</text>'
        )
        x = low_x + share * (high_x - low_x)
        anchor = ("start", "middle", "end")[round(2 * share)]
        at = place(x, low_y).split(",")[0]
        drawn.append(f'<text x="{at}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{x:,.0f}</text>')
    for mark in marks:
        if low_x <= mark <= high_x:
            line = f"{place(mark, low_y)} {place(mark, high_y)}"
            drawn.append(f'<polyline points="{line}" stroke="#9ca3af" stroke-dasharray="4 3" fill="none"/>')
    keys = []
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(place(x, y) for x, y in points)
        drawn.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        keys.append(f'<span class="key" style="color:{colour}">{escape(name)}</span>')
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}<br>{''.join(keys)}</figure>"


def _points(steps: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) for each step that has it; if there are too many, means of neighbours."""
    found = [(float(line["step"]), float(line[name])) for line in steps if isinstance(line.get(name), int | float)]
    group = math.ceil(len(found) / _MOST_POINTS)
    if group <= 1:
        return found
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in batched(found, group)]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _value(line: Mapping[str, Any], name: str) -> float:
    """A number of a line of metrics.jsonl; 0 if it has none of that name."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _starts(path: Path) -> list[Start]:
    """All starts, without a last line that is still being written."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
    starts = []
    for line in (one for one in lines if one.endswith("\n")):
        try:
            starts.append(strict_json.typed(Start, strict_json.parsed(line), where="a line"))
            _ = starts[-1].seconds
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); restore it") from None
    return starts
