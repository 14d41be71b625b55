"""One rank of fine-tunings that are refused, one after the other: prints the name of each, what this rank told, and its status.

    torchrun --nproc-per-node 2 tests/finetune/refused_worker.py CASES

CASES: JSON, name -> words after `unimo`; `{rank}` in them is this rank's number.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from unimo_ds import cli
from unimo_ds.utils.running import run_command


def main() -> None:
    rank = os.environ["RANK"]
    for name, words in json.loads(Path(sys.argv[1]).read_text()).items():
        with tempfile.TemporaryFile("w+") as told:
            with contextlib.redirect_stderr(told):
                status = cli.main([word.replace("{rank}", rank) for word in words])
            told.seek(0)
            errors = [line for line in told if line.startswith("error: ")]
        # One write a line: ranks share the pipe.
        sys.stdout.write(json.dumps({"case": name, "rank": rank, "status": status, "errors": errors}) + "\n")
        sys.stdout.flush()
    del sys.last_value  # what was refused was expected, so this process ends well


if __name__ == "__main__":
    sys.exit(run_command(main))
