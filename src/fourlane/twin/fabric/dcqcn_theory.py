"""DCQCN as a fluid: where N equal flows on one link settle, if they do.

Source: Zhu et al., "Congestion control for large-scale RDMA deployments", SIGCOMM 2015, section 5 (equations 5 to 9);
Zhu et al., "ECN or Delay: Lessons learnt from analysis of DCQCN and TIMELY", CoNEXT 2016, section 3. Not the
algorithm itself, which the simulator runs packet by packet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DcqcnFluid", "FixedPoint"]


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Where N flows settle: each at `rate`, packets marked with probability `marked`.

    `queue` is where the marking line gives that probability; None where it is above `pmax`: then the queue has no
    resting point between kmin and kmax, and hovers about kmax, where marking jumps to certainty.

    Units:
        rate: bit/s. queue: bytes. alpha: as in the algorithm, 0 to 1. target: R_T, bit/s.
    """

    rate: float
    marked: float
    alpha: float
    target: float
    queue: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DcqcnFluid:
    """The parameters of DCQCN and of the link that its flows share; defaults are the paper's.

    Units:
        link, rate_ai: bit/s. packet, byte_counter, kmin, kmax: bytes. cnp_interval, alpha_period, timer: seconds.
    """

    link: float = 40e9
    packet: float = 1024.0
    rate_ai: float = 40e6
    byte_counter: float = 10e6
    timer: float = 55e-6
    fast_rounds: int = 5
    cnp_interval: float = 50e-6
    alpha_period: float = 55e-6
    kmin: float = 5e3
    kmax: float = 200e3
    pmax: float = 0.01

    def fixed_point(self, flows: int) -> FixedPoint:
        """Return where `flows` equal flows settle: the rates at which all derivatives of the fluid are zero."""
        low, high = 1e-12, 1.0 - 1e-12
        for _ in range(200):
            middle = math.sqrt(low * high)
            if self._surplus_of_decrease(middle, flows) < 0:
                low = middle
            else:
                high = middle
        marked = high
        per_flow = self._packets(self.link / flows)
        target_above = self._packets(self.rate_ai) * self._additive(marked, per_flow) / self._cut(marked, per_flow)
        queue = None if marked > self.pmax else self.kmin + marked / self.pmax * (self.kmax - self.kmin)
        return FixedPoint(
            rate=self.link / flows,
            marked=marked,
            alpha=_seen(marked, self.alpha_period * per_flow),
            target=(per_flow + target_above) * 8 * self.packet,
            queue=queue,
        )

    def most_flows_on_the_line(self) -> int:
        """Return the largest number of flows whose marking probability lies on the line between kmin and kmax."""
        flows = 1
        while self.fixed_point(flows + 1).queue is not None:
            flows += 1
        return flows

    def most_flows_heard(self) -> float:
        """Return the number of flows at which a fair share is one packet a CNP interval.

        With more, a flow sends less than one packet between two CNPs: marks reach it later than the interval, and
        less often than the algorithm can cut.
        """
        return self.cnp_interval * self._packets(self.link)

    def approximate_marking(self, flows: int) -> float:
        """Return the marking probability by the cube root of the 2016 paper, good while it is small."""
        link, additive = self._packets(self.link), self._packets(self.rate_ai)
        per_round = self.packet / self.byte_counter + flows / (self.timer * link)
        return (additive * flows**2 / (self.cnp_interval * link**2) * per_round**2) ** (1 / 3)

    def _packets(self, rate: float) -> float:
        return rate / 8 / self.packet

    def _surplus_of_decrease(self, marked: float, flows: int) -> float:
        """Return decrease less increase of the target rate, with target and rate where the rate stands still.

        R_C stands still when (R_T - R_C)/2 x increases = R_C alpha/2 x cuts; R_T when (R_T - R_C) x cuts = R_AI x
        additive increases. Decrease grows with the marking, increase falls: one root.
        """
        rate = self._packets(self.link / flows)
        cut = self._cut(marked, rate)
        gap = rate * _seen(marked, self.alpha_period * rate) * cut / self._increases(marked, rate)
        return gap * cut - self._packets(self.rate_ai) * self._additive(marked, rate)

    def _cut(self, marked: float, rate: float) -> float:
        """Return cuts a second: at most one an interval, where it has a marked packet."""
        return _seen(marked, self.cnp_interval * rate) / self.cnp_interval

    def _increases(self, marked: float, rate: float) -> float:
        """Return increase events a second, of the byte counter and of the timer; both begin anew at each cut."""
        return rate * (self._rounds(marked, self.byte_counter / self.packet) + self._rounds(marked, self.timer * rate))

    def _additive(self, marked: float, rate: float) -> float:
        """Return increase events a second after the rounds of fast recovery."""
        bytes_first, timer_first = self.byte_counter / self.packet, self.timer * rate
        clear_bytes = (1 - marked) ** (self.fast_rounds * bytes_first)
        clear_timer = (1 - marked) ** (self.fast_rounds * timer_first)
        return rate * (
            clear_bytes * self._rounds(marked, bytes_first) + clear_timer * self._rounds(marked, timer_first)
        )

    @staticmethod
    def _rounds(marked: float, packets: float) -> float:
        """Return p / ((1 - p)^-packets - 1): whole rounds of `packets` unmarked packets, a packet sent."""
        exponent = -packets * math.log1p(-marked)
        return 0.0 if exponent > 700 else marked / math.expm1(exponent)


def _seen(marked: float, packets: float) -> float:
    """Return the probability that at least one of `packets` packets is marked."""
    return -math.expm1(packets * math.log1p(-marked))
