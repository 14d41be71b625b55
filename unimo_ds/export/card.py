"""The model card (README.md) of an export, made only from the run's own records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unimo_ds
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.storage import blend
from unimo_ds.evaluation import checkpoint, run_paths
from unimo_ds.evaluation.pairs import choose_pairs
from unimo_ds.export.source import Source
from unimo_ds.models.accounting import count_parameters
from unimo_ds.utils import records, strict_json
from unimo_ds.utils.errors import UserError

_MARKS = re.compile(r"[\\`*\[\]<>|&]")


def write_card(found: Source, family: str) -> str:
    """Markdown with the front matter that model hubs read. Whatever the run's records lack is left out.

    family: class name of the exported model (of `huggingface/`).
    """
    config, run = found.config, _run_of(found)
    made = "trained" if _is_ours(found) else "written"
    count = count_parameters(config.model)
    parts = [
        _front_matter(found),
        f"# {_title(found)}\n\n"
        "UNIMO ([Li et al., ACL 2021](https://arxiv.org/abs/2012.15409)): one Transformer for images, texts and image-text "
        f"pairs, {made} with unimo_ds {unimo_ds.__version__}.",
        _table(
            "Model",
            {
                "layers, hidden size, heads": f"{config.model.num_layers}, {config.model.hidden_size}, {config.model.num_heads}",
                **({"image layers": f"{config.model.num_image_layers}"} if config.model.num_image_layers else {}),
                "parameters": f"{count.total:,} (encoder {count.encoder:,})",
                "vocabulary": f"{config.model.vocabulary_size:,} byte-level pieces, fingerprint {found.tokenizer.fingerprint}",
                "longest text": f"{found.max_text_tokens} tokens",
                "image": f"up to {config.data.max_regions} regions of {config.model.region_feature_size} numbers, "
                + ("made by the extractor in this folder" if found.extractor else "which must be given"),
            },
        ),
        _table("Training", _training(found, run)),
        _data(found),
        _table("Measured on held-out data", _measured(found, run)),
        _use(found, family),
        "## Limits\n\nRegions, texts and captions of the training data decide what this model knows, its prejudices included. "
        "Generated texts may be untrue of the image. Nothing here has been checked for any use in which people come to harm.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(found: Source) -> str:
    size = f"{found.config.model.num_layers} layers of {found.config.model.hidden_size}"
    return f"UNIMO, {size}" + (f", fine-tuned on {found.task}" if found.task else f", {_plain(found.config.recipe)}")


def _front_matter(found: Source) -> str:
    tags = ["unimo", "vision-language", *([found.task] if found.task else [])]
    return "\n".join(["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    return "\n".join(
        [
            f"## {title}\n",
            "| | |",
            "|---|---|",
            *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items()),
        ]
    )


def _plain(text: str) -> str:
    """As Markdown that shows it: names of sources and files are of others, and may be markup, links or rows of a table."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def _run_of(found: Source) -> Path | None:
    """Run directory of the checkpoint; None if it has none."""
    folder = found.files.config.parent
    is_run = found.files.config.name == checkpoint.CONFIG_FILE and (folder / records.METRICS_FILE).is_file()
    return folder if is_run else None


def _is_ours(found: Source) -> bool:
    """Whether this project trained it."""
    return found.config.recipe not in ("transformers", "released")


def _training(found: Source, run: Path | None) -> dict[str, str]:
    config = found.config
    if not _is_ours(found):
        return {}
    rows = {
        "recipe": f"{config.recipe}, seed {config.seed}",
        "optimizer": f"{config.optimizer.name}, peak learning rate {config.optimizer.peak_learning_rate:g}, "
        f"{config.schedule.warmup_steps:,} of {config.schedule.total_steps:,} steps of warm-up, then {config.schedule.form}",
        "samples a step": f"{config.batch.global_samples:,}",
    }
    if not found.task:
        rows["contrastive form"] = config.contrast.form if config.contrast.enabled else "off"
    if config.model.initialize_from:
        rows["started from"] = Path(config.model.initialize_from).name
    if config.model.initialize_images_from:
        rows["image layers started from"] = Path(config.model.initialize_images_from).name
    if run is None:
        return rows
    step = _step(found)
    if step is not None:
        rows["steps trained"] = f"{step:,}"
    file = run / "environment.json"
    environment = strict_json.read(file, dict[str, Any]) if file.is_file() else {}
    versions = strict_json.typed(dict[str, str], environment.get("versions", {}), where=f"{file}: versions")
    if versions:
        rows["with"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "absent")
    if environment.get("revision"):
        rows["code"] = str(environment["revision"])
    return rows


def _data(found: Source) -> str:
    try:
        location = run_paths.from_here(found.config.data.path, found.files.config)
        # The manifests suffice; joining the indices of a large corpus would write to disk.
        manifest = blend.joint_manifest(blend.open_folders(location, cache_dir=None, cache_bytes=0))
    except UserError:
        return ""
    sources: dict[str, int] = {}
    for shard in manifest.shards:
        for name, number in shard.sources.items():
            sources[name] = sources.get(name, 0) + number
    rows = {name: f"{number:,} samples" for name, number in sorted(sources.items())}
    return _table("Data", {**rows, "fingerprint": manifest.fingerprint})


def _step(found: Source) -> int | None:
    name, _, number = found.files.name.partition("-")
    return int(number) if name == "step" and number.isdigit() else None


def _measured(found: Source, run: Path | None) -> dict[str, str]:
    """The evaluation of exactly this step, from the run's log."""
    step = _step(found)
    if run is None or step is None:
        return {}
    rows: dict[str, str] = {}
    for record in records.read(run / records.METRICS_FILE):
        if record.step == step:
            rows |= {
                name.removeprefix("held_out/"): f"{value:.4g}"
                for name, value in record.values.items()
                if name.startswith(("held_out/", "dev/")) and isinstance(value, int | float)
            }
    return _gallery(found) | rows if rows else {}


def _gallery(found: Source) -> dict[str, str]:
    """Number of images that retrieval searched; recall means nothing without it."""
    if found.config.data.held_out_path is None:
        return {}
    try:
        folder = run_paths.from_here(found.config.data.held_out_path, found.files.config)
        pairs = choose_pairs(Corpus.open(folder), num_pairs=found.config.evaluation.num_pairs)
    except UserError:
        return {}
    return {"images": f"{len(pairs):,}"}


def _use(found: Source, family: str) -> str:
    lines = ["import unimo_ds  # makes the classes known"]
    if found.task is None:
        lines += [
            *(["from PIL import Image"] if found.extractor is not None else []),
            "from transformers import AutoModel, AutoProcessor",
            "",
            'processor, model = AutoProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER")',
            'texts = model.get_text_features(**processor(text=["a red ball", "two dogs"]))',
        ]
        if found.extractor is not None:
            lines += [
                'image = model.get_image_features(**processor(images=Image.open("photo.jpg")))',
                "print(image @ texts.T)  # cosines",
            ]
    else:
        lines += [
            "from transformers import AutoProcessor",
            f"from unimo_ds.huggingface.heads import {family}",
            "",
            f'processor, model = AutoProcessor.from_pretrained("FOLDER"), {family}.from_pretrained("FOLDER")',
        ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"
