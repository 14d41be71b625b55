"""deepspeed --num_accelerators 2 unimo_ds/train.py        (about five minutes on two CPU cores)

The whole path on generated scenes: a three-layer model learns, from scratch, which caption belongs to which drawing.
"""

from __future__ import annotations

from unimo_ds.config import (
    BatchConfig,
    CheckpointConfig,
    ContrastConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)


def demo() -> RunConfig:
    """A tiny model on generated scenes, for two CPU processes."""
    return RunConfig(
        recipe="demo",
        run_dir="runs/demo",
        model=ModelConfig(
            num_layers=3,
            hidden_size=128,
            num_heads=2,
            feed_forward_size=512,
            vocabulary_size=0,
            max_positions=130,
            region_feature_size=0,
            num_region_classes=0,
            # With so few parameters and steps, dropout would only slow down learning and the machine.
            hidden_dropout=0.0,
            attention_dropout=0.0,
        ),
        data=DataConfig(
            path="demo_data/train",
            held_out_path="demo_data/held_out",
            max_text_tokens=128,
            max_regions=36,
            num_workers=1,
        ),
        batch=BatchConfig(global_samples=84, micro_batch_tokens=8192),
        contrast=ContrastConfig(positives=1, sentence_negatives=1, phrase_negatives=1, word_negatives=1),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3),
        schedule=ScheduleConfig(total_steps=400, warmup_steps=40),
        # Sharding does not pay in a model this small: ZeRO stage 1 takes a fifth more time (docs/performance.md).
        engine=EngineConfig(deepspeed_config="zero0_fp32", threads=1),
        # A save delays the ranks by a hundredth of a step.
        checkpoint=CheckpointConfig(every_steps=5, keep_last=2),
        evaluation=EvaluationConfig(every_steps=100, num_pairs=500),
        logging=LoggingConfig(every_steps=10, num_pictures=6, num_embeddings=200),
    )
