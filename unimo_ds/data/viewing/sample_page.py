"""One stored sample as a page: picture with its boxes, captions, rewrites by level, related items."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence

from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import Caption, Level, Regions, Rewrite, Sample
from unimo_ds.data.viewing import page_parts
from unimo_ds.utils.errors import UserError

_PICTURE_SIDE, _RELATED_SIDE = 640, 160
_MOST_RELATED = 24
_MOST_BOXES = 100
_STYLE = """
body > figure img { min-width: 20em; height: auto }
.positive { color: #00682f } .negative { color: #a1261d }
.related { display: flex; flex-wrap: wrap; gap: .6em } .related span { font-size: .75em; color: #777; display: block }
"""


def sample_number(corpus: Corpus, wanted: str) -> int:
    """The sample with this number or key (`corpus.Corpus.key`).

    Raises:
        UserError: there is none.
    """
    if wanted.isascii() and wanted.isdecimal():
        if int(wanted) < len(corpus):
            return int(wanted)
        raise UserError(f"there is no sample {wanted}: the folder holds {len(corpus)}, counted from 0")
    shard = wanted.rpartition(":")[0]
    for place, (first, stop) in enumerate(itertools.pairwise(corpus.shard_start.tolist())):
        if corpus.shard_name(place) == shard:  # making the keys of all shards would take long
            for number in range(first, stop):
                if corpus.key(number) == wanted:
                    return number
    raise UserError(f"there is no sample {wanted!r}; give its number, or its key as `unimo inspect` shows it")


def sample_page(corpus: Corpus, number: int) -> str:
    """The page of a sample as HTML."""
    sample = corpus.read(number)
    details = corpus.details(number)
    parts = [_heading(sample, details)]
    if sample.regions is not None:
        parts.append(_picture(corpus.read_jpeg(number), sample.regions, details.get("size")))
    if sample.text is not None:
        parts.append(f"<h2>Text</h2>\n<p>{html.escape(sample.text)}</p>")
    for i, caption in enumerate(sample.captions, start=1):
        parts.append(_caption(caption, i))
    if sample.related_texts:
        items = "\n".join(f"<li>{html.escape(text)}</li>" for text in sample.related_texts)
        parts.append(f"<h2>Related texts ({len(sample.related_texts)})</h2>\n<ol>{items}</ol>")
    if sample.related_images:
        first, stop = corpus.related_image_start[number : number + 2]
        parts.append(_related_images(corpus, corpus.related_image_index[first:stop].tolist()))
    return page_parts.page(sample.key, "\n".join(parts), _STYLE)


def _heading(sample: Sample, details: dict[str, object]) -> str:
    # Details that a program stored for itself (how a scene was drawn) are not for people.
    told = {name: " x ".join(map(str, value)) if _is_size(value) else value for name, value in details.items()}  # type: ignore[call-overload]
    notes = "; ".join(f"{name}: {value}" for name, value in told.items() if "{" not in str(value))
    kind = sample.kind.name.lower()
    return (
        f"<h1>{kind} {html.escape(sample.key)}</h1>\n"
        f'<p class="from">source {html.escape(sample.source)}{"; " if notes else ""}{html.escape(notes)}</p>'
    )


def _picture(jpeg: bytes | None, regions: Regions, size: object) -> str:
    shown = [
        page_parts.rectangle(box, _classes(regions, i)) for i, box in enumerate(regions.boxes[:_MOST_BOXES].tolist())
    ]
    overlay = page_parts.boxes_overlay(shown)
    picture = page_parts.picture(jpeg, _PICTURE_SIDE, overlay)
    if picture is None:
        ratio = size[1] / size[0] if _is_size(size) else 1.0  # type: ignore[index]
        height = round(_PICTURE_SIDE * min(max(ratio, 0.2), 3.0))
        picture = page_parts.no_picture(jpeg, _PICTURE_SIDE, height, overlay)
    count = len(regions.boxes)
    about = f"{count} regions of {regions.features.shape[1]} features; point at a box for its classes"
    return f'{picture}\n<p class="from">{about}</p>'


def _is_size(size: object) -> bool:
    return (
        isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and 0 < side < 2**31 for side in size)
    )


def _classes(regions: Regions, i: int) -> str:
    pairs = zip(regions.class_ids[i].tolist(), regions.class_probabilities[i].tolist(), strict=True)
    named = ", ".join(f"class {number}: {probability:.2f}" for number, probability in pairs if probability > 0)
    return named or "class not known"


def _caption(caption: Caption, number: int) -> str:
    rows = [_row("positive", "sentence", one) for one in caption.positives]
    for level in (Level.SENTENCE, Level.PHRASE, Level.WORD):
        rows += [_row("negative", level.name.lower(), one) for one in caption.negatives if one.level is level]
    table = f"<table>\n{''.join(rows)}</table>" if rows else '<p class="from">no rewrites</p>'
    return f"<h2>Caption {number}: {html.escape(caption.text)}</h2>\n{table}"


def _row(verdict: str, level: str, rewrite: Rewrite) -> str:
    return (
        f'<tr><td class="{verdict}">{verdict}</td><td>{level}</td><td>{html.escape(rewrite.text)}</td>'
        f'<td class="from">{html.escape(rewrite.origin)}</td></tr>\n'
    )


def _related_images(corpus: Corpus, numbers: Sequence[int]) -> str:
    shown = []
    for number in numbers[:_MOST_RELATED]:
        picture = page_parts.picture(corpus.read_jpeg(number), _RELATED_SIDE) or ""
        name = corpus.details(number).get("file", corpus.key(number))
        shown.append(f"<div>{picture}<span>{html.escape(str(name))}</span></div>")
    more = len(numbers) - len(shown)
    rest = f'<p class="from">and {more} more</p>' if more else ""
    return f'<h2>Related images ({len(numbers)})</h2>\n<div class="related">{"".join(shown)}</div>{rest}'
