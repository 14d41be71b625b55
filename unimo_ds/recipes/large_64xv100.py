"""sbatch slurm/large.sh        (or: deepspeed --hostfile HOSTS unimo_ds/train.py --recipe large_64xv100 --data DIR)

The paper's large run: 64 V100 of 32 GB, fp16, initialised from RoBERTa-large, 500,000 steps.
"""

from __future__ import annotations

import dataclasses

from unimo_ds.config import RunConfig
from unimo_ds.recipes.base_32xv100 import base_32xv100


def large_64xv100() -> RunConfig:
    """24 layers of 1024 on 64 V100: the base run with a larger model, a longer warm-up and smaller micro-batches."""
    base = base_32xv100()
    return dataclasses.replace(
        base,
        recipe="large_64xv100",
        run_dir="runs/large_64xv100",
        model=dataclasses.replace(
            base.model,
            num_layers=24,
            hidden_size=1024,
            num_heads=16,
            feed_forward_size=4096,
            initialize_from="pretrained/roberta-large",
        ),
        # Activations per token are 2.7 times the base model's; 64 ranks halve the positions per rank.
        batch=dataclasses.replace(base.batch, micro_batch_tokens=16384),
        schedule=dataclasses.replace(base.schedule, warmup_steps=30_000),
    )
