"""Whether a group's next step runs as one stream or as two, whose communication hides behind computing.

Every rank runs this rule on the same numbers - what all ranks announced with the first counts of a step -
and so comes to the same decision without a further message. The gain is predicted from times that were
measured, tried where it looks possible, and believed only as far as it was measured. What trials may cost
is bounded. Not for how streams take turns (`overlap_order`), nor for what steps take (`overlap_times`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from fourlane.policy.overlap_times import WINDOW, Fit, Load, Sample, Times, median

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MODES", "Decision", "Mode", "Order", "Outlook", "OverlapRule", "Why"]

Mode = Literal["single", "dual"]
Order = Literal["prefill", "decode"]
Why = Literal["never", "always", "one rank", "few tokens", "unmeasured", "predicted", "measured", "trial"]

MODES: tuple[Mode, ...] = ("single", "dual")
ALLOWANCE = 0.005
"""Share of the time in steps that trials may cost."""
FIRST_TRIAL_STEPS = 0.2
"""Advance on it, in steps, for a group's first trial if much is predicted: nobody should wait long for a large gain."""
PURSE_STEPS = 10.0
"""Unused allowance is kept up to so many steps."""
TRIAL_STEPS = 3
FIRST_WAIT, LONGEST_WAIT = 100, 6400
"""Steps of a class of loads between trials; doubled after each."""
HOPE = 0.1
"""By how much the predicted gain must have grown for a trial before its time."""
UNMEASURED_STEPS = 3
"""Single-stream steps of a class to see before any other is tried."""
KNOWN_STEPS = 8
"""Dual-stream steps to see before a prediction for other loads is believed without a trial."""
REFIT_STEPS = 16
DECIDE_STEPS = 4
"""Steps of a class of loads for which a decision stands, unless something has changed: deciding takes time too."""
WARM_UP_STEPS = 2
BURSTS = 16
"""Latest first steps after a pause, from which the next one's load is guessed."""


class Outlook(NamedTuple):
    """What a rank announces with a step's first counts: what it expects, and how its last step went.

    `prefill_next`, `decode_next`: tokens it expects to compute in the step after this one. `prefill`,
    `decode`: those of its last step, which ran in `mode` (1 single, 2 dual, 0: there was none).

    Units:
        *_us: microseconds of the last step's forward pass: all of it; in the exchange (one stream: waiting
        for it, two: while the communication thread was at work); and of one stream, waiting without
        computing anything meanwhile.
    """

    prefill_next: int = 0
    decode_next: int = 0
    prefill: int = 0
    decode: int = 0
    mode: int = 0
    wall_us: int = 0
    exchange_us: int = 0
    idle_us: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """How the next step runs, why, and by what factor two streams are faster, as far as one can tell.

    `predicted`: from what single-stream steps took and how predictions came out elsewhere; None before
    there were any. `measured`: of steps of like load that ran both ways; None where they did not. `order`:
    in which two streams take turns, by the phase of most tokens.
    """

    mode: Mode
    why: Why
    predicted: float | None = None
    measured: float | None = None
    order: Order = "prefill"


class _Trial(NamedTuple):
    """Steps that will run in a mode not preferred: for which class of loads, and how many are left."""

    key: tuple[int, int]
    mode: Mode
    left: int


class _LoadClass(Times):
    """Steps of like load, and how the rule stands to them."""

    def __init__(self) -> None:
        super().__init__()
        self.prefers_dual = False
        self.decision: Decision | None = None
        self.next_trial = 0
        self.trials = 0
        self.hoped = 0.0
        """The gain predicted when the other mode was last tried."""


