"""What steps take, as tables filled once from a phase's step model: the fixed points of a steady state ask many times.

Between the filled loads times are straight lines. Not for what a step is made of: that is asked of the step model
itself, once the load is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.times import GroupLoad

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import StepTimes
    from fourlane.twin.steady.attended_pairs import AttendedPairs

    Floats = NDArray[np.float64]

__all__ = ["DecodeTable", "PrefillTable", "decode_load", "decode_table", "fullest_of", "prefill_load", "prefill_table"]

_SHARES = (0.02, 0.25, 0.5, 0.75, 1.0)
_SHARES_Y = np.array(_SHARES)
_PREFILL_POINTS, _DECODE_POINTS, _SPREAD = 5, 16, 16
_PREFILL_HIGH = np.array([0.25, 0.5, 0.98, 1.0])
"""Shares of a chunk: a rank with less than one has whole prompts, which attend to less than parts of long ones."""


def _place(grid_X: Floats, at_N: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return for each value the point of the grid before it, and how far it is from there to the next, 0..1."""
    before_N = np.clip(np.searchsorted(grid_X, at_N) - 1, 0, len(grid_X) - 2)
    return before_N, np.clip((at_N - grid_X[before_N]) / (grid_X[before_N + 1] - grid_X[before_N]), 0.0, 1.0)


@dataclass(frozen=True, eq=False, slots=True)
class PrefillTable:
    """Seconds of prefill steps, [fullest rank's tokens, mean rank's as a share of them].

    `pair_s`: by how much a step takes longer for each further position that the fullest rank attends to. `spread_Q`: by
    how much equally likely steps of whole chunks take longer or shorter for the prompts they happen to have, ascending.
    """

    tokens_X: Floats
    seconds_XY: Floats
    pair_s: float
    spread_Q: Floats

    def seconds(self, fullest: float, mean: float) -> float:
        """Return what a step takes with so many tokens on the fullest and on the mean rank."""
        share = min(1.0, mean / fullest) if fullest > 0 else 1.0
        by_tokens = [np.interp(share, _SHARES, row) for row in self.seconds_XY]
        return float(np.interp(fullest, self.tokens_X, by_tokens))

    def blended(self, other: PrefillTable, share: float) -> PrefillTable:
        """Return the table between this and another one of the same loads, at a share of the way to that."""
        seconds_XY = self.seconds_XY * (1 - share) + other.seconds_XY * share
        return PrefillTable(self.tokens_X, seconds_XY, self.pair_s, self.spread_Q)

    def row(self, fullest_N: Floats, mean: float) -> Floats:
        """Return what steps take with so many tokens on the fullest rank each, and as many on the mean one."""
        x_N, along_N = _place(self.tokens_X, fullest_N)
        y_N, across_N = _place(_SHARES_Y, np.minimum(1.0, mean / fullest_N))
        table = self.seconds_XY
        low_N = table[x_N, y_N] * (1 - across_N) + table[x_N, y_N + 1] * across_N
        high_N = table[x_N + 1, y_N] * (1 - across_N) + table[x_N + 1, y_N + 1] * across_N
        return low_N * (1 - along_N) + high_N * along_N

    def steps(self, fullest_Q: Floats, mean: float) -> Floats:
        """Return the lengths of equally likely steps, those of whole chunks as unlike as their prompts make them."""
        seconds_Q = self.row(fullest_Q, mean)
        whole_Q = fullest_Q >= self.tokens_X[-1]
        likely_Q = (np.arange(whole_Q.sum()) + 0.5) / max(1, whole_Q.sum()) * len(self.spread_Q)
        seconds_Q[whole_Q] += self.spread_Q[likely_Q.astype(int)]
        return seconds_Q

    def alone(self, tokens_N: Floats, ranks: int) -> Floats:
        """Return what steps take in which one rank of so many has tokens, 0 where it has none."""
        by_tokens = [np.interp(1.0 / ranks, _SHARES, row) for row in self.seconds_XY]
        return np.where(tokens_N > 0, np.interp(tokens_N, self.tokens_X, by_tokens), 0.0)

    def prompts(self, tokens_N: Floats, ranks: int, chunk: float) -> Floats:
        """Return what prompts take that are computed in chunks, in steps of their own."""
        whole_N, rest_N = np.divmod(tokens_N, chunk)
        before_N = chunk * chunk * whole_N * (whole_N - 1) / 2 + whole_N * chunk * rest_N
        one_s = self.seconds(chunk, chunk / ranks)
        return whole_N * one_s + self.alone(rest_N, ranks) + before_N * self.pair_s


