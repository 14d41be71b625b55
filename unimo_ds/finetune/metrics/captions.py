"""Metrics of short texts against references, by `pycocoevalcap`, the field's own package: BLEU, CIDEr, ROUGE-L, METEOR.

Its PTB tokenizer and METEOR are Java programs. Without Java, texts are split by a plain rule instead and METEOR is not
measured; the notes say so, since such BLEU values must not be compared with published ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from collections.abc import Mapping, Sequence
from types import ModuleType

from unimo_ds.utils.errors import UserError

Texts = dict[int, list[str]]

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]")
_DROPPED = set(".,;:?!-\"'`()[]{}")
"""Punctuation that evaluations with the PTB tokenizer leave out."""


def measure(
    written: Sequence[str], references: Sequence[Sequence[str]], *, tokenised: bool = False, meteor: bool = True
) -> tuple[dict[str, float], dict[str, str]]:
    """bleu_1 to bleu_4, cider, rouge_l and, with Java, meteor, as fractions (CIDEr 1.244, not 124.4); and notes.

    tokenised: the texts are already words separated by spaces, and are compared as they are. meteor: its program takes
    seconds to start and up to 2 GB of memory.

    Raises:
        UserError: pycocoevalcap is not installed.
    """
    hypotheses = {number: [text] for number, text in enumerate(written)}
    wanted = {number: list(texts) for number, texts in enumerate(references)}
    notes = {}
    if not tokenised:
        hypotheses, notes["tokenised"] = tokenise(hypotheses)
        wanted, _ = tokenise(wanted)
    scores, _ = _package("bleu.bleu").Bleu(4).compute_score(wanted, hypotheses, verbose=0)
    metrics = {f"bleu_{order}": float(score) for order, score in enumerate(scores, start=1)}
    metrics["cider"] = 0.0  # if no reference has a word, its code fails
    if any(text.split() for texts in wanted.values() for text in texts):
        metrics["cider"] = float(_package("cider.cider").Cider().compute_score(wanted, hypotheses)[0])
    metrics["rouge_l"] = float(_package("rouge.rouge").Rouge().compute_score(wanted, hypotheses)[0])
    if meteor and has_java():
        metrics["meteor"] = float(_package("meteor.meteor").Meteor().compute_score(wanted, hypotheses)[0])
    elif meteor:
        notes["meteor"] = "not measured: it needs Java, which is not on the PATH"
    return metrics, notes


def has_java() -> bool:
    return shutil.which("java") is not None


def tokenise(texts: Mapping[int, Sequence[str]]) -> tuple[Texts, str]:
    """Each text as words separated by single spaces, and the rule that split them."""
    if has_java():
        tokenizer = _package("tokenizer.ptbtokenizer").PTBTokenizer()
        # One line per text, none of which may be missing, so an empty text becomes a word that is dropped again.
        items = {
            number: [{"caption": " ".join(text.split()) or "."} for text in group] for number, group in texts.items()
        }
        found: Texts = tokenizer.tokenize(items)
        return found, "PTB (Stanford CoreNLP)"
    return {number: [split_plainly(text) for text in group] for number, group in texts.items()}, "plain rule, no Java"


def split_plainly(text: str) -> str:
    """Lower-case words separated by single spaces, without punctuation."""
    return " ".join(word for word in _WORD.findall(text.lower()) if word not in _DROPPED)


def check_installed() -> None:
    """Call it before training a model that can only be measured with pycocoevalcap.

    Raises:
        UserError: pycocoevalcap is not installed.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError("measuring written texts needs pycocoevalcap; pip install pycocoevalcap==1.2")


def _package(name: str) -> ModuleType:
    check_installed()
    return importlib.import_module(f"pycocoevalcap.{name}")
