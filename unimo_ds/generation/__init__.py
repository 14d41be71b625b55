"""Texts from a trained model, given an image, a text, or both. The entry point is `generate.py`."""
