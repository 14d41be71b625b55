"""`unimo`, the same as `python -m unimo_ds`."""

from __future__ import annotations

import sys

from unimo_ds.cli import main
from unimo_ds.utils.starting import watch_start

if __name__ == "__main__":
    if "finetune" in sys.argv[1:3]:  # the only one that trains; a launcher may insert an argument before it
        watch_start()
    sys.exit(main())
