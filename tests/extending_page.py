"""The code of docs/extending.md as the modules that it says, for the tests that run it."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType

from unimo_ds.config import LossWeights
from unimo_ds.utils.intervals import NonNegative

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
NAME = "image_text_matching"


def modules_of_page() -> dict[str, ModuleType]:
    """The page's files by name, each a module that can be imported from where the page puts it."""
    found: dict[str, ModuleType] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        path = Path(block.partition("\n")[0].removeprefix("# "))
        module = ModuleType(".".join(path.with_suffix("").parts))
        sys.modules[module.__name__] = module
        exec(compile(block, f"{PAGE.name}: {path}", "exec", dont_inherit=True), module.__dict__)
        found[path.stem] = module
    return found


def weights_of(value: float, **others: float) -> LossWeights:
    """With the line of `config.py` that the page asks for."""
    made = dataclasses.make_dataclass("Weights", [(NAME, NonNegative, 0.0)], bases=(LossWeights,), frozen=True)
    result: LossWeights = made(**{NAME: value}, **others)
    return result
