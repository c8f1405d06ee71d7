"""How many positions the prompt tokens of a step attend to on the rank that attends to most.

Ranks of a unit step together, so a step lasts as long as on the rank with the longest prompts: with prompts of unlike
lengths far longer than on the mean one. Not for what attending takes (`twin.kernel_times`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.steady.request_mix import RequestMix

    Floats = NDArray[np.float64]

__all__ = ["AttendedPairs"]

_PROMPTS, _CUTS = 16384, 4096


@dataclass(frozen=True, eq=False, slots=True)
class AttendedPairs:
    """Prompts one after the other, as a rank that is never idle computes them.

    Args:
        begin_N: tokens computed before each prompt, and at the end, [prompts + 1].
        pairs_N: positions attended to up to there, [prompts + 1].
        cached_N: tokens of each prompt that are not computed, [prompts].
        chunk: most tokens of a rank in a step. A rank with fewer has whole prompts, one with so many also parts.
    """

    begin_N: Floats
    pairs_N: Floats
    cached_N: Floats
    chunk: float

    @classmethod
    def of(cls, mix: RequestMix, chunk: float) -> AttendedPairs:
        """Line up prompts of a mix, in a fixed order without order."""
        number_N = np.random.default_rng(0).permutation(np.arange(_PROMPTS) % len(mix.input_N))
        new_N, cached_N = mix.new_N[number_N], mix.cached_N[number_N]
        begin_N = np.concatenate([[0.0], np.cumsum(new_N)])
        pairs_N = np.concatenate([[0.0], np.cumsum(new_N * cached_N + new_N * (new_N + 1) / 2)])
        return cls(begin_N, pairs_N, cached_N, chunk)

    def fullest(self, tokens: float, working: float) -> float:
        """Return the greatest of the positions that ranks with so many tokens each attend to, the mean over steps.

        Args:
            tokens: that each working rank has in a step.
            working: ranks that have any. One alone has a prompt of its own, computed from its beginning.
        """
        alone = tokens * (tokens + 1) / 2 + tokens * float(self.cached_N.mean())
        if working <= 1 or (tokens < self.chunk and alone <= tokens * self._mean):
            return alone  # of several, the greatest is no less than the mean
        greatest = float((self._sorted(tokens) * np.diff(np.linspace(0.0, 1.0, _CUTS + 1) ** working)).sum())
        return greatest if tokens >= self.chunk else min(greatest, alone)

    def spread(self, working: float, share_Q: Floats) -> Floats:
        """Return by how much steps of whole chunks are above or below `fullest`, ascending, [shares of steps]."""
        place_Q = (share_Q ** (1.0 / max(1.0, working)) * _CUTS).astype(int)
        found_Q = self._sorted(self.chunk)[np.minimum(place_Q, _CUTS - 1)]
        return found_Q - found_Q.mean()

    def _sorted(self, tokens: float) -> Floats:
        """Return the positions that so many tokens attend to, wherever in the row they are, ascending, [cuts]."""
        first_C = np.linspace(0.0, max(0.0, self.begin_N[-1] - tokens), _CUTS)
        return np.sort(self._upto(first_C + tokens) - self._upto(first_C))

    @property
    def _mean(self) -> float:
        """Return the mean positions that a token attends to."""
        return float(self.pairs_N[-1] / self.begin_N[-1])

    def _upto(self, token_C: Floats) -> Floats:
        """Return the positions attended to up to each token of the row of prompts."""
        prompt_C = np.clip(np.searchsorted(self.begin_N, token_C, side="right") - 1, 0, len(self.cached_N) - 1)
        inside_C = token_C - self.begin_N[prompt_C]
        return self.pairs_N[prompt_C] + inside_C * self.cached_N[prompt_C] + inside_C * (inside_C + 1) / 2
