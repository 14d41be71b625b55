"""A task turns model outputs and a packed batch into named losses; the engine's step is independent of modality."""
