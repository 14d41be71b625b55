"""Models that transformers reads from a folder made by others: no code that lies there, or that they name, is run."""

from __future__ import annotations

from typing import Any

WITHOUT_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of `from_pretrained` of Auto classes. Without the second, it asks on the terminal, and a piped `y` is an answer."""


def by_the_library(config: Any) -> Any:
    """The configuration without its choice of attention or expert kernels, which would be downloaded and run."""
    config._attn_implementation = config._experts_implementation = None
    return config
