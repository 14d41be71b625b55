"""Metrics, from each field's own packages wherever these run offline. All values are fractions: 0.95, not 95."""
