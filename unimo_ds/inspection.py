"""`unimo inspect PATH`: a readable summary of a data folder, a shard, a run or a checkpoint. Data may be at a URL."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from unimo_ds.data.storage.manifest import MANIFEST_FILE, Manifest, load_manifest
from unimo_ds.data.storage.open_folder import load_manifest_at
from unimo_ds.data.storage.remote_files import RemoteFiles, scheme_of
from unimo_ds.data.storage.retrying import Retries
from unimo_ds.data.storage.shards import SHARD_SUFFIX, StoredSample, open_shard, read_samples
from unimo_ds.engine import checkpoint_folder
from unimo_ds.utils import locations, records, strict_json
from unimo_ds.utils.errors import UserError

_LONGEST_TEXT = 110
_SHOWN_METRICS = 14
_MIB = 2**20


def inspect_path(location: str | os.PathLike[str], *, num_samples: int = 3) -> dict[str, Any]:
    """Summary of `location` as plain values. `what` is shard, data folder, run, or checkpoint.

    num_samples: number of samples shown in full, from the shard, or from the folder's shard with the most pairs.

    Raises:
        UserError: it does not exist, is none of these, or is damaged.
    """
    place = locations.plain(os.fspath(location))
    path = Path(place)
    if path.is_file() and path.suffix == SHARD_SUFFIX:
        return _inspect_shard(place, open_shard(path), num_samples)
    if not path.is_dir():
        if scheme_of(place) is not None:
            return _inspect_url(place, num_samples)
        raise UserError(
            f"nothing to inspect at {path}; give a shard (.tar), a data folder, a run directory or a checkpoint"
        )
    if (path / "state.json").is_file():
        return inspect_checkpoint(path)
    if (path / "checkpoints").is_dir() or (path / records.METRICS_FILE).is_file():
        return inspect_run(path)
    if inside := sorted(
        str(found.parent) for name in ("checkpoints", "state.json") for found in path.glob(f"*/{name}")
    ):
        raise UserError(f"{path} is no run or checkpoint itself; name one of those in it: {', '.join(inside)}")
    # Without a manifest, its error says what the folder holds instead.
    if any(any(path.glob(pattern)) for pattern in (MANIFEST_FILE, "*.tar", f"*/{MANIFEST_FILE}", ".prepare")):
        return _inspect_folder(place, load_manifest(path), lambda name: open_shard(path / name), num_samples)
    raise UserError(
        f"{path} is not a data folder (no {MANIFEST_FILE}), a run (no checkpoints/) or a checkpoint (no state.json)"
    )


def _inspect_url(url: str, num_samples: int) -> dict[str, Any]:
    if url.endswith(SHARD_SUFFIX):
        folder, _, name = url.rpartition("/")
        return _inspect_shard(url, RemoteFiles(folder).open(name), num_samples)
    files = RemoteFiles(url)
    return _inspect_folder(url, load_manifest_at(files, Retries()), files.open, num_samples)


def _inspect_shard(location: str, stream: BinaryIO, num_samples: int) -> dict[str, Any]:
    """Counts over the whole shard, and its first samples."""
    counts: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    with stream:
        for stored in read_samples(stream, location, pixels=False):
            counts[stored.sample.kind.name.lower()] += 1
            sources[stored.sample.source] += 1
            if len(shown) < num_samples:
                shown.append(_describe(stored))
        size = stream.tell()
    return {
        "what": "shard",
        "path": location,
        "bytes": size,
        "samples": sum(counts.values()),
        "kinds": dict(counts),
        "sources": dict(sources),
        "first_samples": shown,
    }


def _inspect_folder(
    location: str, manifest: Manifest, open_file: Callable[[str], BinaryIO], num_samples: int
) -> dict[str, Any]:
    """The manifest of a data folder, and the first samples of the shard with the most pairs."""
    sources: Counter[str] = Counter()
    for shard in manifest.shards:
        sources.update(shard.sources)
    # Pairs show the most.
    richest = max(manifest.shards, key=lambda shard: shard.kinds.get("pair", 0)).file
    with open_file(richest) as stream:
        # Reads only the samples it shows.
        samples = read_samples(stream, f"{location}/{richest}", pixels=False)
        first = [_describe(stored) for stored in islice(samples, num_samples)]
    return {
        "what": "data folder",
        "path": location,
        "samples": manifest.num_samples,
        "kinds": manifest.totals,
        "sources": dict(sources),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "feature_size": manifest.feature_size,
        "region_classes": manifest.num_region_classes,
        "region_tag_sizes": list(manifest.region_tag_sizes),
        "vocabulary_size": manifest.tokenizer.vocabulary_size,
        "tokenizer": manifest.tokenizer.fingerprint,
        "extractor": None if manifest.extractor is None else manifest.extractor.fingerprint,
        "fingerprint": manifest.fingerprint,
        "made_by": list(manifest.commands),
        "first_samples": first,
    }


def inspect_run(path: Path) -> dict[str, Any]:
    """Progress of a run, its checkpoints, and the last values of its metrics."""
    config = _object(path / "config.json")
    checkpoints, steps = path / checkpoint_folder.FOLDER, checkpoint_folder.completed_steps(path)
    state = checkpoints / checkpoint_folder.name_of(steps[-1]) / checkpoint_folder.STATE if steps else None
    return {
        "what": "run",
        "path": str(path),
        "recipe": config.get("recipe"),
        "data": _within(config, "data").get("path"),
        "total_steps": _within(config, "schedule").get("total_steps"),
        "checkpoints": steps,
        "latest": checkpoint_folder.named(checkpoints / checkpoint_folder.LATEST) or None,
        "best": None if state is None else _within(_object(state), "progress").get("best"),
        "metrics": {
            name: value
            for record in records.read(path / records.METRICS_FILE)
            for name, value in record.values.items()
            if not record.event and isinstance(value, int | float)
        },
    }


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint's `state.json`, and the sizes of its files."""
    state = _object(path / "state.json")
    sizes = {item.name: item.stat().st_size for item in sorted(path.iterdir()) if item.is_file()}
    return {"what": "checkpoint", "path": str(path), **state, "files": sizes}


