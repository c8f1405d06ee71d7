"""What steps of one and of two streams take, learnt from those that ran, by their load.

Times of single-stream steps are taken to be a + b * prefill tokens + c * decode tokens, of which a part is
communication that other work could hide; from the two follows what two streams would take. Plain Python
arithmetic in a fixed order throughout: ranks on different machines must come to the same bits.
Not for what to do about it (`overlap`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WINDOW", "Fit", "Line", "Load", "Sample", "Times", "median", "two_streams"]

WINDOW = 15
"""Latest steps of each mode in a class of loads; their median counts."""
PRIOR_FIXED = 0.3
"""Share of a step's time taken to be there at any load, until steps of different loads say otherwise."""
PRIOR_WEIGHT = 0.02
"""What that is worth, in steps observed."""


class Load(NamedTuple):
    """Tokens of a step: halfway between those of the fullest rank (attention) and of the mean (experts)."""

    prefill: float
    decode: float

    @property
    def tokens(self) -> float:
        """Return the tokens of both phases."""
        return self.prefill + self.decode

    @property
    def key(self) -> tuple[int, int]:
        """Return the class of like loads: by phase, tokens within a factor of two."""
        return int(self.prefill).bit_length(), int(self.decode).bit_length()

    @classmethod
    def over(cls, prefill_G: Sequence[int], decode_G: Sequence[int]) -> Load:
        """Return the load of a group from its ranks' tokens."""
        return cls(_between(prefill_G), _between(decode_G))


def _between(tokens_G: Sequence[int]) -> float:
    return (max(tokens_G) + sum(tokens_G) / len(tokens_G)) / 2


class Sample(NamedTuple):
    """One step that ran. Units: seconds; hideable: seconds of communication in which nobody computed."""

    load: Load
    seconds: float
    hideable: float


class Line(NamedTuple):
    """fixed + prefill * tokens + decode * tokens."""

    fixed: float
    prefill: float
    decode: float

    def at(self, load: Load) -> float:
        """Return the value at a load."""
        return self.fixed + self.prefill * load.prefill + self.decode * load.decode


