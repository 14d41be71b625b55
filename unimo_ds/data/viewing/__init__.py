"""Shows data to people: pages of samples and batches, and what each step reads."""
