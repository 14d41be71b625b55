"""Names of files and escapes in JSON need not be valid Unicode; what is shown, tokenised or stored must be."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """False if it holds half of a surrogate pair, which JSON can escape, but which can neither be tokenised nor stored."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """The text, with what is not Unicode as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