def median(values: list[float]) -> float:
    """Return the middle of values, the lower of two."""
    return sorted(values)[(len(values) - 1) // 2]


class Times:
    """Steps of like load: the latest of each mode, and how many there were."""

    def __init__(self) -> None:
        self.steps = 0
        self._steps: dict[bool, deque[Sample]] = {dual: deque(maxlen=WINDOW) for dual in (False, True)}
        self._fit: Fit | None = None
        self._scale: dict[bool, float | None] = {}

    def add(self, sample: Sample, *, dual: bool) -> None:
        """Take a step that ran in a mode."""
        self.steps += 1
        self._steps[dual].append(sample)
        self._scale.pop(dual, None)

    def count(self, *, dual: bool) -> int:
        """Return how many of a mode's latest steps are known."""
        return len(self._steps[dual])

    def forget(self, *, dual: bool) -> None:
        """Drop the steps of a mode: it is to be tried anew."""
        self._steps[dual].clear()
        self._scale.pop(dual, None)

    def scale(self, fit: Fit, *, dual: bool) -> float | None:
        """Return what steps of a mode took over what the fit says of single-stream ones; None of fewer than two."""
        if fit is not self._fit:
            self._fit = fit
            self._scale.clear()
        if dual not in self._scale:
            ratios = [step.seconds / max(fit.seconds.at(step.load), 1e-9) for step in self._steps[dual]]
            self._scale[dual] = median(ratios) if len(ratios) > 1 else None
        return self._scale[dual]

    def mean(self) -> tuple[Sample, int] | None:
        """Return the middle step of single stream - each figure for itself - and how many there are."""
        steps = self._steps[False]
        if not steps:
            return None
        prefill, decode = (median([step.load[phase] for step in steps]) for phase in (0, 1))
        seconds, hideable = median([step.seconds for step in steps]), median([step.hideable for step in steps])
        return Sample(Load(prefill, decode), seconds, hideable), len(steps)


class Fit(NamedTuple):
    """Single-stream steps at any load: all of their time, and what of it could be hidden."""

    seconds: Line
    hideable: Line

    @classmethod
    def to(cls, classes: Sequence[Times]) -> Fit | None:
        """Fit classes of loads, each with the weight of its steps; None without any."""
        points = [mean for each in classes if (mean := each.mean()) is not None]
        if not points:
            return None
        loads = [(sample.load, weight / max(sample.seconds, 1e-9) ** 2) for sample, weight in points]
        seconds = _fit(loads, [sample.seconds for sample, _ in points])
        return cls(seconds, _fit(loads, [sample.hideable for sample, _ in points]))

    def gain(self, load: Load, *, scale: float, layers: int) -> tuple[float, float]:
        """Return by what factor two streams are faster at a load, as predicted and at the very best.

        Args:
            load: of the step.
            scale: what steps like it take over what this fit says.
            layers: of the model that exchange tokens.
        """
        single = max(self.seconds.at(load) * scale, 1e-9)
        hideable = min(max(self.hideable.at(load) * scale, 0.0), single)
        fixed = self.seconds.fixed * scale
        fixed_hideable = min(self.hideable.fixed * scale, fixed)
        dual = two_streams(
            single - hideable, hideable, again=fixed - fixed_hideable, hideable_again=fixed_hideable, layers=layers
        )
        return single / dual, single / max(single - hideable, hideable)


def two_streams(
    computing: float, hideable: float, *, again: float = 0.0, hideable_again: float = 0.0, layers: int
) -> float:
    """Return what a step takes in two streams.

    Each half pays what does not depend on its tokens, so that is there twice. Then the longer of computing
    and communicating hides the other, except for one part of it while the pipeline fills and drains.

    Args:
        computing: seconds of a single-stream step that cannot be hidden.
        hideable: seconds of it in which nobody computed.
        again: seconds of computing that do not depend on the tokens.
        hideable_again: the same of what is hideable.
        layers: of the model that exchange tokens, twice each.
    """
    longer = max(computing + again, hideable + hideable_again)
    shorter = min(computing + again, hideable + hideable_again)
    return longer + shorter / (2 * max(1, layers))


def _fit(loads: list[tuple[Load, float]], values: list[float]) -> Line:
    """Return the line nearest to values, none of its parts negative.

    What the values do not say is filled in by the prior: a share is fixed, each token costs the same.
    """
    total = sum(weight for _, weight in loads)
    mean = sum(weight * value for (_, weight), value in zip(loads, values, strict=True)) / total
    tokens = sum(weight * load.tokens for load, weight in loads) / total
    slope = (1 - PRIOR_FIXED) * mean / max(tokens, 1e-9)
    prior = (PRIOR_FIXED * mean, slope, slope)
    ridge = PRIOR_WEIGHT * total / max(1.0, sum(1.0 for _ in loads))
    scale = (1.0, tokens, tokens)
    free = [0, 1, 2]
    while free:
        found = _least_squares(loads, values, prior=prior, ridge=ridge, scale=scale, free=free)
        worst = min(free, key=lambda part: found[part] * scale[part])
        if found[worst] >= 0:
            return Line(*found)
        free.remove(worst)
    return Line(0.0, 0.0, 0.0)


def _least_squares(
    loads: list[tuple[Load, float]],
    values: list[float],
    *,
    prior: tuple[float, ...],
    ridge: float,
    scale: tuple[float, ...],
    free: list[int],
) -> list[float]:
    """Solve the normal equations for the free parts, drawn to the prior by `ridge`; the others are 0."""
    matrix = [[0.0] * (len(free) + 1) for _ in free]
    for (load, weight), value in zip(loads, values, strict=True):
        row = (1.0, load.prefill, load.decode)
        for i, part in enumerate(free):
            for j, other in enumerate(free):
                matrix[i][j] += weight * row[part] * row[other]
            matrix[i][-1] += weight * row[part] * value
    for i, part in enumerate(free):
        pull = ridge * max(scale[part], 1e-9) ** 2
        matrix[i][i] += pull
        matrix[i][-1] += pull * prior[part]
    result = [0.0, 0.0, 0.0]
    for part, value in zip(free, _solve(matrix), strict=True):
        result[part] = value
    return result


def _solve(matrix: list[list[float]]) -> list[float]:
    """Solve a small positive definite system, right side last in each row, by Gauss and Jordan."""
    size = len(matrix)
    for i in range(size):
        pivot = matrix[i][i]
        matrix[i] = [value / pivot for value in matrix[i]]
        for j in range(size):
            if j != i:
                factor = matrix[j][i]
                matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [row[-1] for row in matrix]
