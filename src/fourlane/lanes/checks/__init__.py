"""The proofs of `fourlane.lanes.check`, by subject; each yields what it has found wrong."""

from __future__ import annotations

__all__: list[str] = []
