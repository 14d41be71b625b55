"""A trained model in the forms that others take."""

SHARD_GB = 5.0
"""Weights of more than that are split over several files."""
