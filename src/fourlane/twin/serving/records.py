"""What is written down of steps while a service is simulated."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DecodeLeap", "PrefillStep", "Records"]


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """A prefill unit's step: figures of the fullest rank; `mean`, `total`: tokens of the mean rank, and of all."""

    unit: int
    tokens: int
    pairs: int
    logits: int
    mean: float
    total: int


@dataclass(frozen=True, slots=True)
class DecodeLeap:
    """Steps of a decode unit in which its sequences stay the same: how many, and figures of the fullest rank.

    `rows` and `mean` with drafted tokens; `context` at the first step, `growth` of it in each; `sequences` of all.
    """

    unit: int
    steps: int
    rows: float
    context: float
    growth: float
    mean: float
    sequences: int


class Records:
    """Every step and leap, with its begin and end in seconds."""

    def __init__(self) -> None:
        self.prefill: list[tuple[PrefillStep, float, float]] = []
        self.decode: list[tuple[DecodeLeap, float, float]] = []

    def prefill_step(self, step: PrefillStep, begin: float, end: float) -> None:
        """Write down a step."""
        self.prefill.append((step, begin, end))

    def decode_leap(self, leap: DecodeLeap, begin: float, end: float) -> None:
        """Write down a leap."""
        self.decode.append((leap, begin, end))
