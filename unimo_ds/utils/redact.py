"""Secrets never reach a log, a run directory or a terminal: what looks like one in a URL or an argument is replaced by `BLOT`.

Credentials belong in the environment or in fsspec's own configuration, neither of which is ever written down. This is for those
that are in a URL all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BLOT = "***"
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NAMED = re.compile(
    r"(?i)((?:password|passwd|secret|token(?!iz)|(?:api|access|account)[_-]?key|credential|signature)[\w.-]{0,200}|\b(?:sig|sas))"
    r"(=|: ?)([^\s&'\",;]+)"
)
"""Linear in the length of a text, which a name chosen by others may have: what precedes the word is not matched."""
_KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,})")
"""Tokens of Hugging Face, GitHub, AWS and others with a known prefix."""
_PLAIN = re.compile(r"(?i)true|false|none|null|\d{1,9}(\.\d*)?")
"""Values that are not secrets: `mask_token_share=0.8`, `batch.micro_batch_tokens=16384`."""


def redact(text: str) -> str:
    """`text` without user information in URLs, values of parameters named like secrets, and known kinds of tokens."""
    text = _USER_INFO.sub(BLOT, text)
    text = _NAMED.sub(lambda found: found[0] if _PLAIN.fullmatch(found[3]) else f"{found[1]}{found[2]}{BLOT}", text)
    return _KNOWN.sub(BLOT, text)


def redacted(value: Any) -> Any:
    """The same for every text in nested dictionaries and lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value
