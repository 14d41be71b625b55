"""Shards in, packed batches out. Only `schema` is seen from outside this package's own pipeline.

In the order in which a sample meets them: storage/ (shards, indices, manifest), vision/ (what becomes of an image), `corpus`
(any sample by its number), `mixture` (which sample stands where), `selection` (what is drawn of it), `balance` and `step_plan`
(who reads it), `masking` and `examples` (its sequences), `packing` (one stream), `step_reader`, `loader`, `transport`. prepare/
makes data folders, viewing/ shows them.
"""
