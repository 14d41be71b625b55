"""Shards in, packed batches out. Models, losses and the engine need only `schema`.

In the order of processing: storage/ (shards, indices, manifest), vision/ (images to regions), `corpus` (any sample by its
number), `mixture` (which sample is at which position), `selection` (what is drawn from it), `balance` and `step_plan` (which
rank reads it), `masking` and `examples` (its sequences), `packing` (one stream), `step_reader`, `loader`, `transport`. prepare/
makes data folders, viewing/ shows them.
"""
