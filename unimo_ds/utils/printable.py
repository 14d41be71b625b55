"""Texts that are no Unicode, as names of files and escapes of JSON may be: what is shown, tokenised or stored must be."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """False where it holds half of a surrogate pair, which can be spelt in JSON, but neither tokenised nor stored."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """The text, with bytes that are no Unicode spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()
