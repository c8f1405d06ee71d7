"""Which experts texts need, over time: windows of what ranks say their tokens were routed to.

Ranks report totals, each by its own clock and each beginning anew when its process does. Here they
become windows of the whole service, prefill and decode apart, as `policy.expert_statistics` and
`fourlane experts` take them. What is kept is bounded. Time is passed in.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from fourlane.spec.expert_files import LoadArrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fourlane.engine.messages import Phase

__all__ = ["ExpertLoads"]

WINDOW_S = 5.0
WINDOWS = 64


class ExpertLoads:
    """The loads of all ranks, by phase: the last windows in which there were tokens."""

    def __init__(self) -> None:
        self._phases: dict[str, _Windows] = {}
        self._totals: dict[str, dict[str, NDArray[np.int64]]] = {}

    def report(self, rank: str, totals: Mapping[Phase, Sequence[int]], shape: tuple[int, int], now: float) -> None:
        """Take what a rank says of its tokens since its process began.

        The first it says of a phase is where counting begins: what it routed before belongs to no window.

        Args:
            rank: its name.
            totals: by phase, tokens for each expert, flattened.
            shape: layers with experts, experts.
            now: seconds of any steady clock.
        """
        known = self._totals.setdefault(rank, {})
        for phase, flat in totals.items():
            total_LE = np.array(flat, dtype=np.int64).reshape(shape)
            before_LE = known.get(phase)
            known[phase] = total_LE
            if before_LE is not None and before_LE.shape == shape:
                grown_LE = total_LE - before_LE
                started_over = bool((grown_LE < 0).any())
                self._phases.setdefault(phase, _Windows()).add(total_LE.copy() if started_over else grown_LE, now)

    def forget(self, rank: str) -> None:
        """Note that a rank's process has gone: the next one's totals start over."""
        self._totals.pop(rank, None)

    def by_phase(self) -> dict[str, LoadArrays]:
        """Return the windows of each phase that had tokens; the last one may still be open."""
        return {phase: LoadArrays(windows.load_WLE()) for phase, windows in sorted(self._phases.items())}


class _Windows:
    """One phase's windows: each begins with its first tokens and takes what comes within `WINDOW_S`."""

    def __init__(self) -> None:
        self._kept: deque[NDArray[np.int64]] = deque(maxlen=WINDOWS)
        self._began = 0.0

    def add(self, load_LE: NDArray[np.int64], now: float) -> None:
        """Add tokens that came by now."""
        if self._kept and self._kept[-1].shape != load_LE.shape:
            self._kept.clear()  # another model is served
        if self._kept and now - self._began < WINDOW_S:
            self._kept[-1] += load_LE
        else:
            self._kept.append(load_LE)
            self._began = now

    def load_WLE(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """Return the windows, oldest first."""
        return np.stack(self._kept)
