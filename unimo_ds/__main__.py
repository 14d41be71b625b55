"""`unimo`, the same as `python -m unimo_ds`."""

from __future__ import annotations

import sys

from unimo_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
