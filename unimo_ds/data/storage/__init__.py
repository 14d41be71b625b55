"""Data folders: shards, their indices and the manifest of them all, on a disk or at a URL."""
