"""A stage over a data folder: rewrites its shards one by one, can be killed at any moment and continued, and is not repeated.

A finished stage leaves a mark in a hidden file beside the shards: the stage, its options, and the folder's fingerprint at that
time. Any later change to a shard invalidates the mark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare.journal import (
    Journal,
    begun_stages,
    changed_shard,
    check_whole,
    read_json_object,
    sweep,
    unfinished_shards,
    write_json,
)
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import folder as folders
from unimo_ds.data.storage import index, manifest
from unimo_ds.data.storage.begun_imports import JOURNALS
from unimo_ds.data.storage.shards import StoredSample

_MARKS = "done.json"

Transform = Callable[[int, StoredSample], StoredSample]
"""Of a sample and its number in the shard, its replacement."""
Changing = Callable[[Any, Path, Report], Transform]


class Stage:
    """One stage of a folder, with its options and its journal."""

    def __init__(self, folder: Path, name: str, options: Any) -> None:
        """
        options: everything that determines the stage's result, as a JSON value.

        Raises:
            UserError: not a data folder, or damaged.
        """
        self.folder, self.name, self.options = folder, name, options
        self.listed = manifest.load_manifest(folder)
        self.journal = Journal(folder, name)
        self.fingerprint = identity([options, self.listed.fingerprint])
        """Of the work: the options, and the folder's fingerprint before it."""
        self.tokenizer = folder / self.listed.tokenizer.file

    def begin(self) -> bool:
        """Start or continue the stage. False: nothing to do, the folder is unchanged since this stage finished.

        Raises:
            UserError: another stage in this folder is unfinished.
        """
        sweep(self.folder)
        begun = begun_stages(self.folder)
        is_under_way = self.name in begun  # perhaps with other options; the manifest lacks the shards it has rewritten
        if is_done(self.folder, self.name, self.options) and not (is_under_way and changed_shard(self.folder)):
            self.journal.forget()
            return False
        if not is_under_way:  # otherwise this stage changed shards, and will rewrite them all
            check_whole(self.folder)
            for other in begun:  # it changed no shard; with two unfinished, it would be unclear whose shards are new
                Journal(self.folder, other).forget()
        self.journal.begin(self.fingerprint)
        return True

    def shards(self, *kinds: str) -> list[str]:
        """Names of the shards with samples of any of these kinds."""
        return [entry.file for entry in self.listed.shards if any(entry.kinds.get(kind) for kind in kinds)]

    def each_shard(
        self,
        changing: Changing,
        work: Any,
        names: Sequence[str],
        workers: Workers,
        *,
        label: str,
    ) -> Report:
        """Rewrite every shard without an entry. Returns the reports of all entries.

        changing: a module's function; of (`work`, path of a shard, report to fill in) it makes the shard's `Transform`.
        """
        entries = [self.journal.path / f"done-{name}.json" for name in names]
        tasks = [
            (changing, work, self.folder / name, self.tokenizer, entry)
            for name, entry in zip(names, entries, strict=True)
            if read_json_object(entry) is None
        ]
        workers.run_all(_change_shard, tasks, label=label)
        report = Report()
        for entry in entries:
            report.add(Report.of(read_json_object(entry)))
        return report

    def finish(self, **changes: Any) -> None:
        """Rewrite the manifest (changes: see `finish_folder`) and leave the mark."""
        tokenizer = tokenizers.load(self.tokenizer)
        unfinished = unfinished_shards(self.folder)
        folders.finish_folder(
            self.folder, tokenizer=tokenizer, tokenizer_file=self.tokenizer.name, leave_out=unfinished, **changes
        )
        mark_done(self.folder, self.name, self.options)
        self.journal.forget()


def _change_shard(changing: Changing, work: Any, path: Path, tokenizer: Path, entry: Path) -> None:
    """Rewrite and index a shard, then write its report as the entry that marks it as done."""
    report = Report()
    index.rewrite(path, changing(work, path, report), tokenizers.load(tokenizer))
    write_json(entry, vars(report))


def identity(options: Any) -> str:
    """16 hexadecimal digits over options, a JSON value."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_done(folder: Path, stage: str, options: Any) -> bool:
    """Whether the folder is unchanged since this stage finished with these options."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark == [identity(options), manifest.load_manifest(folder).fingerprint]


def was_done(folder: Path, stage: str) -> bool:
    """Whether the folder is unchanged since this stage finished, with any options."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark[1] == manifest.load_manifest(folder).fingerprint


def mark_done(folder: Path, stage: str, options: Any) -> None:
    """Record that the stage has just finished."""
    (folder / JOURNALS).mkdir(exist_ok=True)
    mark = [identity(options), manifest.load_manifest(folder).fingerprint]
    write_json(folder / JOURNALS / _MARKS, {**_marks(folder), stage: mark})


def _marks(folder: Path) -> dict[str, list[str]]:
    content = read_json_object(folder / JOURNALS / _MARKS)
    return content if isinstance(content, dict) else {}
