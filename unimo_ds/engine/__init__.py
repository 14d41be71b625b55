"""The trainer's engine: the only importer of DeepSpeed."""

import logging

# At its import, before its level can be set, DeepSpeed says on stdout of every rank that it found no GPU.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: not record.getMessage().startswith("Setting accelerator to CPU")
)
