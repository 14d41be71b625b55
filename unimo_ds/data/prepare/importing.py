"""`unimo prepare import`: makes a complete data folder from a raw corpus, or adds a source to a folder.

The corpus is planned as parts (names, captions and places, no images), tokenizer and extractor are chosen or learned, and
workers make a shard from every part. A journal keeps all of it until the folder is finished, so that the same command continues
after a kill, and does nothing once it is done.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import formats, shard_making
from unimo_ds.data.prepare.journal import (
    Journal,
    check_whole,
    import_journal,
    read_json_object,
    sweep,
    unfinished_shards,
)
from unimo_ds.data.prepare.progress import progress
from unimo_ds.data.prepare.readers.protocol import Part, Reader
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings, fingerprint, source_name
from unimo_ds.data.prepare.shard_making import Making
from unimo_ds.data.prepare.workers import Workers, one_thread
from unimo_ds.data.storage import folder as folders
from unimo_ds.data.storage import manifest, shards
from unimo_ds.data.storage.manifest import ExtractorEntry
from unimo_ds.data.tokenizer import TOKENIZER_FILE, Tokenizer
from unimo_ds.data.vision import extractors, images
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.grid import GridLearner
from unimo_ds.data.vision.region_extractor import RegionExtractor, RegionLearner
from unimo_ds.utils import seed as seeds
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import make_folder, write_whole


def run_import(settings: ImportSettings, workers: Workers) -> Report:
    """Import one corpus, finish the folder, and write `report-SOURCE.json` beside the shards.

    If already done, it returns the earlier report. If it was killed, it continues, or starts anew if the folder has got another
    tokenizer or extractor meanwhile.

    Raises:
        UserError: missing or unfit inputs, a folder with another tokenizer or extractor or with an unfinished stage, or nothing
            to import.
    """
    formats.check(settings)
    name, identity = source_name(settings), fingerprint(settings)
    settings = dataclasses.replace(settings, source=name, kind=formats.kind_of(settings))
    journal = import_journal(settings.output, name)
    if journal.begun == identity and _is_overtaken(journal, settings.output):
        journal.clear()
    is_new = journal.begun != identity
    before = finished_report(settings.output, name, identity) if is_new and not settings.replace else None
    if before is not None:
        journal.forget()
        return before
    check_whole(settings.output)
    if is_new:
        _clear(settings, name, journal)
    journal.begin(identity)
    sweep(settings.output)
    try:
        reader = formats.reader(settings)
        report, num_parts = _plan(reader, journal)
        tokenizer = _tokenizer(settings, journal, lambda: _all_texts(reader, journal, num_parts))
        extractor = None
        held = reader.held_regions
        if held is not None:
            _check_extractor(settings, held.fingerprint)
        elif settings.kind != "texts" and num_parts:
            extractor = _extractor(settings, journal, reader, num_parts)
    except UserError:
        if not shards.files_of(settings.output, name):  # otherwise an interrupted import made some; keep it
            journal.forget()
        raise
    making = Making(
        reader,
        name,
        (journal.path / TOKENIZER_FILE, tokenizer.fingerprint),
        (journal.path / EXTRACTOR_FILE, extractor.fingerprint) if extractor else None,
        settings.keep_images,
    )
    is_network = extractor is not None and extractors.is_network(journal.path)
    with workers.for_extractor(is_network=is_network) as some:
        num_samples = _make_shards(settings, making, journal, num_parts, report, some)
    if not num_samples:
        journal.forget()
        raise UserError("nothing to import: " + ("; ".join(report.lines()) or "the inputs hold none"))
    report.counts = {"samples": num_samples, **report.counts}
    tokenizer.save(settings.output)
    write_report(settings.output, name, report, made_of=identity)
    made_by = ExtractorEntry(held.fingerprint) if held else None
    if extractor is not None:
        made_by = ExtractorEntry(extractor.fingerprint, extractor.save(settings.output).name)
    folders.finish_folder(
        settings.output,
        tokenizer=tokenizer,
        extractor=made_by,
        num_region_classes=extractor.num_classes if extractor else held.num_classes if held else None,
        leave_out=unfinished_shards(settings.output, but=name),
    )
    journal.forget()
    return report


def write_report(folder: Path, name: str, report: Report, *, made_of: str) -> None:
    """Write `report-NAME.json`: counts, all skipped names, and the fingerprint of the settings."""
    content = {**vars(report), "made_of": made_of}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_whole(folder / f"report-{name}.json", f"{text}\n".encode(errors="backslashreplace"))


def finished_report(folder: Path, name: str, identity: str) -> Report | None:
    """The report of a finished import of this source with these settings, if the folder still holds all of it."""
    content = read_json_object(folder / f"report-{name}.json")
    listed = manifest.manifest_in(folder)
    if listed is None or not isinstance(content, dict) or content.get("made_of") != identity:
        return None
    present = {entry.file for entry in listed.shards if name in entry.sources}
    if not present or not all((folder / file).is_file() for file in present):
        return None
    report = Report.of(content)
    report.counts = {"already imported": 1, **report.counts}
    return report


def _clear(settings: ImportSettings, name: str, journal: Journal) -> None:
    """Remove the shards of a source that a killed import left or that are to be replaced."""
    make_folder(settings.output)
    listed = manifest.manifest_in(settings.output)
    known = {entry.file for entry in listed.shards} if listed else set()
    own = shards.files_of(settings.output, name)
    if known & {path.name for path in own}:
        if not settings.replace:
            raise UserError(
                f"{settings.output} already holds shards named {name}-*, made of other inputs or options; "
                "choose another name for this import with --source, or add --replace"
            )
        journal.clear()  # from here on the remaining shards are not an import
        manifest.forget_shards(settings.output, {path.name for path in own})
    for path in own:
        shards.index_path(path).unlink(missing_ok=True)
        path.unlink()


def _is_overtaken(journal: Journal, folder: Path) -> bool:
    """Whether the folder has got another tokenizer or extractor since this import was killed."""
    own = manifest.manifest_in(folder)
    if own is None:
        return False
    has_other_tokenizer = (journal.path / TOKENIZER_FILE).exists() and (
        tokenizers.load(journal.path).fingerprint != own.tokenizer.fingerprint
    )
    has_other_extractor = (
        own.extractor is not None
        and (journal.path / EXTRACTOR_FILE).exists()
        and extractors.load(journal.path).fingerprint != own.extractor.fingerprint
    )
    return has_other_tokenizer or has_other_extractor


def _plan(reader: Reader, journal: Journal) -> tuple[Report, int]:
    """(report of the planning, number of parts); the parts are in the journal."""
    planned = journal.read("plan.json")
    if planned is not None:
        return Report.of(planned), planned["parts"]
    report = Report()
    number = 0
    for part in progress(reader.parts(report), label="planning"):
        journal.write(_part_name(number), part)
        number += 1
    journal.write("plan.json", {"parts": number, **vars(report)})
    return report, number


def _part_name(number: int) -> str:
    return f"part-{number:06d}.json"


def _parts(journal: Journal, num_parts: int) -> Iterator[Part]:
    for number in range(num_parts):
        yield journal.read(_part_name(number))


def _all_texts(reader: Reader, journal: Journal, num_parts: int) -> Iterator[str]:
    for part in _parts(journal, num_parts):
        yield from reader.texts(part)


def _make_shards(
    settings: ImportSettings, making: Making, journal: Journal, num_parts: int, report: Report, workers: Workers
) -> int:
    """Make all missing shards, and collect the reports in the order of the parts."""
    entries = [journal.path / f"done-{number:06d}.json" for number in range(num_parts)]
    paths = [settings.output / shards.shard_name(making.source, number) for number in range(num_parts)]
    tasks = [
        (making, journal.path / _part_name(number), paths[number], entries[number])
        for number in range(num_parts)
        if not _is_done(entries[number], paths[number])
    ]
    workers.run_all(shard_making.make_shard, tasks, label=f"importing {making.source}")
    num_samples = 0
    for entry in entries:
        content = read_json_object(entry)
        if content is None:
            raise UserError(f"{entry} is gone; run the same command again")
        num_samples += content["samples"]
        report.add(Report.of(content))
    return num_samples


def _is_done(entry: Path, shard: Path) -> bool:
    content = read_json_object(entry)
    return content is not None and (not content["samples"] or shard.is_file())


def _tokenizer(settings: ImportSettings, journal: Journal, training_texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The given tokenizer, that of `--like`, the folder's own, or one trained on this import; kept in the journal."""
    if (journal.path / TOKENIZER_FILE).exists():
        return tokenizers.load(journal.path)
    own = manifest.manifest_in(settings.output)
    like = manifest.load_manifest(settings.like) if settings.like else None
    if settings.tokenizer is not None:
        chosen = tokenizers.load(settings.tokenizer)
    elif like is not None and settings.like is not None:
        chosen = tokenizers.load(settings.like / like.tokenizer.file)
    elif own is not None:
        chosen = tokenizers.load(settings.output / own.tokenizer.file)
    else:
        chosen = tokenizers.train(training_texts(), vocabulary_size=settings.vocabulary_size)
    if own is not None and own.tokenizer.fingerprint != chosen.fingerprint:
        raise UserError(
            f"{settings.output} was made with tokenizer {own.tokenizer.fingerprint}, not {chosen.fingerprint}; "
            "leave --tokenizer and --like out, or name another --output"
        )
    chosen.save(journal.path)
    return chosen


