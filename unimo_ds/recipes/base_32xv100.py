"""sbatch slurm/base.sh        (or: deepspeed --hostfile HOSTS unimo_ds/train.py --recipe base_32xv100 --data DIR)

The paper's base run: 32 V100 of 32 GB, fp16, initialised from RoBERTa-base, 500,000 steps. `unimo plan --recipe base_32xv100`
estimates its cost. The paper does not publish batch size and contrastive counts; those below are this project's choice.
"""

from __future__ import annotations

from unimo_ds.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

SOURCE_WEIGHTS = {
    # Pairs, in millions of training captions (the unit of UNIMO's and UNITER's statistics): a sample is an image with all its
    # captions, so weighting by samples would underuse Visual Genome's 48 captions per image.
    "coco": 0.533,
    "vg": 5.06,
    "cc": 3.0,
    "sbu": 0.99,
    # Texts, in gigabytes: BookCorpus with Wikipedia, and OpenWebText.
    "books": 16.0,
    "web": 38.0,
    # Images without captions.
    "openimages": 1.0,
}


def base_32xv100() -> RunConfig:
    """12 layers of 768 on 32 V100."""
    return RunConfig(
        recipe="base_32xv100",
        run_dir="runs/base_32xv100",
        model=ModelConfig(initialize_from="pretrained/roberta-base"),
        data=DataConfig(
            path="data/train",
            held_out_path="data/held_out",
            source_weights=SOURCE_WEIGHTS,
            max_text_tokens=512,
            max_regions=100,
            num_workers=4,
        ),
        batch=BatchConfig(global_samples=1024, micro_batch_tokens=32768),
        optimizer=OptimizerConfig(peak_learning_rate=5e-5),
        schedule=ScheduleConfig(total_steps=500_000, warmup_steps=24_000),
        engine=EngineConfig(deepspeed_config="zero1_fp16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3, keep_every=50_000),
        evaluation=EvaluationConfig(every_steps=5000, num_pairs=1000),
        logging=LoggingConfig(every_steps=50),
    )
