"""Metrics of short texts against references, by `pycocoevalcap`, the field's own package: BLEU, CIDEr, ROUGE-L, METEOR.

Its PTB tokenizer and METEOR are Java programs. Without Java, texts are split by a plain rule instead and METEOR is not
measured; the notes say so, since such BLEU values must not be compared with published ones.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
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
        UserError: pycocoevalcap is not installed, or Java fails to split the texts.
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
        try:
            metrics["meteor"] = _meteor(wanted, hypotheses)
        except RuntimeError as error:
            notes["meteor"] = f"not measured: {error}"
    elif meteor:
        notes["meteor"] = "not measured: it needs Java, which is not on the PATH"
    return metrics, notes


def _meteor(wanted: Texts, hypotheses: Texts) -> float:
    """May raise RuntimeError: its program failed."""
    scorer = _package("meteor.meteor").Meteor()
    try:
        return float(scorer.compute_score(wanted, hypotheses)[0])
    except (OSError, ValueError):
        scorer.lock.release()  # otherwise its end would wait for itself
        raise RuntimeError(_failure(scorer.meteor_p.stderr.read())) from None


def has_java() -> bool:
    return shutil.which("java") is not None


def tokenise(texts: Mapping[int, Sequence[str]]) -> tuple[Texts, str]:
    """Each text as words separated by single spaces, and the rule that split them.

    Raises:
        UserError: Java fails.
    """
    if not has_java():
        split = {number: [split_plainly(text) for text in group] for number, group in texts.items()}
        return split, "plain rule, no Java"
    lines = iter(_ptb([text for group in texts.values() for text in group]))
    return {number: [next(lines) for _ in group] for number, group in texts.items()}, "PTB (Stanford CoreNLP)"


def _ptb(texts: Sequence[str]) -> list[str]:
    """As pycocoevalcap's PTBTokenizer, which would write into its package's folder, perhaps a read-only one, and not notice that
    Java failed."""
    module = _package("tokenizer.ptbtokenizer")
    options = ["-cp", module.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    # One line per text, none of which may be missing, so an empty text becomes a word that is dropped again.
    done = subprocess.run(
        ["java", *options, "-preserveLines", "-lowerCase"],
        cwd=Path(str(module.__file__)).parent,
        input="\n".join(" ".join(text.split()) or "." for text in texts).encode(errors="replace"),
        capture_output=True,
        check=False,
    )
    lines = done.stdout.decode().split("\n")[: len(texts)]
    if done.returncode or len(lines) < len(texts):
        raise UserError(
            f"words cannot be split: {_failure(done.stderr)}; cure it, or take Java off the PATH for a plain rule instead"
        )
    return [" ".join(word for word in line.split(" ") if word and word not in module.PUNCTUATIONS) for line in lines]


def _failure(told: bytes) -> str:
    """told: what Java wrote to its standard error."""
    return f"Java failed ({' '.join(told.decode(errors='replace').split())[-200:] or 'without a word'})"


def split_plainly(text: str) -> str:
    """Lower-case words separated by single spaces, without punctuation."""
    return " ".join(word for word in _WORD.findall(text.lower()) if word not in _DROPPED)


@functools.cache
def check_java() -> None:
    """Call it before training a model whose texts are split by `tokenise`. Raises UserError: Java fails."""
    tokenise({0: ["a dog"]})


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
