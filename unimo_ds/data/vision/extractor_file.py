"""`extractor.safetensors`: a region extractor on disk, so that a data folder suffices to make regions of new images.

Tensors are its parameters; the header has its kind, and its settings as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

EXTRACTOR_FILE = "extractor.safetensors"


@dataclass(frozen=True)
class StoredExtractor:
    """Content of such a file."""

    kind: str
    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    file: Path


def file_at(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the one in a folder.

    Raises:
        UserError: it does not exist.
    """
    file = Path(path) / EXTRACTOR_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"no region extractor at {file}; name a folder made by `unimo prepare import`")
    return file


def read(path: str | os.PathLike[str]) -> StoredExtractor:
    """
    Raises:
        UserError: missing or damaged.
    """
    file = file_at(path)
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            settings = strict_json.typed(
                dict[str, Any], strict_json.parsed(about.get("settings", "{}")), where="its settings"
            )
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read the region extractor {file}: {error}") from None
    return StoredExtractor(about.get("kind", ""), settings, tensors, file)


def write(folder: str | os.PathLike[str], *, kind: str, settings: Any, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write `extractor.safetensors` into the folder, atomically; equal extractors give equal bytes, since manifests list their
    checksums. Returns its path.

    settings: a dataclass.
    """
    path = Path(folder) / EXTRACTOR_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"kind": kind, "settings": json.dumps(dataclasses.asdict(settings))}
    write_whole(path, _in_order(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=about)))
    return path


def _in_order(content: bytes) -> bytes:
    """The file with its header's keys sorted: the library's order is that of a hash, which differs from call to call."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(content)[start:]))


def fingerprint(settings: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of settings (a dataclass) and parameters, 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def kind_of(path: Path) -> str:
    """Only the kind, without reading the tensors.

    Raises:
        UserError: missing or damaged.
    """
    file = file_at(path)
    try:
        with safe_open(file, framework="pt") as stored:
            kind: str = (stored.metadata() or {}).get("kind", "")
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the region extractor {file}: {error}") from None
    return kind
