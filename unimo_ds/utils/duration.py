"""Durations for people."""

from __future__ import annotations


def duration(days: float) -> str:
    """In the unit that people would use."""
    if days < 1 / 960:
        return f"{days * 24 * 3600:.2g} s"
    if days < 1 / 16:
        return f"{days * 24 * 60:.2g} min"
    return f"{days * 24:.2g} h" if days < 0.95 else f"{days:,.1f} days"
