"""Statistics of expert loads, kept as steps go by: windows, a fading average, change; prefill and decode apart.

A load is the tokens each expert got, [layers, experts]. Adding a step costs tens of microseconds. What is kept is
bounded: the last closed windows, sums, and one average; correlation and drift are those of successive windows.
Not for files (`spec.expert_files`), nor for deciding anything (`policy.placement`, `policy.advice`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PHASES", "LoadHistory", "LoadStatistics", "Phase", "PhaseStatistics", "correlation_of", "moved_share"]

Phase = Literal["prefill", "decode", "mixed"]
PHASES: tuple[Phase, Phase] = ("prefill", "decode")


@dataclass(frozen=True, eq=False)
class LoadHistory:
    """Successive windows of one phase's loads, oldest first: what a dump holds, in memory.

    Args:
        load_WLE: [windows, layers, experts] tokens each expert got.
        phase: whose tokens; "mixed" where prefill and decode were not kept apart, or nobody said.
        window_steps: steps a window, None if unknown.
        source: where the loads come from, for people.

    Raises:
        BalanceInputError: not three-dimensional, empty, negative, infinite or not a number.
    """

    load_WLE: NDArray[Any]
    phase: Phase = "mixed"
    window_steps: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        load_WLE = np.array(self.load_WLE)
        if load_WLE.dtype.kind not in "iuf" or load_WLE.ndim != 3 or 0 in load_WLE.shape:
            raise BalanceInputError(
                f"load_WLE: expected numbers of shape [windows, layers, experts], none of them 0, "
                f"got {load_WLE.dtype} of shape {list(load_WLE.shape)}"
            )
        load_WLE = load_WLE.astype(np.float64 if load_WLE.dtype.kind == "f" else np.int64)
        wrong = np.argwhere(~np.isfinite(load_WLE) | (load_WLE < 0))
        if wrong.size:
            window, layer, expert = wrong[0].tolist()
            raise BalanceInputError(
                f"load_WLE: expected loads of 0 or more, got {load_WLE[window, layer, expert]} in window {window}, "
                f"layer {layer}, expert {expert} (and {len(wrong) - 1} more)"
            )
        if self.phase not in get_args(Phase):
            raise BalanceInputError(f'phase: expected "prefill", "decode" or "mixed", got "{self.phase}"')
        load_WLE.setflags(write=False)
        object.__setattr__(self, "load_WLE", load_WLE)

    @property
    def windows(self) -> int:
        """Return the number of windows."""
        return self.load_WLE.shape[0]

    @property
    def layers(self) -> int:
        """Return the number of layers with experts."""
        return self.load_WLE.shape[1]

    @property
    def experts(self) -> int:
        """Return the number of logical experts a layer."""
        return self.load_WLE.shape[2]

    @property
    def load_LE(self) -> NDArray[Any]:  # noqa: N802 - a shape suffix
        """Return the load over all windows, [layers, experts]."""
        return self.load_WLE.sum(axis=0)

    @property
    def lag_one_L(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        """Return the mean correlation of successive windows, [layers]; NaN where there is none."""
        return self._over_pairs(correlation_of)

    @property
    def drift_L(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        """Return the mean share of the load that changed experts from window to window, [layers]; NaN where none is."""
        return self._over_pairs(moved_share)

    def _over_pairs(self, measure: Any) -> NDArray[np.float64]:
        mean = _Mean(self.layers)
        for window in range(1, self.windows):
            mean.add(measure(self.load_WLE[window - 1], self.load_WLE[window]))
        return mean.value_L


class LoadStatistics:
    """Loads of one phase of one model.

    Args:
        layers: layers with experts.
        experts: logical experts a layer.
        window: steps a window.
        half_life: steps after which a step weighs half as much in `ewma_LE`.
        keep: closed windows kept.

    Raises:
        BalanceInputError: an argument below 1.
    """

    def __init__(
        self, layers: int, experts: int, *, window: int = 1000, half_life: float = 1000.0, keep: int = 16
    ) -> None:
        given = {"layers": layers, "experts": experts, "window": window, "half_life": half_life, "keep": keep}
        for name, value in given.items():
            if not value >= 1:
                raise BalanceInputError(f"{name}: expected 1 or more, got {value}")
        self.layers, self.experts, self.window_steps = layers, experts, window
        self.steps = 0
        self._closed_total_LE = np.zeros((layers, experts), dtype=np.int64)
        self._open_LE = np.zeros_like(self._closed_total_LE)
        self._open_steps = 0
        self._closed: deque[NDArray[np.int64]] = deque(maxlen=keep)
        self._half_life = half_life
        self._faded_LE = np.zeros((layers, experts))
        self._weight = 0.0
        self._lag_one, self._drift = _Mean(layers), _Mean(layers)

    def add(self, load_LE: NDArray[Any], *, steps: int = 1) -> None:
        """Count the tokens each expert got in one step, or together in several.

        Args:
            load_LE: [layers, experts] whole numbers.
            steps: steps these are of. They belong to the window that was open when they began.

        Raises:
            BalanceInputError: another shape, not whole numbers, negative; fewer than one step.
        """
        self._check(load_LE, steps)
        self.steps += steps
        self._open_steps += steps
        self._open_LE += load_LE
        fading = 0.5 ** (steps / self._half_life)
        self._faded_LE *= fading
        self._faded_LE += load_LE
        self._weight = self._weight * fading + steps
        if self._open_steps >= self.window_steps:
            self._close()

    @property
    def total_LE(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Return all that was counted, [layers, experts]."""
        return self._closed_total_LE + self._open_LE

    @property
    def windows_WLE(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Return the closed windows kept, oldest first, [windows, layers, experts]."""
        return np.array(self._closed, dtype=np.int64).reshape(-1, self.layers, self.experts)

    @property
    def ewma_LE(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        """Return the load of a step, recent steps weighing more, [layers, experts]; zeros before the first step."""
        return self._faded_LE / max(self._weight, 1.0)

    @property
    def lag_one_L(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        """Return the mean correlation of successive windows since the first, [layers]; NaN before the second."""
        return self._lag_one.value_L

    @property
    def drift_L(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        """Return the mean share of the load that changed experts from window to window, [layers]; NaN likewise."""
        return self._drift.value_L

    def to_history(self, phase: Phase = "mixed", *, source: str = "") -> LoadHistory | None:
        """Return the windows kept; the open one while none has closed; None before the first step."""
        if not self.steps:
            return None
        if self._closed:
            return LoadHistory(self.windows_WLE, phase=phase, window_steps=self.window_steps, source=source)
        return LoadHistory(self._open_LE[None], phase=phase, window_steps=self._open_steps, source=source)

    def _check(self, load_LE: NDArray[Any], steps: int) -> None:
        if load_LE.shape != self._open_LE.shape:
            raise BalanceInputError(f"load_LE: expected shape {list(self._open_LE.shape)}, got {list(load_LE.shape)}")
        if load_LE.dtype.kind not in "iu":
            raise BalanceInputError(f"load_LE: expected whole numbers of tokens, got {load_LE.dtype}")
        if load_LE.min() < 0:
            raise BalanceInputError(f"load_LE: expected 0 or more tokens, got {load_LE.min()}")
        if steps < 1:
            raise BalanceInputError(f"steps: expected 1 or more, got {steps}")

    def _close(self) -> None:
        if self._closed:
            self._lag_one.add(correlation_of(self._closed[-1], self._open_LE))
            self._drift.add(moved_share(self._closed[-1], self._open_LE))
        self._closed_total_LE += self._open_LE
        self._closed.append(self._open_LE)
        self._open_LE = np.zeros_like(self._open_LE)
        self._open_steps = 0


class PhaseStatistics:
    """Loads of prefill and of decode, apart: summed together, prefill's many tokens would drown decode's."""

    def __init__(
        self, layers: int, experts: int, *, window: int = 1000, half_life: float = 1000.0, keep: int = 16
    ) -> None:
        self.by_phase = {
            phase: LoadStatistics(layers, experts, window=window, half_life=half_life, keep=keep) for phase in PHASES
        }

    def __getitem__(self, phase: Phase) -> LoadStatistics:
        """Return the statistics of "prefill" or "decode"."""
        return self.by_phase[phase]

    def add(self, load_2LE: NDArray[Any], *, steps: int = 1) -> None:
        """Count a step's tokens: prefill's, then decode's, [2, layers, experts]; a phase without any has no step."""
        for phase, load_LE in zip(PHASES, load_2LE, strict=True):
            if np.any(load_LE):
                self.by_phase[phase].add(load_LE, steps=steps)

    def to_history(self, *, source: str = "") -> dict[Phase, LoadHistory]:
        """Return the windows of each phase that has counted a step."""
        found = {phase: kept.to_history(phase, source=source) for phase, kept in self.by_phase.items()}
        return {phase: history for phase, history in found.items() if history is not None}


class _Mean:
    """The mean of arrays [layers], leaving out what is not a number."""

    def __init__(self, layers: int) -> None:
        self._sum_L, self._count_L = np.zeros(layers), np.zeros(layers)

    def add(self, value_L: NDArray[np.float64]) -> None:
        known_L = ~np.isnan(value_L)
        self._sum_L[known_L] += value_L[known_L]
        self._count_L += known_L

    @property
    def value_L(self) -> NDArray[np.float64]:  # noqa: N802 - a shape suffix
        return np.where(self._count_L > 0, self._sum_L / np.maximum(self._count_L, 1), np.nan)


def correlation_of(before_LE: NDArray[Any], after_LE: NDArray[Any]) -> NDArray[np.float64]:
    """Return the correlation of two loads in each layer, [layers]; NaN where one of them is even (or empty)."""
    one_LE = before_LE - before_LE.mean(axis=1, keepdims=True)
    other_LE = after_LE - after_LE.mean(axis=1, keepdims=True)
    scale_L = np.sqrt((one_LE**2).sum(axis=1) * (other_LE**2).sum(axis=1))
    return np.where(scale_L > 0, (one_LE * other_LE).sum(axis=1) / np.where(scale_L > 0, scale_L, 1.0), np.nan)


def moved_share(before_LE: NDArray[Any], after_LE: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of the load that is on other experts than before, [layers], 0 to 1; NaN where one is empty."""
    sum_2L = np.stack([before_LE.sum(axis=1), after_LE.sum(axis=1)]).astype(np.float64)
    known_L = (sum_2L > 0).all(axis=0)
    one_L1, other_L1 = np.where(known_L, sum_2L, 1.0)[..., None]
    moved_L = 0.5 * np.abs(before_LE / one_L1 - after_LE / other_L1).sum(axis=1)
    return np.where(known_L, moved_L, np.nan)
