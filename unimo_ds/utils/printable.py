"""Names of files and escapes in JSON need not be valid Unicode; what is shown, tokenised or stored must be."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but the tab and the end of a line."""


def is_unicode(text: str) -> bool:
    """False if it holds half of a surrogate pair, which JSON can escape, but which can neither be tokenised nor stored."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """The text, with what is not Unicode as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def for_terminal(text: str) -> str:
    """`printable`, with control characters as backslash escapes too: those in a name or caption would reach the terminal as
    commands, which rewrite what stands there, its title or the clipboard."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", printable(text))
