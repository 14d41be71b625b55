"""The model as a family of `transformers` classes.

After `import unimo_ds`, `AutoConfig`, `AutoModel`, ..., `AutoProcessor` know it. Nothing of transformers or torch is imported for
that: processors and the configuration are registered when transformers' own registries are imported, the models when a
configuration is made.
"""

from __future__ import annotations

import functools
import importlib

from unimo_ds.utils.after_import import after_import

_REGISTRIES = {
    "configuration_auto": "register_configuration",
    "image_processing_auto": "register_image_processor",
    "processing_auto": "register_processor",
}


def announce() -> None:
    """Have transformers learn of this family once it is there."""
    for registry, function in _REGISTRIES.items():
        after_import(f"transformers.models.auto.{registry}", functools.partial(register, function))


def register(function: str) -> None:
    """Call a function of `registration`, named so that nothing imports what imports it."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ImportError(f"unimo_ds needs transformers 5 (requirements.txt), and this is {transformers.__version__}")
    getattr(importlib.import_module("unimo_ds.huggingface.registration"), function)()
