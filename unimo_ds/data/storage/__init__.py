"""Data folders: shards, their indices and the manifest over them, on a disk or at a URL."""
