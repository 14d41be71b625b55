"""Measures of the field, by its own packages wherever one runs offline. All values are shares: 0.95, not 95."""
