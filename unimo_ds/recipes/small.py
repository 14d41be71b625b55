"""unimo prepare import --kind pairs --images photos.tar --captions captions.tsv --output photos
deepspeed --num_accelerators 2 unimo_ds/train.py --recipe small --data photos --set data.held_out_path=photos_held_out

Photographs with grid regions, from scratch, on one machine of two cores: half an hour for some thousand photographs.
"""

from __future__ import annotations

from unimo_ds.config import (
    BatchConfig,
    CheckpointConfig,
    ContrastConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    KindWeights,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)


def small() -> RunConfig:
    """A two-layer model on photographs, for two CPU processes and half an hour."""
    return RunConfig(
        recipe="small",
        run_dir="runs/small",
        model=ModelConfig(
            # Twice the layers take over twice the time; half an hour is better spent on more samples (docs/experiments.md).
            num_layers=2,
            hidden_size=256,
            num_heads=4,
            feed_forward_size=1024,
            vocabulary_size=0,
            max_positions=130,
            region_feature_size=0,
            num_region_classes=0,
            hidden_dropout=0.1,
            attention_dropout=0.0,
        ),
        data=DataConfig(
            # Many small collections have only pairs. If there are texts or images too, give them a weight:
            # --set data.kind_weights.text=1 --set data.kind_weights.image=1
            kind_weights=KindWeights(image=0.0, text=0.0, pair=1.0),
            max_text_tokens=128,
            num_workers=1,
        ),
        # From scratch, updates matter more than negatives: half the batch and twice the steps doubled recall.
        batch=BatchConfig(global_samples=64, micro_batch_tokens=16384),
        contrast=ContrastConfig(
            # Encoded alone, a rewrite costs only its words; jointly, a pass over the image as well.
            rewrites="single",
            form="log_each",
            positives=2,
            sentence_negatives=1,
            phrase_negatives=0,
            word_negatives=0,
            related_images=0,
            related_texts=0,
        ),
        optimizer=OptimizerConfig(peak_learning_rate=1.5e-3, weight_decay=0.05),
        schedule=ScheduleConfig(total_steps=3000, warmup_steps=100),
        # Sharding does not pay in a model this small: ZeRO stage 1 takes a fifth more time (docs/performance.md).
        engine=EngineConfig(deepspeed_config="zero0_fp32", threads=1),
        checkpoint=CheckpointConfig(every_steps=250, keep_last=2),
        evaluation=EvaluationConfig(every_steps=250, num_pairs=500),
        logging=LoggingConfig(every_steps=10),
    )
