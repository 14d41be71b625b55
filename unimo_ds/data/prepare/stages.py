"""A stage over a data folder: shard after shard written anew, killed at any moment and continued, and not done twice.

What a finished stage leaves is a mark in a hidden file beside the shards: the stage with its options, and the fingerprint that
the folder had then. Whatever changes a shard afterwards makes the mark void.
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
    report_of,
    sweep,
    unfinished_shards,
    write_json,
)
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import folder as folders
from unimo_ds.data.storage import manifest
from unimo_ds.data.storage.begun_imports import JOURNALS

_MARKS = "done.json"


class Stage:
    """One stage of a folder, with its options and its journal."""

    def __init__(self, folder: Path, name: str, options: Any) -> None:
        """
        options: all that decides what the stage makes of the folder; a value that JSON can hold.

        Raises:
            UserError: not a data folder, or a damaged one.
        """
        self.folder, self.name, self.options = folder, name, options
        self.listed = manifest.load_manifest(folder)
        self.journal = Journal(folder, name)
        self.fingerprint = identity([options, self.listed.fingerprint])
        """Of the work: options and what the folder was before."""
        self.tokenizer = folder / self.listed.tokenizer.file

    def begin(self) -> bool:
        """Begin, or go on with what was begun. False: there is nothing to do, the folder is as this stage left it.

        Raises:
            UserError: another stage was begun there and not finished.
        """
        sweep(self.folder)
        begun = begun_stages(self.folder)
        is_under_way = (
            self.name in begun
        )  # perhaps with other options: the shards it has made, the manifest does not know
        if is_done(self.folder, self.name, self.options) and not (is_under_way and changed_shard(self.folder)):
            self.journal.forget()
            return False
        if not is_under_way:  # else it is this stage that changed them, and all that it changes it makes anew
            check_whole(self.folder)
            for other in begun:  # it has changed nothing; whoever finds two begun could not tell whose work is there
                Journal(self.folder, other).forget()
        self.journal.begin(self.fingerprint)
        return True

    def shards(self, *kinds: str) -> list[str]:
        """Names of the shards that hold samples of any of these kinds."""
        return [entry.file for entry in self.listed.shards if any(entry.kinds.get(kind) for kind in kinds)]

    def each_shard(
        self,
        function: Callable[[Any, str, Path], None],
        work: Any,
        names: Sequence[str],
        workers: Workers,
        *,
        label: str,
    ) -> Report:
        """`function(work, name of the shard, entry)` for every shard that has no entry yet. Returns what all entries report.

        The function writes the shard anew, indexes it, and then writes its report as the entry.
        """
        entries = [self.journal.path / f"done-{name}.json" for name in names]
        tasks = [
            (work, name, entry) for name, entry in zip(names, entries, strict=True) if read_json_object(entry) is None
        ]
        for _ in workers.run(function, tasks, label=label, unit="shards"):
            pass
        report = Report()
        for entry in entries:
            report.add(report_of(read_json_object(entry)))
        return report

    def finish(self, **changes: Any) -> None:
        """Write the manifest anew (changes: see `finish_folder`) and leave the mark."""
        tokenizer = tokenizers.load(self.tokenizer)
        unfinished = unfinished_shards(self.folder)
        folders.finish_folder(
            self.folder, tokenizer=tokenizer, tokenizer_file=self.tokenizer.name, leave_out=unfinished, **changes
        )
        mark_done(self.folder, self.name, self.options)
        self.journal.forget()


def identity(options: Any) -> str:
    """16 hexadecimal digits over options that JSON can hold."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_done(folder: Path, stage: str, options: Any) -> bool:
    """Whether the folder is as this stage, with these options, left it."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark == [identity(options), manifest.load_manifest(folder).fingerprint]


def was_done(folder: Path, stage: str) -> bool:
    """Whether the folder is as this stage left it, whatever its options were."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark[1] == manifest.load_manifest(folder).fingerprint


def mark_done(folder: Path, stage: str, options: Any) -> None:
    """Record that the stage has just been finished."""
    (folder / JOURNALS).mkdir(exist_ok=True)
    mark = [identity(options), manifest.load_manifest(folder).fingerprint]
    write_json(folder / JOURNALS / _MARKS, {**_marks(folder), stage: mark})


def _marks(folder: Path) -> dict[str, list[str]]:
    content = read_json_object(folder / JOURNALS / _MARKS)
    return content if isinstance(content, dict) else {}
