"""Leaves that anyone may import: errors, counter-based randomness, communication, input and output."""
