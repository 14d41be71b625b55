"""Pure functions from model outputs and targets to sums; `engine/step.py` divides once, by counts over all ranks."""
