"""Shards in, packed batches out. Only `schema` is seen from outside this package's own pipeline."""
