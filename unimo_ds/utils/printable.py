"""Texts on their way to a terminal or a page: a file's name need not be Unicode, and what is shown must be."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text, with bytes that are no Unicode spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()
