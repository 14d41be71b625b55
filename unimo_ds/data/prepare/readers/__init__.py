"""One file per corpus format; `formats.py`, one folder up, lists them by name."""
