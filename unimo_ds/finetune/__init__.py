"""Fine-tuning: one file per task in `tasks/`, one loop for all of them, which is pre-training's."""
