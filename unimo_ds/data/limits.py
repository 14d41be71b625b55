"""Limits of a stored sample: anything larger is refused before memory is allocated for it."""

MAX_MEMBER_BYTES = 256 * 2**20
MAX_JSON_BYTES = 16 * 2**20
MAX_REGIONS = 1024
MAX_FEATURE_SIZE = 16384
MAX_CLASSES_PER_REGION = 1024
