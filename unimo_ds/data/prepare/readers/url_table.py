"""Captions with the URLs of their images: Conceptual Captions (caption<TAB>url), and SBU as a table, JSON or two lists.

Such a corpus is a list of links, and each downloader names the files differently. `--image-name` gives the pattern:

    {url_file}   last part of the URL's path (the default); unique for SBU's photographs
    {line}       number of the line, from 0; {line:09d} pads it
    {crc32}      CRC-32 of the URL in decimal, as in Google's example downloader: "{line}_{crc32}"
    {md5}        MD5 of the URL in hexadecimal
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from unimo_ds.data.prepare.readers.captions import caption_of
from unimo_ds.data.prepare.readers.files import read_json, read_lines
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError

DEFAULT_NAME = "{url_file}"


def conceptual_captions(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """Lines `caption<TAB>url`, numbered through over several files."""
    return _annotations(settings, report, _table_rows(settings.captions, report))


def sbu(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """sbu-captions-all.json, or the two lists of the first release (..._urls.txt and ..._captions.txt, in this order), or a
    table of caption<TAB>url.
    """
    paths = settings.captions
    if all(path.suffix == ".json" for path in paths):
        rows = _json_rows(paths)
    elif len(paths) == 2 and all(path.suffix == ".txt" for path in paths):
        rows = _list_rows(*paths, report)
    else:
        rows = _table_rows(paths, report)
    return _annotations(settings, report, rows)


class _Row(NamedTuple):
    line: int
    """From 0, numbered through over all files."""
    where: str
    url: str
    caption: object


def _annotations(settings: ImportSettings, report: Report, rows: Iterator[_Row]) -> Iterator[Annotation]:
    pattern = settings.image_name or DEFAULT_NAME
    image_name("http://example.org/a.jpg", 0, pattern)  # refuse an invalid pattern before reading anything
    for row in rows:
        caption = caption_of(row.caption, row.where, report)
        if not row.url:
            report.skip("a line without a URL", row.where)
        elif caption is not None:
            yield Annotation((image_name(row.url, row.line, pattern),), (caption,))


def image_name(url: str, line: int, pattern: str) -> str:
    """The file name of a line's image according to a pattern; the URL if that is empty.

    Raises:
        UserError: an invalid pattern, or one with unknown fields.
    """
    values = {
        "url_file": _file_of(url),
        "line": line,
        "crc32": zlib.crc32(url.encode()),
        "md5": hashlib.md5(url.encode(), usedforsecurity=False).hexdigest(),
    }
    try:
        name = pattern.format_map(values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"--image-name {pattern!r} is not a pattern of {', '.join('{' + name + '}' for name in values)}: {error}"
        ) from None
    return name or url


def _file_of(url: str) -> str:
    try:
        return unquote(urlsplit(url).path).rpartition("/")[2]
    except ValueError:  # such as "http://["
        return ""


def _table_rows(paths: tuple[Path, ...], report: Report) -> Iterator[_Row]:
    before = 0
    for path in paths:
        number = 0
        for number, line in read_lines(path, report):
            caption, _, url = line.partition("\t")
            yield _Row(before + number - 1, f"{path.name}:{number}", url.partition("\t")[0].strip(), caption)
        before += number


def _list_rows(urls: Path, captions: Path, report: Report) -> Iterator[_Row]:
    # Joined by line number: a skipped line that is not UTF-8 must not shift the captions of all later ones.
    url_lines, caption_lines = dict(read_lines(urls, report)), dict(read_lines(captions, report))
    ends = [max(lines, default=0) for lines in (url_lines, caption_lines)]
    if ends[0] != ends[1]:
        raise UserError(f"{urls} has {ends[0]} lines where {captions} has {ends[1]}; they must belong together")
    for number, url in url_lines.items():
        if number in caption_lines:
            yield _Row(number - 1, f"{captions.name}:{number}", url.strip(), caption_lines[number])


def _json_rows(paths: tuple[Path, ...]) -> Iterator[_Row]:
    before = 0
    for path in paths:
        content = read_json(path)
        urls, captions = (content.get(key) if isinstance(content, dict) else None for key in ("image_urls", "captions"))
        if not isinstance(urls, list) or not isinstance(captions, list) or len(urls) != len(captions):
            raise UserError(f"{path} is not SBU's JSON: it needs image_urls and captions, lists of one length")
        for number, (url, caption) in enumerate(zip(urls, captions, strict=True)):
            # Invalid Unicode cannot be a URL.
            is_url = isinstance(url, str) and url.isprintable()
            yield _Row(before + number, f"{path.name}, entry {number}", url if is_url else "", caption)
        before += len(urls)
