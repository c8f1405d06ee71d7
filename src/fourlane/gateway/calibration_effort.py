"""How long calibration measures, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Effort", "Steps"]

_MOST_STEPS = 206
"""About as many as there are with two ranks a unit."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it is measured.

    Args:
        pass_s: of passes of each load, in each round; pass_rounds: of which the quickest counts.
        services: how many times the service is brought up: no two are equally quick; the median of all counts.
        rounds: of each load of a running service in which others use hardly any of the processors; the median counts.
        Disturbed ones are taken again, up to so many times as many; where all are, the quickest counts.
        output: tokens of each decoding sequence in the running service.
        prompts: of each length.
        pauses: after which it gets a prompt.
        crowded_s: of prompts beside decoding sequences.
    """

    pass_s: float = 0.1
    services: int = 5
    rounds: int = 1
    pass_rounds: int = 5
    output: int = 64
    prompts: int = 8
    pauses: int = 6
    crowded_s: float = 1.0


class Steps:
    """Steps of measuring, counted; how many there will be is known from their kinds."""

    def __init__(self, show: Callable[[int, int, str], None] | None) -> None:
        self._show = show
        self._done = 0

    def __call__(self, text: str) -> None:
        """Begin another step."""
        if self._show is not None:
            self._show(self._done, max(_MOST_STEPS, self._done + 1), text)
        self._done += 1
