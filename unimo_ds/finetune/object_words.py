"""Names of detected objects, as a text that a captioning model reads together with the regions.

The release reads them from files of token ids, but cannot make these: `coco_object_0.35_tot.ids` for the base model, 0.2 for
the large one, first 100 tokens only. Here they come from the region classes stored in shards: a word for every region whose
most likely class is confident enough, most confident first, as [CLS] words [SEP].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.data.inputs import text_input
from unimo_ds.data.masking import Tokens
from unimo_ds.data.schema import Regions
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.vision.object_words import words_of
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

ASSET = "object_names"


def read_names(path: Path, *, num_classes: int) -> list[str]:
    """The name of each class, empty for background. Of several synonyms, separated by commas, the first is used.

    path: one name per line, in the order of class numbers; with one line fewer than classes, background (class 0) is left out.

    Raises:
        UserError: not readable, or the wrong number of lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the names of the detector's classes {path}: {error}") from None
    names = [line.partition(",")[0].strip() for line in lines]
    if len(names) == num_classes - 1:
        names.insert(0, "")
    if len(names) != num_classes:
        raise UserError(
            f"{path} has {len(names)} lines, but the images' detector has {num_classes} classes, background included; "
            "give a name for each to finetune.captioning.object_names"
        )
    return ["" if name == "__background__" else name for name in names]


class ObjectWords:
    """The text of an image's objects."""

    def __init__(
        self, names: Sequence[str], tokenizer: Tokenizer, *, min_confidence: float, max_tokens: int, max_regions: int
    ) -> None:
        """names: of the classes, empty for those without a word. max_tokens: of a text, including special tokens."""
        self.fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
        self.names, self._tokenizer = names, tokenizer
        self.min_confidence, self.max_tokens, self._max_regions = min_confidence, max_tokens, max_regions

    @classmethod
    def of(cls, config: RunConfig, assets: Mapping[str, Any], tokenizer: Tokenizer) -> ObjectWords | None:
        """As fine-tuning with `config` uses them; None if it does not.

        Raises:
            UserError: the names are not among the assets, or are not texts.
        """
        if config.finetune is None or not config.finetune.captioning.object_names:
            return None
        if ASSET not in assets:
            raise UserError(
                "the model was taught with names of objects, but its task.json lists none; restore that file"
            )
        settings = config.finetune.captioning
        return cls(
            strict_json.typed(list[str], assets[ASSET], where=f"task.json: {ASSET}"),
            tokenizer,
            min_confidence=settings.min_confidence,
            max_tokens=min(settings.max_object_tokens, config.data.max_text_tokens),
            max_regions=config.data.max_regions,
        )

    def text(self, regions: Regions) -> Tokens:
        """[CLS] words [SEP]; no words if no class is confident enough."""
        words = words_of(regions, self.names, min_confidence=self.min_confidence, max_regions=self._max_regions)
        return text_input(self._tokenizer.encode(words), max_text_tokens=self.max_tokens)