def _extractor(settings: ImportSettings, journal: Journal, reader: Reader, num_parts: int) -> RegionExtractor:
    """The given extractor, that of `--like`, the folder's own, or one learned from this import; kept in the journal."""
    if (journal.path / EXTRACTOR_FILE).exists():
        return extractors.load(journal.path)
    own = manifest.manifest_in(settings.output)
    own_entry = own.extractor if own else None
    like = manifest.load_manifest(settings.like) if settings.like else None
    given = settings.made()
    if given is None and like is not None and settings.like is not None:
        if like.extractor is None or like.extractor.file is None:
            raise UserError(f"{settings.like} has no region extractor; name one with --extractor")
        given = extractors.load(settings.like / like.extractor.file)
    elif given is None and own_entry is not None and own_entry.file is not None:
        given = extractors.load(settings.output / own_entry.file)
    given = given or GridLearner()
    if not isinstance(given, RegionLearner):
        chosen = given
    elif own_entry is None:
        chosen = one_thread(learn_extractor, given, reader, lambda: _parts(journal, num_parts), settings.seed)
    else:
        chosen = _learned_before(settings, given, own_entry)
    _check_extractor(settings, chosen.fingerprint)
    chosen.save(journal.path)
    return chosen


def _learned_before(settings: ImportSettings, learner: RegionLearner, entry: ExtractorEntry) -> RegionExtractor:
    """The folder's own extractor, if this learner made it in an earlier import; a folder has only one."""
    place = settings.output / (entry.file or EXTRACTOR_FILE)
    if extractors.makes_regions(place):
        own = extractors.load(place)
        if learner.became(own):
            return own
    raise UserError(
        f"{settings.output} was made with region extractor {entry.fingerprint}, which is not of the kind or weights that are "
        "asked for; leave --extractor out, or name another --output"
    )


