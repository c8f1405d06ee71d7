"""Run the command line as `python -m fourlane`."""

from __future__ import annotations

import sys

from fourlane.cli import main

if __name__ == "__main__":
    sys.exit(main())
