"""Common parts of pages about data: one file without scripts or external content; pictures are decoded and encoded again.

So only pixels get from a shard into a browser. Code that writes a page must escape every text of the corpus.
"""

from __future__ import annotations

import base64
import html

from PIL import Image

from unimo_ds.data.vision import images
from unimo_ds.data.vision.crops import Crop

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 66em; padding: 0 1em; color: #222 }
h1 { font-size: 1.25em } h2 { font-size: 1.05em; margin: 1.6em 0 .4em }
figure { margin: 0; position: relative; display: inline-block }
figure img, figure .blank { display: block; max-width: 100% } .blank { background: #ddd }
figure svg { position: absolute; inset: 0; width: 100%; height: 100% }
figure rect { fill: none; stroke: #e6550d; stroke-width: 1.5; vector-effect: non-scaling-stroke; pointer-events: all }
figure rect:hover { fill: #fd8d3c55; stroke: #a63603 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2em .7em; vertical-align: top }
tr { border-top: 1px solid #ddd } .from { color: #777; font-size: .85em }
"""


def page(title: str, body: str, style: str = "") -> str:
    """An HTML document. body: markup, already escaped; title: plain text; style: CSS rules besides the common ones."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{_STYLE}{style}</style></head>
<body>
{body}
</body></html>
"""


def picture(jpeg: bytes | None, side: int, overlay: str = "", crop: Crop | None = None) -> str | None:
    """A figure of an image, at most `side` pixels long, with markup drawn over it; None if it is missing or damaged.

    crop: the part that is shown.
    """
    if jpeg is None:
        return None
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    try:
        shown = images.decode(jpeg, shrink_to=round(side / min(right - left, bottom - top)))
    except images.BadImage:
        return None
    if crop is not None:
        width, height = shown.size
        box = round(left * width), round(top * height), round(right * width), round(bottom * height)
        shown = shown.crop((*box[:2], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))
    shown.thumbnail((side, side), Image.Resampling.BICUBIC)
    data = base64.b64encode(images.encode_jpeg(shown, quality=85)).decode("ascii")
    tag = f'<img width="{shown.width}" height="{shown.height}" alt="" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{tag}{overlay}</figure>"


def no_picture(jpeg: bytes | None, width: int, height: int, overlay: str = "") -> str:
    """A grey figure in place of an image that is missing or damaged, and which of both; sizes in pixels."""
    note = "the picture is not stored (import with --keep-images)" if jpeg is None else "the picture cannot be decoded"
    figure = f'<figure><div class="blank" style="width:{width}px;height:{height}px"></div>{overlay}</figure>'
    return f'{figure}\n<p class="from">{note}</p>'


def boxes_overlay(rectangles: list[str]) -> str:
    """SVG over a picture; rectangles are in fractions of its width and height."""
    return f'<svg viewBox="0 0 1 1" preserveAspectRatio="none">{"".join(rectangles)}</svg>'


def rectangle(box: list[float], title: str, kind: str = "") -> str:
    """box: x1, y1, x2, y2 as fractions. title: markup shown on hover. kind: its CSS class."""
    x1, y1, x2, y2 = box
    name = f' class="{kind}"' if kind else ""
    size = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
    return f"<rect{name} {size}><title>{title}</title></rect>"
