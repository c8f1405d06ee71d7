"""Environments of communication libraries: what a plan wants them to be, and what they really do."""

from __future__ import annotations

__all__: list[str] = []
