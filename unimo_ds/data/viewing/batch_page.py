"""One rank's data for one step as a page: the packed stream of every micro-batch, and its first samples token by token."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.schema import CLS, SEP, Kind, LanguageObjective, PackedBatch, SequenceRole, StepBatch
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.viewing import page_parts
from unimo_ds.data.viewing.inspect_batch import facts, heading, of_bad_sample
from unimo_ds.data.viewing.sample_page import sample_number
from unimo_ds.data.viewing.unpacking import UnpackedSequence, purpose, unpack
from unimo_ds.data.vision import crops

_ROW, _ROW_HEIGHT, _GAP = 1024, 16, 4
"""Positions per row of the drawn stream, height of a row, and space between rows."""
_PICTURE_SIDE, _RELATED_SIDE, _MASK_SIDE = 240, 90, 32
_COLOURS = {
    "corrupted": "#2b6cb0",
    "positive": "#2f855a",
    "negative": "#c53030",
    "single": "#b7791f",
    "related": "#6b46c1",
}
_STYLE = """
.stream { width: 100%; display: block; margin: .6em 0 } .stream rect { stroke: #fff; stroke-width: 1 }
.stream a:hover rect { stroke: #000 } .text { fill-opacity: .55 }
.legend span { white-space: nowrap; margin-right: 1.2em }
.legend i { display: inline-block; width: 1em; height: .8em; margin-right: .4em }
.sample { display: flex; flex-wrap: wrap; gap: 1.2em; border-top: 2px solid #ddd; margin-top: 1.4em; padding-top: .4em }
.sample h2 { flex: 0 0 100%; margin: .2em 0; overflow-wrap: anywhere }
.sample table { flex: 1 1 28em; width: auto; align-self: flex-start }
.sample > div img, .sample > div .blank { width: 240px; height: auto } .sample > div > p { width: 240px }
.name { width: 11em; min-width: 11em; border-left: .5em solid; padding-left: .5em; font-size: .85em }
.see { width: 44px } .see svg { background: #e2e8f0; display: block } .see path { fill: #4a5568 }
.words { width: 100% } .words figure { vertical-align: top }
.words { white-space: pre-wrap } .words b { font-weight: 600; color: #777; font-size: .8em }
.words u { text-decoration: none; background: #bee3f8; border-radius: 3px; padding: 0 2px }
.words u i { font-size: .8em; color: #2b6cb0 } .words q { quotes: none; background: #fefcbf }
figure rect.hidden { fill: #2b6cb0aa; stroke: #fff; stroke-width: 1 }
""" + "\n".join(
    f".stream .{kind} {{ fill: {colour} }} i.{kind} {{ background: {colour} }} .name.{kind} {{ border-color: {colour} }}"
    for kind, colour in _COLOURS.items()
)
_LEGEND = (
    ("corrupted", "corrupted: something in it is predicted"),
    ("positive", "clean, a positive of the pair"),
    ("negative", "clean, a hard negative"),
    ("single", "clean, alone: against all other pairs"),
    ("related", "clean, a retrieved item"),
)
_KINDS = {
    SequenceRole.CORRUPTED: "corrupted",
    SequenceRole.JOINT_NEGATIVE: "negative",
    SequenceRole.SINGLE_NEGATIVE: "negative",
    SequenceRole.SINGLE_IMAGE: "single",
    SequenceRole.SINGLE_TEXT: "single",
    SequenceRole.RELATED_IMAGE: "related",
    SequenceRole.RELATED_TEXT: "related",
}


def batch_page(
    step: StepBatch, found: dict[str, Any], config: RunConfig, corpus: Corpus, tokenizer: Tokenizer, *, num_samples: int
) -> str:
    """The page as HTML. found: `inspect_batch.to_dict` of the step. num_samples: shown in full, over all micro-batches."""
    title = heading(found)
    legend = "".join(f'<span><i class="{kind}"></i>{words}</span>' for kind, words in _LEGEND)
    parts = [
        f"<h1>{title}</h1>",
        '<p class="from">Each bar is a sequence of the stream that the model reads, dark where it is image, light where it is '
        "text. A sequence's square shows which of its positions (rows) see which (columns).</p>",
        f'<p class="legend">{legend}</p>',
    ]
    left = num_samples
    for number, (batch, counted) in enumerate(zip(step.micro_batches, found["micro_batches"], strict=True)):
        sequences = unpack(batch)
        shown = min(left, len(batch.keys))
        left -= shown
        parts.append(f"<h2>Micro-batch {number + 1} of {len(step.micro_batches)}</h2>")
        parts.append(f"<p>{facts(counted)}</p>")
        parts.append(_stream(batch, sequences, number, shown))
        for sample in range(shown):
            own = [(at, one) for at, one in enumerate(sequences) if one.example == sample]
            parts.append(_sample(batch, number, sample, own, config, corpus, tokenizer))
    parts += [f"<p>{html.escape(of_bad_sample(bad))}</p>" for bad in found["bad_samples"]]
    return page_parts.page(title, "\n".join(parts), _STYLE)


def _stream(batch: PackedBatch, sequences: Sequence[UnpackedSequence], micro_batch: int, num_shown: int) -> str:
    """The whole stream, in rows."""
    height = max(1, -(-batch.num_positions // _ROW)) * (_ROW_HEIGHT + _GAP)
    drawn = []
    for start, one in zip(batch.sequence_starts.tolist(), sequences, strict=False):
        middle, stop = start + len(one.image_rows), start + one.length
        bars = "".join(_bars(start, middle, _kind(one)) + _bars(middle, stop, f"{_kind(one)} text"))
        title = f"<title>{purpose(one)}, {one.length} positions: {html.escape(batch.keys[one.example])}</title>"
        is_shown = one.example < num_shown
        drawn.append(
            f'<a href="#{micro_batch}-{one.example}">{title}{bars}</a>' if is_shown else f"<g>{title}{bars}</g>"
        )
    return f'<svg class="stream" viewBox="0 0 {_ROW} {height}">{"".join(drawn)}</svg>'


def _bars(start: int, stop: int, kind: str) -> list[str]:
    """Rectangles for stream positions start .. stop - 1, one per row they touch."""
    found = []
    while start < stop:
        row, column = divmod(start, _ROW)
        width = min(stop - start, _ROW - column)
        y = row * (_ROW_HEIGHT + _GAP)
        found.append(f'<rect class="{kind}" x="{column}" y="{y}" width="{width}" height="{_ROW_HEIGHT}"/>')
        start += width
    return found


def _kind(sequence: UnpackedSequence) -> str:
    return _KINDS.get(sequence.role, "positive")


def _sample(
    batch: PackedBatch,
    micro_batch: int,
    sample: int,
    sequences: Sequence[tuple[int, UnpackedSequence]],
    config: RunConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
) -> str:
    """One sample: its corrupted image, and a row per sequence."""
    key = batch.keys[sample]
    corrupted = sequences[0][1]
    has_image, has_text = len(corrupted.image_rows) > 0, len(corrupted.token_ids) > 0
    kind = Kind.PAIR if has_image and has_text else Kind.IMAGE if has_image else Kind.TEXT
    figure = _figure(batch, corrupted, sample_number(corpus, key), config, corpus) if has_image else ""
    rows = "\n".join(_row(at, one, corpus, tokenizer) for at, one in sequences)
    title = html.escape(f"{kind.name.lower()} {key}")
    return f'<div class="sample" id="{micro_batch}-{sample}"><h2>{title}</h2>{figure}\n<table>\n{rows}\n</table></div>'


def _figure(batch: PackedBatch, sequence: UnpackedSequence, number: int, config: RunConfig, corpus: Corpus) -> str:
    """The picture with its regions; masked ones are filled."""
    boxes = batch.region_boxes.numpy()[sequence.image_rows, :4].tolist()
    shown = [
        page_parts.rectangle(box, "hidden", "hidden")
        if offset in sequence.masked_regions
        else page_parts.rectangle(box, "visible")
        for offset, box in enumerate(boxes)
        if offset  # the first is the whole image
    ]
    smallest = config.data.smallest_crop
    crop = crops.draw(sequence.seed, smallest=smallest) if smallest < 1 else None
    overlay = page_parts.boxes_overlay(shown)
    jpeg = _jpeg(corpus, number)
    picture = page_parts.picture(jpeg, _PICTURE_SIDE, overlay, crop)
    return f"<div>{picture or page_parts.no_picture(jpeg, _PICTURE_SIDE, _PICTURE_SIDE, overlay)}</div>"


def _jpeg(corpus: Corpus, number: int) -> bytes | None:
    """None if it is not stored; empty if it is damaged, since an image with stored regions is no input of the model."""
    try:
        return corpus.read_jpeg(number)
    except CorruptSample:
        return b""


def _row(at: int, one: UnpackedSequence, corpus: Corpus, tokenizer: Tokenizer) -> str:
    parts = []
    if len(one.image_rows):
        hidden = f", {len(one.masked_regions)} hidden" if one.masked_regions else ""
        parts.append(f"<b>[IMG] {len(one.image_rows) - 1} regions{hidden}</b> ")
    if one.prefix_of >= 0:
        parts.append(f"<b>[sees the image of sequence {one.prefix_of}]</b> ")
    if one.role is SequenceRole.RELATED_IMAGE:
        parts.append(page_parts.picture(_jpeg(corpus, one.related_image), _RELATED_SIDE) or "")
    parts.append(_words(one, tokenizer))
    name = (
        f'<div class="name {_kind(one)}">{purpose(one)}<br><span class="from">{at}: {one.length} positions</span></div>'
    )
    return f'<tr><td>{name}</td><td class="see">{_mask(one)}</td><td class="words">{"".join(parts)}</td></tr>'


def _words(one: UnpackedSequence, tokenizer: Tokenizer) -> str:
    """The tokens; masked ones with their targets, generated ones highlighted."""
    is_written = one.objective is LanguageObjective.SEQUENCE_TO_SEQUENCE
    written_from = one.prefix_length - len(one.image_rows) if is_written else len(one.token_ids)
    tokens = one.token_ids.tolist()

    def part(index: int) -> int:  # each predicted token is its own group
        return -1 if index >= written_from else index if index in one.targets else -2

    shown = []
    for place, run in itertools.groupby(range(len(tokens)), part):
        own = [tokens[index] for index in run]
        words = _text(own, tokenizer)
        if place == -1:
            words = f"<q>{words}</q>"
        elif place >= 0:
            target = one.targets[place]
            words = f"<u>{words}</u>" if own == [target] else f"<u>{words}<i>→{_text([target], tokenizer)}</i></u>"
        shown.append(words)
    return "".join(shown)


def _text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Neighbouring tokens are decoded together, since a character may span several."""
    names = {CLS: "[CLS]", SEP: "[SEP]", tokenizer.mask_id: "[MASK]"}
    shown = []
    for is_named, run in itertools.groupby(tokens, names.__contains__):
        if is_named:
            shown += [f"<b>{names[token]}</b>" for token in run]
        else:
            shown.append(html.escape(tokenizer.decode(list(run))))
    return "".join(shown)


def _mask(one: UnpackedSequence) -> str:
    """Attention mask, queries downwards, keys to the right: a square, or a prefix and a triangle."""
    length, prefix = one.length, one.prefix_length
    path = f"M0 0H{prefix}V{prefix}L{length} {length}H0Z"
    return f'<svg width="{_MASK_SIDE}" height="{_MASK_SIDE}" viewBox="0 0 {length} {length}"><path d="{path}"/></svg>'
