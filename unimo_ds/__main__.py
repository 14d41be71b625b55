"""`unimo`, the same as `python -m unimo_ds`."""

from __future__ import annotations

import sys

from unimo_ds.cli import main
from unimo_ds.utils.starting import watch_start

if __name__ == "__main__":
    if "finetune" in sys.argv[1:3]:  # the one command that trains; a launcher may put an argument in front
        watch_start()
    sys.exit(main())
