"""UNIMO pre-training: one Transformer for images, texts and pairs, aligned by cross-modal contrastive learning."""

from unimo_ds.huggingface import announce

__version__ = "0.1.0"

announce()
