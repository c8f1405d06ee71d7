"""What a person is shown: tables on a terminal, plots in files. Knows figures, not where they came from."""

from __future__ import annotations

__all__: list[str] = []
