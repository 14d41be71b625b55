"""`unimo report`: results of fine-tunings and evaluations, collected from folders, in the paper's tables. Nothing is guessed: a
cell is filled only if one of its numbers was measured, and its files are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimo_ds.reporting.tables import TABLES, Column, Table
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

NOT_MEASURED = "–"
"""Stands for a number in a cell whose other numbers were measured."""


@dataclass(frozen=True)
class Measured:
    """One number."""

    mean: float
    """A fraction."""
    confidence_95: float | None
    seeds: int
    file: str


Results = Mapping[tuple[str, str, str], Measured]
"""(task, split, metric) -> number."""


@dataclass(frozen=True)
class Row:
    """This project's figures for one model."""

    label: str
    results: Results = field(default_factory=dict)


def read_results(folder: Path) -> dict[tuple[str, str, str], Measured]:
    """Every result below `folder`: `results.json` of `unimo finetune`, and what `unimo evaluate ... --json` wrote.

    Raises:
        UserError: no folder, no results in it, the same number from two files, or a measurement of part of a split.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give the one that holds the runs of `unimo finetune`")
    found: dict[tuple[str, str, str], Measured] = {}
    for path in sorted(path for path in folder.rglob("*.json") if not path.name.startswith(".")):  # being written
        found_here = _result(path)
        if found_here is None:
            continue
        if found_here.max_examples:
            raise UserError(
                f"{path} measures {found_here.max_examples} examples alone (--max-examples), which the tables would not show; "
                f"move it out of {folder}"
            )
        for metric, value in found_here.metrics.items():
            key = (found_here.task, found_here.split, metric)
            if key in found:
                raise UserError(
                    f"{path} and {found[key].file} both measure {key[0]} on {key[1]}; move one of them out of {folder}"
                )
            found[key] = _measured(value, len(found_here.seeds) or 1, str(path))
    if not found:
        raise UserError(
            f"{folder} holds no results; `unimo finetune` leaves its results.json when all seeds are done, `unimo evaluate` "
            "what --json names"
        )
    return found


@dataclass(frozen=True)
class _Spread(strict_json.Partial):
    """A metric over several seeds."""

    mean: float
    confidence_95: float | None


@dataclass(frozen=True)
class _Result(strict_json.Partial):
    """Fields of a result that the tables use."""

    task: str
    split: str
    metrics: Mapping[str, _Spread | float]
    max_examples: int = 0
    seeds: Sequence[Any] = ()


def _result(path: Path) -> _Result | None:
    """Content of a result file; None for other JSON files, of which runs have many.

    Raises:
        UserError: damaged, even if it may not be a result file.
    """
    cure = "restore it or move it out of the folder"
    values = strict_json.read(path, Any, cure=cure)
    if not isinstance(values, dict) or not {"task", "split", "metrics", "best_metric"} <= values.keys():
        return None
    try:
        found: _Result = strict_json.typed(_Result, values, where=str(path))
    except UserError as error:
        raise UserError(f"{error}; {cure}") from None
    return found


def _measured(value: _Spread | float, seeds: int, file: str) -> Measured:
    if isinstance(value, _Spread):
        return Measured(value.mean, value.confidence_95, seeds, file)
    return Measured(value, None, seeds, file)


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Every table with its published rows and this project's; this project's cells as numbers with their files."""
    return {
        "tables": [
            {
                "title": table.title,
                "columns": [column.title for column in table.columns],
                "published": {label: dict(zip(_titles(table), cells, strict=True)) for label, cells in table.published},
                "this_project": {
                    row.label: {column.title: _numbers(column, row.results) for column in table.columns} for row in rows
                },
            }
            for table in TABLES
        ]
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """The tables as Markdown: published rows, then this project's in bold, and the files they come from."""
    parts = [
        "# UNIMO's tables",
        "Published figures are those of the paper. Rows in bold are this project's: means over seeds, with half of the width of "
        "their 95 % confidence interval; (dev): on the development split, where the published ones are not. Empty cells were not "
        "measured.",
    ]
    for table in TABLES:
        parts.append(f"## {table.title}")
        parts.append(_table(table, rows))
    files = sorted({(row.label, number.file, number.seeds) for row in rows for number in row.results.values()})
    parts.append("## Files")
    lines = [f"- {label}: `{file}` ({seeds} seed{'s' if seeds > 1 else ''})" for label, file, seeds in files]
    parts.append("\n".join(lines) or "None: nothing was measured yet.")
    return "\n\n".join(parts) + "\n"


def _table(table: Table, rows: Sequence[Row]) -> str:
    lines = [_line(["Model", *_titles(table)]), _line(["---"] * (1 + len(table.columns)))]
    lines += [_line([label, *cells]) for label, cells in table.published]
    for row in rows:
        lines.append(_line([f"**{row.label}**", *(_cell(column, row.results) for column in table.columns)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _titles(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def _parts(column: Column, results: Results) -> tuple[tuple[str, str], ...]:
    """(split, metric) as the paper reports them; if none was measured, those of the development split."""
    if any((column.task, split, metric) in results for split, metric in column.parts):
        return column.parts
    return tuple(("dev", metric) for _, metric in column.parts)


def _numbers(column: Column, results: Results) -> list[dict[str, Any] | None]:
    found = [(split, results.get((column.task, split, metric))) for split, metric in _parts(column, results)]
    return [
        None
        if one is None
        else {
            "percent": 100 * one.mean,
            "confidence_95": None if one.confidence_95 is None else 100 * one.confidence_95,
            "seeds": one.seeds,
            "split": split,
            "file": one.file,
        }
        for split, one in found
    ]


def _cell(column: Column, results: Results) -> str:
    parts = _parts(column, results)
    found = [results.get((column.task, split, metric)) for split, metric in parts]
    mark = "" if parts == column.parts else " (dev)"
    return "/".join(map(_number, found)) + mark if any(found) else ""


def _number(one: Measured | None) -> str:
    if one is None:
        return NOT_MEASURED
    return f"{100 * one.mean:.2f}" + ("" if one.confidence_95 is None else f" ± {100 * one.confidence_95:.2f}")


def parse_row(text: str) -> Row:
    """Row from `LABEL=FOLDER` on the command line.

    Raises:
        UserError: no `=`, or as `read_results`.
    """
    label, separator, folder = text.rpartition("=")
    if not separator or not label or not folder:
        raise UserError(f"--ours {text!r} must be LABEL=FOLDER, for instance base=runs/finetune")
    return Row(label, read_results(Path(folder)))