def _check_extractor(settings: ImportSettings, chosen: str) -> None:
    own = manifest.manifest_in(settings.output)
    if own is not None and own.extractor is not None and own.extractor.fingerprint != chosen:
        raise UserError(
            f"{settings.output} was made with region extractor {own.extractor.fingerprint}, not {chosen}; "
            "leave --extractor and --like out, or name another --output"
        )


def learn_extractor(
    learner: RegionLearner, reader: Reader, parts: Callable[[], Iterable[Part]], seed: int
) -> RegionExtractor:
    """The extractor learned from a seeded choice of the parts' images, skipping those that cannot be decoded.

    Raises:
        UserError: none can be decoded.
    """
    total = sum(len(part["items"]) for part in parts())
    chosen = chosen_images(total, learner, seed)
    numbers = itertools.count()
    wanted = ({**part, "items": [item for item in part["items"] if next(numbers) in chosen]} for part in parts())
    records = (record for part in wanted if part["items"] for record in reader.records(part, Report()))

    def pictures() -> Iterator[Image.Image]:
        for record in progress(records, label="reading images to learn from", total=len(chosen)):
            try:
                picture = images.decode(record.image or b"", shrink_to=learner.working_side)
            except images.BadImage:
                continue  # its import reports it
            yield picture

    return learner.learn(pictures(), seed=seed)


def chosen_images(total: int, learner: RegionLearner, seed: int) -> set[int]:
    """Indices, below `total`, of the images to learn from."""
    return set(seeds.generator(seed, 0xF17).permutation(total)[: learner.num_images].tolist())
