"""Modules that any other may import: errors, counter-based randomness, communication, files."""
