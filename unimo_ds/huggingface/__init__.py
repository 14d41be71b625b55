"""The model as a family of `transformers` classes.

After `import unimo_ds`, `AutoConfig`, `AutoModel`, ..., `AutoProcessor` support it. This imports nothing of transformers or
torch: processors and the configuration are registered when transformers' own registries are imported, the models when a
configuration is made.
"""

from __future__ import annotations

import functools
import importlib

from unimo_ds.huggingface.after_import import after_import

_REGISTRIES = {
    "configuration_auto": "register_configuration",
    "image_processing_auto": "register_image_processor",
    "processing_auto": "register_processor",
}


def announce() -> None:
    """Register this family with transformers as soon as transformers is imported."""
    for registry, function in _REGISTRIES.items():
        after_import(f"transformers.models.auto.{registry}", functools.partial(register, function))


def register(function: str) -> None:
    """Call a function of `registration`, given by name so that its module is not imported before it is needed."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ImportError(f"unimo_ds needs transformers 5 (requirements.txt), and this is {transformers.__version__}")
    getattr(importlib.import_module("unimo_ds.huggingface.registration"), function)()
