"""unimo prepare demo --output demo_data        (5,000 drawings and their captions, half a minute)

Writes the demo corpus: `OUTPUT/train` with pairs, images and texts, and `OUTPUT/held_out` with pairs of scenes that are not in
`train`, prepared with its tokenizer and extractor. It needs no network and no weights: scenes are drawn and described here, so
every rewrite is known to be true or false, and retrieval on `held_out` has one right answer per caption.

The steps are in sibling files; read them in this order: model, drawing, truth, grammar, rewrites, corpus, regions, extraction.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare.journal import alone_in
from unimo_ds.data.prepare.progress import progress
from unimo_ds.data.prepare.scenes import corpus as scene_corpus
from unimo_ds.data.prepare.scenes.corpus import Part, ScenePair
from unimo_ds.data.prepare.scenes.drawing import PICTURE_SIZE, draw_jpeg
from unimo_ds.data.prepare.scenes.extraction import FittedExtractor, fit_extractor
from unimo_ds.data.prepare.scenes.grammar import sample_text
from unimo_ds.data.prepare.scenes.model import Scene
from unimo_ds.data.prepare.workers import one_thread
from unimo_ds.data.schema import Caption, Kind, Regions, Sample
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry, load_manifest
from unimo_ds.data.storage.shards import StoredSample, shard_name, write_shards
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

GENERATOR_VERSION = 1
"""To be changed whenever the same parameters give another corpus."""
VOCABULARY_SIZE = 512
CAPTIONS_PER_PAIR = 2
"""In `train`; a held-out pair has one, so that chance in retrieval is 1 / number of pairs."""
SAMPLES_PER_SHARD = 500
DRAWINGS_AT_ONCE = 64

_FINISHED = "demo.json"
_STARTED = "demo.unfinished.json"
_FOLDERS = ("train", "held_out")

Place = tuple[str, int]
"""(shard file name, index within the shard)."""
Related = tuple[tuple[str, ...], tuple[Place, ...]]
"""Related texts and images of a pair."""


def write_demo_corpus(
    output: str | os.PathLike[str],
    *,
    num_pairs: int = 4000,
    num_images: int = 800,
    num_texts: int = 800,
    num_held_out: int = 500,
    seed: int = 0,
    regions: Literal["exact", "grid"] = "exact",
) -> None:
    """Write `output/train` and `output/held_out`, complete with tokenizer, extractor, indices and manifests.

    A finished folder with the same parameters is left unchanged; an interrupted one is rebuilt. Only one process may write: of
    several ranks, one calls this and the others wait; a second process is refused.

    regions: exact: one region per thing, with its true box, and the four quarters; grid: as for photographs.

    Raises:
        UserError: numbers out of range, a folder with other content or a demo corpus with other parameters, another process
            writing there, or a full disk.
    """
    output = Path(output)
    parameters: dict[str, Any] = {
        "num_pairs": num_pairs,
        "num_images": num_images,
        "num_texts": num_texts,
        "num_held_out": num_held_out,
        "seed": seed,
        "regions": regions,
    }
    _check_parameters(parameters)
    record = {"generator_version": GENERATOR_VERSION, **parameters}
    if _is_finished(output, record):
        return
    command = "unimo prepare demo " + " ".join(
        f"--{key.removeprefix('num_').replace('_', '-')} {value}" for key, value in parameters.items()
    )
    with alone_in(output, make=True):
        if _is_finished(output, record):  # finished meanwhile
            return
        _start(output, record)
        one_thread(_build, output, parameters, command)
        os.replace(output / _STARTED, output / _FINISHED)


def _build(output: Path, parameters: dict[str, Any], command: str) -> None:
    seed = parameters["seed"]
    held_out_scenes = scene_corpus.sample_scenes(parameters["num_held_out"], seed=seed, part=Part.HELD_OUT, avoid=())
    unseen = {scene.signature for scene in held_out_scenes}
    scenes = scene_corpus.sample_scenes(parameters["num_pairs"], seed=seed, part=Part.PAIRS, avoid=unseen)
    drawn = unseen | {scene.signature for scene in scenes}
    image_scenes = scene_corpus.sample_relatives(
        parameters["num_images"], of=scenes, seed=seed, part=Part.IMAGES, avoid=drawn
    )
    # Texts describe scenes that are never drawn.
    drawn |= {scene.signature for scene in image_scenes}
    text_scenes = scene_corpus.sample_relatives(
        parameters["num_texts"], of=scenes, seed=seed, part=Part.TEXTS, avoid=drawn
    )
    texts = [
        sample_text(scene, scene_corpus.randomness_of(seed, Part.TEXTS, number, 1))
        for number, scene in enumerate(text_scenes)
    ]

    pairs = scene_corpus.caption_pairs(scenes, captions_per_pair=CAPTIONS_PER_PAIR, seed=seed, part=Part.PAIRS)
    rewritten = scene_corpus.rewrite_captions(pairs, seed=seed, part=Part.PAIRS)
    captions = list(progress(rewritten, label="captions", total=len(pairs)))
    held_out = scene_corpus.identify_pairs(
        scene_corpus.caption_pairs(held_out_scenes, captions_per_pair=1, seed=seed, part=Part.HELD_OUT),
        seed=seed,
        part=Part.HELD_OUT,
    )
    held_out_captions = list(scene_corpus.rewrite_captions(held_out, seed=seed, part=Part.HELD_OUT))

    train_folder, held_out_folder = (output / name for name in _FOLDERS)
    tokenizer = tokenizers.train(_training_texts(captions, texts), vocabulary_size=VOCABULARY_SIZE)
    extractor = fit_extractor(parameters["regions"], scenes, seed=seed)

    # Images first, since pairs refer to their places.
    places = _write_images(train_folder, image_scenes, extractor)
    related_images = scene_corpus.related_to(scenes, image_scenes)
    related_texts = scene_corpus.related_to(scenes, text_scenes)
    _write_texts(train_folder, texts)
    related = [
        (tuple(texts[at] for at in text_row), tuple(places[at] for at in image_row))
        for text_row, image_row in zip(related_texts, related_images, strict=True)
    ]
    _write_pairs(train_folder, pairs, captions, related, extractor, label="pairs")
    _finish(train_folder, tokenizer, extractor, command)
    _write_pairs(held_out_folder, held_out, held_out_captions, [((), ())] * len(held_out), extractor, label="held out")
    _finish(held_out_folder, tokenizer, extractor, command)


def _training_texts(captions: Sequence[tuple[Caption, ...]], texts: Sequence[str]) -> Iterator[str]:
    for group in captions:
        for caption in group:
            yield caption.text
            yield from (rewrite.text for rewrite in caption.positives)
    yield from texts


def _write_images(folder: Path, scenes: Sequence[Scene], extractor: FittedExtractor) -> list[Place]:
    """Store image samples; returns the place of each."""
    samples = (
        StoredSample(Sample("", Kind.IMAGE, "scene-images", regions=regions), jpeg, _details(scene))
        for scene, (jpeg, regions) in zip(scenes, _drawn(scenes, extractor, "images"), strict=True)
    )
    write_shards(folder, "images", samples, max_samples=SAMPLES_PER_SHARD)
    numbers = (divmod(number, SAMPLES_PER_SHARD) for number in range(len(scenes)))
    return [(shard_name("images", shard), index) for shard, index in numbers]


def _write_texts(folder: Path, texts: Sequence[str]) -> None:
    samples = (StoredSample(Sample("", Kind.TEXT, "scene-texts", text=text)) for text in texts)
    write_shards(folder, "texts", samples, max_samples=SAMPLES_PER_SHARD)


def _write_pairs(
    folder: Path,
    pairs: Sequence[ScenePair],
    captions: Sequence[tuple[Caption, ...]],
    related: Sequence[Related],
    extractor: FittedExtractor,
    *,
    label: str,
) -> None:
    def samples() -> Iterator[StoredSample]:
        drawn = _drawn([pair.scene for pair in pairs], extractor, label)
        for pair, group, (texts, images), (jpeg, regions) in zip(pairs, captions, related, drawn, strict=True):
            sample = Sample(
                "",
                Kind.PAIR,
                "scenes",
                regions=regions,
                captions=group,
                related_texts=texts,
                related_images=images,
            )
            yield StoredSample(sample, jpeg, _details(pair.scene))

    write_shards(folder, "pairs", samples(), max_samples=SAMPLES_PER_SHARD)


def _drawn(scenes: Sequence[Scene], extractor: FittedExtractor, label: str) -> Iterator[tuple[bytes, Regions]]:
    """JPEG and regions of each scene."""
    for start in progress(range(0, len(scenes), DRAWINGS_AT_ONCE), label=label):
        part = scenes[start : start + DRAWINGS_AT_ONCE]
        jpegs = [draw_jpeg(scene) for scene in part]
        yield from zip(jpegs, extractor.regions(part, jpegs), strict=True)


def _details(scene: Scene) -> dict[str, Any]:
    """The drawn things, for readers of a shard."""
    return {
        "size": [PICTURE_SIZE, PICTURE_SIZE],
        "ground": scene.ground,
        "things": [asdict(thing) for thing in scene.things],
    }


def _finish(folder: Path, tokenizer: Tokenizer, extractor: FittedExtractor, command: str) -> None:
    path = tokenizer.save(folder)
    finish_folder(
        folder,
        tokenizer=tokenizer,
        tokenizer_file=path.name,
        extractor=ExtractorEntry(extractor.inner.fingerprint, extractor.inner.save(folder).name),
        num_region_classes=extractor.inner.num_classes,
        command=command,
    )


def _check_parameters(parameters: dict[str, Any]) -> None:
    for name in ("num_pairs", "num_held_out"):
        if parameters[name] < 2:
            raise UserError(f"the demo corpus needs at least 2 of {name}, not {parameters[name]}")
    for name in ("num_images", "num_texts", "seed"):
        if parameters[name] < 0:
            raise UserError(f"{name} of the demo corpus is {parameters[name]}; it must be at least 0")
    if parameters["regions"] not in ("exact", "grid"):
        raise UserError(f"regions {parameters['regions']!r} of the demo corpus is not one of exact, grid")


def _is_finished(output: Path, record: dict[str, Any]) -> bool:
    """Whether the corpus with these parameters is complete."""
    try:
        present = strict_json.parsed((output / _FINISHED).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {output / _FINISHED}: {error}; remove {output} or name another folder") from None
    changed = sorted(key for key in record if present.get(key) != record[key]) if isinstance(present, dict) else ["all"]
    if changed:
        raise UserError(
            f"{output} holds a demo corpus of other parameters ({', '.join(changed)}); remove it or name another folder"
        )
    try:
        for name in _FOLDERS:
            load_manifest(output / name)
    except UserError as error:
        raise UserError(
            f"the demo corpus in {output} is damaged: {error}; remove it, and it will be made again"
        ) from None
    return True


def _start(output: Path, record: dict[str, Any]) -> None:
    """Claim the folder: empty except for the file that marks it as unfinished."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not (output / _STARTED).exists():
            raise UserError(f"{output} is not empty and holds no demo corpus; name another folder")
        (output / _STARTED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for name in _FOLDERS:
            if (output / name).exists():
                shutil.rmtree(output / name)
    except OSError as error:
        raise UserError(f"cannot write into {output}: {error.strerror}; name another folder") from None