class OverlapRule:
    """The mode of each next step of a group. Ranks that saw the same numbers decide the same."""

    def __init__(
        self,
        *,
        layers: int,
        ranks: int,
        mode: Literal["auto", "never", "always"] = "auto",
        min_tokens: int = 16,
        min_gain: float = 0.03,
    ) -> None:
        """Begin without knowing anything.

        Args:
            layers: of the model that exchange tokens.
            ranks: of the group.
            mode: "auto": decide; "never", "always": whatever was measured.
            min_tokens: fewer on a rank are never split.
            min_gain: less is not worth two streams; 0.03 is 3 %.
        """
        self._layers = layers
        self._ranks = ranks
        self._mode = mode
        self._min_tokens = max(2, min_tokens)
        self._min_gain = min_gain
        self.reset()

    def reset(self) -> None:
        """Forget everything: the group was formed anew, and not all ranks know what the others know."""
        self._classes: dict[tuple[int, int], _LoadClass] = {}
        self._fit: Fit | None = None
        self._corrections: deque[float] = deque(maxlen=WINDOW)
        self._steps = 0
        self._dual_steps = 0
        self._purse_s = 0.0
        self._trial: _Trial | None = None
        self._bursts: deque[Load] = deque(maxlen=BURSTS)
        self._surprised = True
        self.decision = self._fixed() or Decision("single", "unmeasured")

    def decide(self, outlook_GO: np.ndarray) -> Decision:
        """Return how the next step runs.

        Args:
            outlook_GO: [ranks, 8] what each rank announced in the step that has just run, see `Outlook`.
        """
        told = dict(zip(Outlook._fields, zip(*outlook_GO.tolist(), strict=True), strict=True))
        if self._mode == "auto" and self._ranks > 1:
            self._learn(told)
        load = self._expected(told)
        decision = self._fixed() or self._choose(load)
        order: Order = "prefill" if load.prefill >= load.decode else "decode"
        self.decision = decision if decision.order == order else replace(decision, order=order)
        return self.decision

    # what the last step took

    def _learn(self, told: dict[str, tuple[int, ...]]) -> None:
        modes = set(told["mode"])
        load = Load.over(told["prefill"], told["decode"])
        if modes not in ({1}, {2}) or not load.tokens:
            return
        self._steps += 1
        if self._surprised:
            self._bursts.append(load)
        dual = modes == {2}
        self._dual_steps += dual
        loads = self._classes.get(load.key)
        if loads is None:
            loads = self._classes[load.key] = _LoadClass()
        first = self._steps <= WARM_UP_STEPS or (dual and self._dual_steps == 1)
        known = load.tokens < self._min_tokens and loads.count(dual=False) == WINDOW
        if first or (known and self._steps % REFIT_STEPS):
            return
        # All end together, so the last to begin tells the step's time; it also waits least, and the
        # rest of the others' waiting is for it to come, which nothing hides.
        seconds = min(told["wall_us"]) / 1e6
        idle = 0.0 if dual else min(told["idle_us"]) / 1e6
        sample = Sample(load, max(seconds, 1e-6), min(idle, seconds))
        self._pay(loads, sample, dual=dual)
        loads.add(sample, dual=dual)
        self._judge(loads)
        if self._fit is None or self._steps % REFIT_STEPS == 0:
            self._fit = Fit.to([each for _, each in sorted(self._classes.items())])

    def _pay(self, loads: _LoadClass, sample: Sample, *, dual: bool) -> None:
        """Count what a step was allowed, and what it cost to run it otherwise than seemed best."""
        self._purse_s += ALLOWANCE * sample.seconds
        expected = self._seconds(loads, sample.load, dual=not dual)
        if expected is not None and (dual or loads.prefers_dual):
            self._purse_s -= sample.seconds - expected
            if dual and self._fit is not None:
                structural, _ = self._fit.gain(sample.load, scale=1.0, layers=self._layers)
                self._corrections.append(expected / sample.seconds / structural)
            if self._trial is not None and sample.seconds > 2 * expected:
                self._trial = None
        self._purse_s = min(self._purse_s, PURSE_STEPS * sample.seconds)

    def _judge(self, loads: _LoadClass) -> None:
        gain, before = self._measured(loads), loads.prefers_dual
        if gain is not None:
            loads.prefers_dual = gain >= (1.0 if before else 1.0 + self._min_gain)
        if loads.prefers_dual != before:
            loads.decision = None

    # what the next one will be

    def _expected(self, told: dict[str, tuple[int, ...]]) -> Load:
        """Return the next step's load; after a pause, a lower quartile of what came after others."""
        load = Load.over(told["prefill_next"], told["decode_next"])
        self._surprised = not load.tokens
        if self._surprised and len(self._bursts) >= UNMEASURED_STEPS:
            return sorted(self._bursts, key=lambda burst: (burst.tokens, burst))[len(self._bursts) // 4]
        return load

    def _choose(self, load: Load) -> Decision:
        if load.tokens < self._min_tokens:
            return Decision("single", "few tokens")
        loads = self._classes.get(load.key)
        if self._fit is None or loads is None:
            return Decision("single", "unmeasured")
        if loads.decision is None or self._trial is not None or not loads.steps % DECIDE_STEPS:
            decision = self._weigh(loads, load)
            loads.decision = None if decision.why == "trial" else decision
            return decision
        return loads.decision

    def _weigh(self, loads: _LoadClass, load: Load) -> Decision:
        predicted, best = self._predict(loads, load)
        measured = self._measured(loads)
        mode: Mode = "dual" if self._prefers_dual(loads, predicted, measured) else "single"
        if self._tries(loads, load, mode, predicted=predicted, best=best, measured=measured):
            return Decision("single" if mode == "dual" else "dual", "trial", predicted, measured)
        return Decision(mode, "predicted" if measured is None else "measured", predicted, measured)

    def _prefers_dual(self, loads: _LoadClass, predicted: float, measured: float | None) -> bool:
        if measured is None and len(self._corrections) >= KNOWN_STEPS:
            loads.prefers_dual = predicted >= (1.0 if loads.prefers_dual else 1.0 + self._min_gain)
        return loads.prefers_dual

    def _predict(self, loads: _LoadClass, load: Load) -> tuple[float, float]:
        assert self._fit is not None
        predicted, best = self._fit.gain(load, scale=self._scale(loads, dual=False) or 1.0, layers=self._layers)
        correction = median(list(self._corrections)) if len(self._corrections) >= TRIAL_STEPS - 1 else 1.0
        return predicted * correction, best

    def _tries(
        self, loads: _LoadClass, load: Load, mode: Mode, *, predicted: float, best: float, measured: float | None
    ) -> bool:
        """Tell whether the next step runs in the other mode to see what it takes."""
        trial = self._trial
        if trial is not None and trial.key == load.key:
            self._trial = trial._replace(left=trial.left - 1) if trial.left > 1 else None
            if trial.mode != mode:
                return True
        if mode == "single" and best < 1.0 + self._min_gain:
            return False
        if loads.count(dual=mode == "dual") < UNMEASURED_STEPS or not self._due(loads, predicted):
            return False
        seconds = self._seconds(loads, load, dual=mode == "dual") or 0.0
        hopeful = not self._dual_steps and self._steps >= REFIT_STEPS and predicted >= 1.0 + HOPE
        advance_s = FIRST_TRIAL_STEPS * seconds if hopeful else 0.0
        if self._purse_s + advance_s < TRIAL_STEPS * seconds * _risk(mode, predicted, measured):
            return False
        loads.trials += 1
        loads.next_trial = loads.steps + min(LONGEST_WAIT, FIRST_WAIT << min(loads.trials - 1, 16))
        loads.hoped = predicted
        loads.forget(dual=mode == "single")
        self._trial = _Trial(load.key, "dual" if mode == "single" else "single", TRIAL_STEPS - 1)
        return True

    def _due(self, loads: _LoadClass, predicted: float) -> bool:
        early = loads.next_trial - FIRST_WAIT // 2
        hopeful = not loads.prefers_dual and predicted >= loads.hoped + HOPE
        return loads.steps >= (early if hopeful else loads.next_trial)

    # figures of a class of loads

    def _measured(self, loads: _LoadClass) -> float | None:
        """Return the gain of steps that ran both ways, None if there are too few of either."""
        single, dual = self._scale(loads, dual=False), self._scale(loads, dual=True)
        if single is None or dual is None:
            return None
        return single / dual

    def _scale(self, loads: _LoadClass, *, dual: bool) -> float | None:
        return None if self._fit is None else loads.scale(self._fit, dual=dual)

    def _seconds(self, loads: _LoadClass, load: Load, *, dual: bool) -> float | None:
        scale = self._scale(loads, dual=dual)
        if scale is None or self._fit is None:
            return None
        return self._fit.seconds.at(load) * scale

    def _fixed(self) -> Decision | None:
        if self._ranks == 1:
            return Decision("single", "one rank")
        if self._mode == "never":
            return Decision("single", "never")
        return Decision("dual", "always") if self._mode == "always" else None


def _risk(mode: Mode, predicted: float, measured: float | None) -> float:
    """Return what share of a step a trial step of the other mode is feared to cost."""
    if mode == "dual":
        return max(0.02, (predicted if measured is None else measured) - 1)
    if measured is not None:
        return max(0.02, 1 / measured - 1)
    return max(0.05, min(0.5, 1.3 - predicted))
