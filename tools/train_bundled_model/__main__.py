"""Command line. The commands, in this order: fetch, corpus, tokenizer, train, export, evaluate. See README.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Read by libraries when they load, hence set before any import of torch: one thread a process; freed memory is kept
# rather than returned to the system between steps (the page faults cost a third of the time); room for the compiled
# kernels of all shapes.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
}
COMMANDS = ("fetch", "corpus", "tokenizer", "train", "export", "evaluate")
_BUNDLED = Path(__file__).parents[2] / "src/fourlane/engine/model/bundled"


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="tools.train_bundled_model", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--stage", choices=("general", "focus"), default="general", help="stage of the training")
    parser.add_argument("--work", type=Path, required=True, help="folder of corpora, checkpoints and logs")
    parser.add_argument("--out", type=Path, help="folder of the exported model", default=_BUNDLED)
    parser.add_argument("--minutes", type=float, default=69.0, help="wall-clock budget of the training")
    parser.add_argument("--warm-start", type=Path, help="checkpoint that the second stage begins with (the first's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a process and step")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)  # noqa: S606 (this very command again)
    from tools.train_bundled_model import stages

    getattr(stages, arguments.command)(arguments)


if __name__ == "__main__":
    main()
