"""One file per format that a corpus may come in; `formats.py`, one folder up, knows them by name."""
