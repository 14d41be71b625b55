"""`unimo prepare pack`: rebuilds a folder's indices and manifest."""

from __future__ import annotations

from pathlib import Path

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare.journal import begun_stages, check_whole
from unimo_ds.data.storage import folder as folders
from unimo_ds.data.storage import manifest
from unimo_ds.data.storage.manifest import ExtractorEntry, Manifest
from unimo_ds.data.tokenizer import TOKENIZER_FILE
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE


def pack_folder(folder: Path, *, tokenizer_path: Path | None = None) -> Manifest:
    """Rebuild all indices and the manifest, accepting shards as they are, unless a killed stage left them so.

    tokenizer_path: a tokenizer to replace the folder's own; None: keep it.

    Raises:
        UserError: no shards, no tokenizer, a shard that cannot be read, or an unfinished stage that has rewritten some.
    """
    if begun_stages(folder):
        check_whole(folder)
    before = manifest.manifest_in(folder)
    if tokenizer_path is not None:
        tokenizer = tokenizers.load(tokenizer_path)
        tokenizer.save(folder)
    else:
        tokenizer = tokenizers.load(folder / (before.tokenizer.file if before else TOKENIZER_FILE))
    # A folder whose import was killed has the extractor's file but no manifest with an entry for it.
    entry, num_classes = (before.extractor, before.num_region_classes) if before else (None, None)
    if before is None and (folder / EXTRACTOR_FILE).exists():
        extractor = extractors.load(folder)
        entry, num_classes = ExtractorEntry(extractor.fingerprint, EXTRACTOR_FILE), extractor.num_classes
    return folders.finish_folder(
        folder, tokenizer=tokenizer, extractor=entry, num_region_classes=num_classes, reindex=True
    )
