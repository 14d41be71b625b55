"""Write a safetensors file tensor by tensor, so that a checkpoint never needs the whole model in host memory at once.

Form: 8 bytes little-endian header length, a JSON header of (dtype, shape, offsets) per name, then the data in that order.
`safetensors` can read the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch


class TensorFileWriter:
    """Context manager; `write` takes tensors in the order of `shapes` and stores fp32. Hashes while writing; fsyncs at exit."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self.path = path
        self._expected = [(name, tuple(shape)) for name, shape in shapes.items()]
        self._position = 0
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def __enter__(self) -> Self:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self._expected:
            size = 4 * torch.Size(shape).numel()
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = self.path.open("wb")
        self._put(len(text).to_bytes(8, "little") + text)
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor.

        Raises:
            ValueError: another tensor was expected here.
        """
        if (name, tuple(tensor.shape)) != self._expected[self._position]:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} written where {self._expected[self._position]} was expected"
            )
        self._position += 1
        self._put(tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy().data.cast("B"))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if self._position != len(self._expected):
                    raise ValueError(f"{self.path} ends before {self._expected[self._position][0]}")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)
