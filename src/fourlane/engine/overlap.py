"""A rank's part in deciding between one stream and two: what it announces, and how its steps run and are timed.

The decision itself is `policy.overlap`'s, and cutting a step in two `micro_batches`'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fourlane.engine.messages import OverlapStats
from fourlane.policy.overlap import MODES, Outlook, OverlapRule
from fourlane.policy.overlap_order import order_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.exchange.communication_thread import CommunicationThread
    from fourlane.engine.exchange.contract import Agreement
    from fourlane.engine.exchange.local import LocalExchange
    from fourlane.engine.micro_batches import OnKv, StepRunner
    from fourlane.engine.rank_config import RankConfig
    from fourlane.engine.scheduler import Step
    from fourlane.policy.overlap import Decision
    from fourlane.policy.overlap_order import OverlapOrder
    from fourlane.policy.placement import Placement

__all__ = ["Expecting", "Overlapping"]


class Expecting(Protocol):
    """Who knows what is to be computed next: a scheduler."""

    def expected_after(self, step: Step) -> tuple[int, int]:
        """Return the prefill and decode tokens of the step after one."""
        ...


@dataclass(slots=True)
class _Clock:
    """Readings at the beginning of a step. Units: seconds."""

    wall: float
    computing: float
    waited: float
    communicated: float


class Overlapping:
    """Runs a rank's steps in the mode its group has agreed on."""

    def __init__(self, config: RankConfig, runner: StepRunner, *, layers: int) -> None:
        """Begin with nothing measured.

        Args:
            config: of the rank; says whether and where two streams are wanted.
            runner: computes steps.
            layers: of the model that exchange tokens.
        """
        self.stats = OverlapStats()
        self._runner = runner
        self._waits_idle = runner.model.device.type != "cpu"
        self._last = Outlook()
        overlap = config.overlap
        self._rule = OverlapRule(
            layers=layers,
            ranks=config.group_size,
            mode=overlap.mode,
            min_tokens=overlap.min_tokens,
            min_gain=overlap.min_gain,
        )
        self._alone = config.group_size == 1 or overlap.mode != "auto"

    @property
    def decision(self) -> Decision:
        """Return how the coming step runs."""
        return self._rule.decision

    def reset(self) -> None:
        """Forget what was measured and decided: the group is formed anew, and one of its ranks knows nothing."""
        self._rule.reset()
        self._last = Outlook()

    def outlook(self, scheduler: Expecting, step: Step) -> Outlook:
        """Return what this rank announces with the first counts of a step."""
        prefill, decode = scheduler.expected_after(step)
        return self._last._replace(prefill_next=prefill, decode_next=decode)

    def run(
        self,
        step: Step,
        exchange: CommunicationThread | LocalExchange,
        placement: Placement,
        *,
        on_kv: Callable[[Step], OnKv] | None,
    ) -> Tensor:
        """Compute a step in the mode decided on; see `StepRunner.run`.

        Raises:
            PeerLost: an operation of the exchange could not complete; the step is to be run again.
        """
        decision, counters = self.decision, exchange.counters
        order = self._order(decision) if decision.mode == "dual" else None
        began = _Clock(time.perf_counter(), time.thread_time(), counters.wait_s, counters.communication_s)
        logits_NV = self._runner.run(step, exchange, placement, order=order, on_kv=on_kv)
        took = _Clock(
            time.perf_counter() - began.wall,
            time.thread_time() - began.computing,
            counters.wait_s - began.waited,
            counters.communication_s - began.communicated,
        )
        self._note(step, decision, took)
        return logits_NV

    def end_step(self, agreement: Agreement) -> None:
        """Take over what the group announced, and decide how its next step runs."""
        decision = self._rule.decide(agreement.outlook_GO)
        stats = self.stats
        if decision.predicted is not None:
            stats.predicted_gain = decision.predicted
        if decision.measured is not None:
            stats.measured_gain = decision.measured

    def _order(self, decision: Decision) -> OverlapOrder:
        ratio = self._runner.model.config.experts_to_attention
        return order_for(decision.order, gpu=self._waits_idle, experts_to_attention=ratio)

    def _note(self, step: Step, decision: Decision, took: _Clock) -> None:
        dual, stats = decision.mode == "dual", self.stats
        stats.mode, stats.why = decision.mode, decision.why
        stats.steps[decision.mode] += 1
        stats.trial_steps += decision.why == "trial"
        if dual:
            stats.communication_s += took.communicated
            stats.hidden_s += max(0.0, took.communicated - took.waited)
        if self._alone:
            return
        decode = sum(part.decodes for part in step.parts)
        idle = took.waited if self._waits_idle else min(took.waited, max(0.0, took.wall - took.computing))
        self._last = Outlook(
            prefill=sum(part.tokens for part in step.parts) - decode,
            decode=decode,
            mode=1 + MODES.index(decision.mode),
            wall_us=int(took.wall * 1e6),
            exchange_us=int((took.communicated if dual else took.waited) * 1e6),
            idle_us=int(idle * 1e6),
        )
