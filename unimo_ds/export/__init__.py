"""A trained model in formats that other software reads."""

SHARD_BYTES = 5 * 10**9
"""Larger weights are split over several files."""
