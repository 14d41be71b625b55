"""Pure functions from model outputs and targets to (sum, count): the engine divides once, by the count over all ranks."""