@dataclass(frozen=True, eq=False, slots=True)
class DecodeTable:
    """Seconds of decode steps by sequences on the mean rank, [sequences]."""

    sequences_X: Floats
    seconds_X: Floats

    def seconds(self, sequences: float) -> float:
        """Return what a step takes with so many sequences a rank."""
        return float(np.interp(sequences, self.sequences_X, self.seconds_X))

    def blended(self, other: DecodeTable, share: float) -> DecodeTable:
        """Return the table between this and another one of the same loads, at a share of the way to that."""
        return DecodeTable(self.sequences_X, self.seconds_X * (1 - share) + other.seconds_X * share)

    def sequences(self, begun: float) -> float:
        """Return the sequences a rank has under way if so many steps of sequences begin a second."""
        flow_X = np.maximum.accumulate(self.sequences_X / self.seconds_X)
        if begun < flow_X[0]:
            return begun * float(self.seconds_X[0])
        return float(np.interp(begun, flow_X, self.sequences_X))


def prefill_load(ranks: int, *, fullest: float, mean: float, pairs: float, prompt: float) -> GroupLoad:
    """Return the load of a prefill step.

    Args:
        ranks: of a unit.
        fullest, mean: prompt tokens of the fullest and the mean rank.
        pairs: positions attended to on the rank that attends to most.
        prompt: tokens of a prompt that are computed; as many prompts end in a step as go into its tokens.
    """
    return GroupLoad(
        ranks=ranks,
        prefill_tokens=fullest,
        prefill_pairs=pairs,
        decode_tokens=0.0,
        decode_context=0.0,
        logits=max(1.0, fullest / prompt),
        tokens=mean,
    )


def decode_load(ranks: int, *, fullest: float, mean: float, context: float, rows: float) -> GroupLoad:
    """Return the load of a decode step.

    Args:
        ranks: of a unit.
        fullest, mean: sequences of the fullest and the mean rank.
        context: positions a sequence has in its cache.
        rows: tokens a sequence computes a step, drafted ones included.
    """
    return GroupLoad(
        ranks=ranks,
        prefill_tokens=0.0,
        prefill_pairs=0.0,
        decode_tokens=fullest * rows,
        decode_context=fullest * context,
        logits=fullest * rows,
        tokens=mean * rows,
    )


def prefill_table(steps: StepTimes, ranks: int, *, most: float, attended: AttendedPairs, prompt: float) -> PrefillTable:
    """Fill a table up to `most` tokens a rank, with the positions that prompts attend to; else as of `prefill_load`."""
    most = max(2.0, most)
    low_X = np.geomspace(1.0, max(1.0, most / 8), _PREFILL_POINTS)
    tokens_X = np.unique(np.concatenate([low_X, most * _PREFILL_HIGH]))

    def seconds(fullest: float, share: float, more: float = 0.0) -> float:
        pairs = attended.fullest(fullest, max(1.0, share * ranks)) + more
        load = prefill_load(ranks, fullest=fullest, mean=fullest * share, pairs=pairs, prompt=prompt)
        return steps.step(load).seconds

    seconds_XY = [[seconds(fullest, share) for share in _SHARES] for fullest in tokens_X.tolist()]
    last, more = float(tokens_X[-1]), float(tokens_X[-1]) ** 2
    pair_s = (seconds(last, _SHARES[0], more) - seconds_XY[-1][0]) / more
    share_Q = (np.arange(_SPREAD) + 0.5) / _SPREAD
    return PrefillTable(
        tokens_X, np.array(seconds_XY), max(0.0, pair_s), attended.spread(ranks, share_Q) * max(0.0, pair_s)
    )


def decode_table(steps: StepTimes, ranks: int, *, most: float, context: float, rows: float) -> DecodeTable:
    """Fill a table up to `most` sequences a rank; other arguments as of `decode_load`."""
    sequences_X = np.unique(np.geomspace(1.0 / ranks, max(2.0, most), _DECODE_POINTS))
    seconds_X = [
        steps.step(decode_load(ranks, fullest=fullest_of(mean), mean=mean, context=context, rows=rows)).seconds
        for mean in sequences_X.tolist()
    ]
    return DecodeTable(sequences_X, np.array(seconds_X))


def fullest_of(mean: float) -> float:
    """Return the sequences of the fullest of ranks kept equally full: whole ones, which end when they will."""
    return max(1.0, mean + min(1.0, mean))
