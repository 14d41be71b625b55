"""A trained model in the forms that others take."""

SHARD_BYTES = 5 * 10**9
"""Weights of more than that are split over several files."""
