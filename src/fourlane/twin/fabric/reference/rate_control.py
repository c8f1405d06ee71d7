"""DCQCN, the congestion control of RoCE NICs: rates that fall on notification and rise by timer and byte counter.

A switch marks packets (ECN) in a long queue; the receiver answers marks with a congestion notification packet (CNP),
at most one a flow in `cnp_interval`; the sender's NIC, the reaction point, limits the flow's rate:

    on a CNP:        target = rate;  rate = rate * (1 - alpha / 2);  alpha = (1 - g) * alpha + g
    without a CNP:   alpha = (1 - g) * alpha, every `alpha_period`
    on an increase:  rate = (target + rate) / 2, where first, by how many increases came by timer and by bytes,
                     fast recovery (both at most F): target stays
                     hyper increase (both above F):  target += i * R_HAI, for the i-th
                     additive increase (otherwise):  target += R_AI

Doubles, with the operations in just this order: the native core gets the same bits.

Source: Zhu et al., Congestion Control for Large-Scale RDMA Deployments, SIGCOMM 2015, section 5; decrease gate,
largest decrease, clamp and least rate as in NVIDIA's DCQCN parameters (DOCA SDK, "DCQCN CC Parameters").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import Dcqcn

__all__ = ["RateLimiter"]

_ALPHA_GONE = 1e-9


class RateLimiter:
    """The reaction point of one flow.

    Decisions where the sources leave room: alpha begins to fade at the first CNP (NVIDIA: `initial_alpha_value` is
    what is used then). A CNP within the gate is ignored altogether. Without `clamp` the target is set by a decrease
    only if the timer has raised the rate since the last one (`clamp_tgt_rate_after_time_inc`). The target never
    passes line rate. The counters stand still at line rate, where there is nothing to increase.
    """

    def __init__(self, parameters: Dcqcn, ps_q16: int) -> None:
        self.parameters = parameters
        self.line = 8e12 * 65536.0 / ps_q16
        self.rate = self.line
        self.target = self.line
        self.alpha = parameters.alpha0
        self.alpha_time = -1  # no CNP yet
        self.last_decrease = -1
        self.timer_count = self.byte_count = self.bytes = 0

    @property
    def limited(self) -> bool:
        """Tell whether the flow is held below line rate."""
        return self.rate < self.line

    def spacing(self, wire: int) -> int:
        """Return how long after a packet's start the next one may start, in ps; 0 at line rate."""
        return int(wire * 8e12 / self.rate) if self.limited else 0

    def cut(self, now: int) -> bool:
        """React to a CNP; False where the gate still holds."""
        p = self.parameters
        if self.last_decrease >= 0 and now - self.last_decrease < p.decrease_gate:
            return False
        self.fade(now)
        if p.clamp or self.timer_count > 0:
            self.target = self.rate
        factor = 1.0 - self.alpha / 2.0
        least = 1.0 - p.max_decrease
        factor = max(factor, least)
        self.rate = self.rate * factor
        # A link slower than the least rate is never limited above its own.
        self.rate = min(max(self.rate, p.min_rate), self.line)
        self.alpha = (1.0 - p.g) * self.alpha + p.g
        self.alpha_time = self.last_decrease = now
        self.timer_count = self.byte_count = self.bytes = 0
        return True

    def fade(self, now: int) -> None:
        """Let alpha fall once for every whole period since it last changed."""
        if self.alpha_time < 0:
            return
        periods = (now - self.alpha_time) // self.parameters.alpha_period
        self.alpha_time += periods * self.parameters.alpha_period
        while periods > 0 and self.alpha >= _ALPHA_GONE and self.parameters.g > 0:
            self.alpha *= 1.0 - self.parameters.g
            periods -= 1

    def tick(self) -> None:
        """Increase: the timer has run out."""
        self.timer_count += 1
        self.increase()

    def sent(self, wire: int) -> None:
        """Count bytes sent, and increase for every `byte_counter` of them."""
        if self.limited:
            self.bytes += wire
        while self.limited and self.bytes >= self.parameters.byte_counter:
            self.bytes -= self.parameters.byte_counter
            self.byte_count += 1
            self.increase()

    def increase(self) -> None:
        """Raise the rate half way to the target, and the target by the stage that the counters have reached."""
        p = self.parameters
        if min(self.timer_count, self.byte_count) > p.fast_rounds:
            self.target = self.target + (min(self.timer_count, self.byte_count) - p.fast_rounds) * p.rate_hai
        elif max(self.timer_count, self.byte_count) > p.fast_rounds:
            self.target = self.target + p.rate_ai
        self.target = min(self.target, self.line)
        self.rate = (self.target + self.rate) / 2.0
