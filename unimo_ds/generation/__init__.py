"""Texts from a trained model: given an image, a text, or both. `generate.py` is what others call."""