def to_text(found: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{found['what']} {found['path']}"]
    for name, value in found.items():
        if name in ("what", "path", "first_samples", "metrics", "made_by"):
            continue
        if name == "bytes":
            value = f"{value:,} ({value / _MIB:.1f} MiB)"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {_short(item)}" for key, item in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        elif value is None:
            value = "none"
        lines.append(f"  {name.replace('_', ' '):<17} {value}")
    lines += [f"  made by           {command}" for command in found.get("made_by", ())]
    metrics = found.get("metrics", {})
    held_out = {name: value for name, value in metrics.items() if name.startswith("held_out/")}
    others = {name: value for name, value in metrics.items() if name not in held_out and name != "time"}
    for name, value in [*others.items()][:_SHOWN_METRICS] + [*held_out.items()][:_SHOWN_METRICS]:
        lines.append(f"    {name:<44} {_short(value)}")
    for sample in found.get("first_samples", ()):
        lines += ["", *_sample_lines(sample)]
    return "\n".join(lines)


def _describe(stored: StoredSample) -> dict[str, Any]:
    sample, regions = stored.sample, stored.sample.regions
    return {
        "key": sample.key,
        "kind": sample.kind.name.lower(),
        "source": sample.source,
        "text": sample.text,
        "captions": [
            {
                "text": caption.text,
                "positives": [rewrite.text for rewrite in caption.positives],
                "negatives": [
                    {"level": rewrite.level.name.lower(), "text": rewrite.text, "from": rewrite.origin}
                    for rewrite in caption.negatives
                ],
            }
            for caption in sample.captions
        ],
        "related_texts": list(sample.related_texts),
        "related_images": [f"{shard}:{number}" for shard, number in sample.related_images],
        "regions": None if regions is None else list(regions.features.shape),
        "first_boxes": [] if regions is None else [[round(float(x), 3) for x in box] for box in regions.boxes[:3]],
        "first_classes": [] if regions is None else regions.class_ids[:3, 0].tolist(),
        "jpeg_bytes": None if stored.jpeg is None else len(stored.jpeg),
        "details": dict(stored.details),
    }


def _sample_lines(sample: dict[str, Any]) -> list[str]:
    lines = [f"  {sample['kind']} {sample['key']} ({sample['source']})"]
    if sample["text"] is not None:
        lines.append(f"    text      {_cut(sample['text'])}")
    for caption in sample["captions"]:
        lines.append(f"    caption   {_cut(caption['text'])}")
        lines += [f"      positive  {_cut(text)}" for text in caption["positives"][:2]]
        first_of_level: dict[str, Any] = {}
        for rewrite in caption["negatives"]:
            first_of_level.setdefault(rewrite["level"], rewrite)
        lines += [
            f"      negative  {_cut(rewrite['text'])}  [{rewrite['level']}: {_cut(rewrite['from'])}]"
            for rewrite in first_of_level.values()
        ]
    lines += [f"    related   {_cut(text)}" for text in sample["related_texts"][:2]]
    if sample["related_images"]:
        lines.append(f"    related   {', '.join(sample['related_images'][:4])}")
    if sample["regions"] is not None:
        lines.append(f"    regions   {sample['regions'][0]} of {sample['regions'][1]} features")
        for box, number in zip(sample["first_boxes"], sample["first_classes"], strict=True):
            lines.append(f"      box     {box} class {number}")
    if sample.get("jpeg_bytes"):
        lines.append(f"    jpeg      {sample['jpeg_bytes']:,} bytes")
    return lines


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else f"{value}"


def _object(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if there is none."""
    found: dict[str, Any] = strict_json.read(path, dict[str, Any]) if path.is_file() else {}
    return found


def _within(values: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = strict_json.typed(dict[str, Any], values.get(name, {}), where=name)
    return found
