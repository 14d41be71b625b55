"""Opens the translators that the settings name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.rewriting.translation import apertium
from unimo_ds.data.prepare.rewriting.translation.protocol import Pivot, Translator
from unimo_ds.data.prepare.settings import RewriteSettings
from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.machine import num_gpus, worker_device


def check(settings: RewriteSettings) -> None:
    """
    Raises:
        UserError: contradictory options of the translator, or folders that do not exist.
    """
    if settings.translator is None:
        for name in ("to_pivot", "from_pivot", "pivots"):
            if getattr(settings, name):
                raise UserError(f"--{name.replace('_', '-')} needs --translator (marian, ctranslate2, apertium)")
        return
    if settings.translator == "apertium":
        if settings.to_pivot or settings.from_pivot:
            raise UserError("--translator apertium takes --pivots, not folders of models")
        for language in settings.pivots:
            if language not in apertium.MODES:
                raise UserError(f"--pivots {language!r} is unknown{nearest_name(language, apertium.MODES)}")
        return
    if settings.pivots:
        raise UserError(f"--translator {settings.translator} takes --to-pivot and --from-pivot, not --pivots")
    if not settings.to_pivot or len(settings.to_pivot) != len(settings.from_pivot):
        raise UserError(
            f"--translator {settings.translator} needs as many folders of models in --to-pivot as in --from-pivot, at least one"
        )
    for folder in (*settings.to_pivot, *settings.from_pivot):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name the folder of a model")


def languages(settings: RewriteSettings) -> tuple[str, ...]:
    """Apertium's pivot languages to use: those in the settings, or all installed ones.

    Raises:
        UserError: one of them is not installed, or none is.
    """
    found = apertium.installed()
    for language in settings.pivots:
        if language not in found:
            there, back = apertium.MODES[language]
            raise UserError(f"apertium cannot translate {there} and {back} here; install the pair's package")
    if not found:
        raise UserError(
            "apertium has no pair of languages; on Debian: apt-get install apertium-eng-spa apertium-eng-cat"
        )
    return settings.pivots or found


@functools.lru_cache(maxsize=1)
def pivots(settings: RewriteSettings) -> tuple[Pivot, ...]:
    """The settings' pivots, loaded once per process.

    Raises:
        UserError: a model or program that cannot be used.
    """
    if settings.translator == "apertium":
        return tuple(apertium.pivot(language) for language in settings.pivots)
    return tuple(
        Pivot(f"{settings.translator} {there.name}", _model(settings, there), _model(settings, back), is_trusted=True)
        for there, back in zip(settings.to_pivot, settings.from_pivot, strict=True)
    )


def _model(settings: RewriteSettings, folder: Path) -> Translator:
    # If PyTorch sees no GPU, the tool chooses its device.
    device = worker_device() if num_gpus() else None
    options: dict[str, Any] = {"batch_size": settings.translation_batch, "beams": settings.beams, "device": device}
    if settings.translator == "ctranslate2":
        from unimo_ds.data.prepare.rewriting.translation.ctranslate import CTranslate2Translator

        return CTranslate2Translator(folder, **options)
    from unimo_ds.data.prepare.rewriting.translation.marian import MarianTranslator

    return MarianTranslator(folder, **options)
