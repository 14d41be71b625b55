"""deepspeed --num_accelerators 1 unimo_ds/train.py --recipe single_gpu --data DIR --set model.initialize_from=roberta-base

The base model on one GPU with bfloat16 (compute capability 8 or higher) and at least about 40 GB.
"""

from __future__ import annotations

from unimo_ds.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
)


def single_gpu() -> RunConfig:
    """12 layers of 768 in bfloat16 on one GPU; the sizes of vocabulary and regions come from the data."""
    return RunConfig(
        recipe="single_gpu",
        run_dir="runs/single_gpu",
        model=ModelConfig(vocabulary_size=0, region_feature_size=0, num_region_classes=0),
        data=DataConfig(max_text_tokens=512, max_regions=100, num_workers=4),
        batch=BatchConfig(global_samples=256, micro_batch_tokens=65536),
        schedule=ScheduleConfig(total_steps=100_000, warmup_steps=5_000),
        engine=EngineConfig(deepspeed_config="zero1_bf16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
        evaluation=EvaluationConfig(every_steps=2000, num_pairs=1000),
    )
