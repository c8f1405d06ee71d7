"""What theory says of a packet network: bounds, waiting, collisions, fair shares, headroom, buffer thresholds.

Closed forms and short exact algorithms, to hold simulated figures against. Nothing here simulates; the fluid model of
DCQCN is in `fourlane.twin.fabric.dcqcn_theory`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "SharedBufferSwitch",
    "UniformPath",
    "alpha_occupancy",
    "bins_used_share",
    "dwrr_shares",
    "max_min_shares",
    "md1_mean_wait",
    "md1_wait_at_most",
    "md1_wait_percentile",
    "most_in_a_bin",
    "most_in_a_bin_cdf",
    "pfc_headroom",
    "work_conserving_finish",
]

_PFC_FRAME = 64


@dataclass(frozen=True, slots=True)
class UniformPath:
    """A path of equal links through equal store-and-forward switches, carrying packets of one size.

    Units:
        packet_ps, ack_ps: serialisation of a data packet and of an acknowledgement on one link, ps.
        propagation_ps: of one link. switch_latency_ps: of one switch.
    """

    links: int
    packet_ps: int
    ack_ps: int
    propagation_ps: int
    switch_latency_ps: int

    @property
    def base_ps(self) -> int:
        """Time one bit takes one way, in ps: propagation of all links, latency of all switches between them."""
        return self.links * self.propagation_ps + (self.links - 1) * self.switch_latency_ps

    def flow_ps(self, packets: int) -> int:
        """Return when a flow alone on the path has its last acknowledgement.

        The packets leave back to back, the last one is stored and forwarded at every switch, its acknowledgement
        comes back over an idle path: n s + (L - 1) s + base + (base + L a).
        """
        serialised = (packets + self.links - 1) * self.packet_ps
        return serialised + 2 * self.base_ps + self.links * self.ack_ps

    def incast_ps(self, flows: int, packets: int) -> int:
        """Return the least time in which `flows` flows of `packets` packets reach one host: its link never idles."""
        return self.flow_ps(flows * packets)

    def all_to_all_ps(self, ranks: int, packets: int) -> int:
        """Return the least time in which each of `ranks` sends `packets` packets to every other one."""
        return self.flow_ps((ranks - 1) * packets)


# Waiting -----------------------------------------------------------------------------------------


def md1_mean_wait(load: float) -> float:
    """Return the mean wait of M/D/1 in service times: Poisson arrivals, constant service, one server.

    Source: Pollaczek-Khinchine formula with no variance of service.
    """
    return load / (2 * (1 - load))


def md1_wait_at_most(load: float, wait: float) -> float:
    """Return the probability that an arrival to M/D/1 waits at most `wait` service times.

    All terms are positive, so nothing cancels. Source: Franx, "A simple solution for the M/D/c waiting time
    distribution", Operations Research Letters 29 (2001), for c = 1.
    """
    if wait < 0:
        return 0.0
    periods = math.floor(wait) + 1
    waiting_at_most = np.cumsum(_md1_in_system(load, periods + 1))[1:]
    left = load * (periods - wait)
    term, total = math.exp(-left), 0.0
    for j in range(periods):
        total += term * float(waiting_at_most[periods - 1 - j])
        term *= left / (j + 1)
    return total


def md1_wait_percentile(load: float, percent: float) -> float:
    """Return the wait in service times that `percent` of the arrivals to M/D/1 do not exceed."""
    high = 1.0
    while md1_wait_at_most(load, high) < percent / 100:
        high *= 2
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if md1_wait_at_most(load, middle) < percent / 100:
            low = middle
        else:
            high = middle
    return high


def work_conserving_finish(arrival_N: NDArray[np.int64], service: int) -> NDArray[np.int64]:
    """Return when each arrival has been served by one server with constant service, in order of arrival.

    Lindley's recursion, exact in integers. Where every source has a link as fast as the link that all share, the
    shared link's departures are those of this one queue, later by a constant: a packet held back at its source waits
    behind one that keeps the shared link busy just then.
    """
    order_N = np.arange(len(arrival_N), dtype=np.int64)
    return np.maximum.accumulate(arrival_N - order_N * service) + (order_N + 1) * service


def _md1_in_system(load: float, most: int) -> NDArray[np.float64]:
    """Return the probabilities of 0..most in the system, by the recursion of the chain at departures."""
    arrivals = [math.exp(-load)]
    for k in range(1, most + 2):
        arrivals.append(arrivals[-1] * load / k)
    more = np.maximum(1.0 - np.cumsum(arrivals), 0.0)  # more[k]: more than k arrivals in a service time
    prob = np.zeros(most + 1)
    prob[0] = 1 - load
    # Cuts between {0..k} and above: prob[k+1] arrivals[0] = prob[0] more[k] + sum_{i=1..k} prob[i] more[k+1-i].
    for k in range(most):
        inflow = prob[0] * more[k] + sum(prob[i] * more[k + 1 - i] for i in range(1, k + 1))
        prob[k + 1] = inflow / arrivals[0]
    return prob


# Collisions --------------------------------------------------------------------------------------


def most_in_a_bin_cdf(balls: int, bins: int) -> NDArray[np.float64]:
    """Return P(fullest bin holds at most m) for m = 0..balls, balls thrown evenly and independently.

    Exact up to rounding, all terms positive: bins are independent Poisson counts on condition of their sum.
    """
    mean = balls / bins
    poisson = np.exp([k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(balls + 1)])
    whole = math.exp(balls * math.log(balls) - balls - math.lgamma(balls + 1))  # P(all together hold `balls`)
    cdf = np.ones(balls + 1)
    for most in range(balls):
        cdf[most] = min(1.0, _all_at_most(poisson[: most + 1], bins, balls) / whole)
        if cdf[most] > 1 - 1e-13:
            break
    return cdf


def most_in_a_bin(balls: int, bins: int) -> float:
    """Return the mean number of balls in the fullest bin."""
    return float(np.sum(1 - most_in_a_bin_cdf(balls, bins)[:-1]))


def bins_used_share(balls: int, bins: int) -> float:
    """Return the mean share of bins with at least one ball."""
    return 1 - (1 - 1 / bins) ** balls


def _all_at_most(counts: NDArray[np.float64], bins: int, balls: int) -> float:
    """Return the probability that `bins` counts, each distributed as `counts` (cut off, not scaled), sum to `balls`."""
    if (len(counts) - 1) * bins < balls:
        return 0.0
    total, power, left = np.ones(1), counts, bins
    while left:
        if left % 2:
            total = np.convolve(total, power)[: balls + 1]
        power = np.convolve(power, power)[: balls + 1]
        left //= 2
    return float(total[balls])


# Fair shares -------------------------------------------------------------------------------------


def max_min_shares(links_of_flow: Sequence[Sequence[int]], capacity: Sequence[Fraction | int]) -> list[Fraction]:
    """Return the max-min fair rate of each flow, exactly: nobody's can grow but at the cost of one no larger.

    Water-filling: all rates rise together; the link that fills first holds its flows where they are.

    Args:
        links_of_flow: the links each flow uses; at least one.
        capacity: of each link, in any unit of rate.

    Source: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2.
    """
    share: list[Fraction | None] = [None] * len(links_of_flow)
    left = [Fraction(amount) for amount in capacity]
    users: list[set[int]] = [set() for _ in capacity]
    for flow, links in enumerate(links_of_flow):
        for link in links:
            users[link].add(flow)
    while any(users):
        level, tightest = min((left[link] / len(flows), link) for link, flows in enumerate(users) if flows)
        for flow in sorted(users[tightest]):
            share[flow] = level
            for link in set(links_of_flow[flow]):
                left[link] -= level
                users[link].discard(flow)
    return [Fraction(0) if rate is None else rate for rate in share]


def dwrr_shares(weights: Sequence[int], demand: Sequence[float] | None = None) -> list[float]:
    """Return each queue's share of a link under deficit round robin.

    Args:
        weights: of the queues.
        demand: the share each queue would take if it could; None: all have more than enough to send.
    """
    wanted = [math.inf] * len(weights) if demand is None else list(demand)
    share = [0.0] * len(weights)
    open_queues, left = set(range(len(weights))), 1.0
    while open_queues:
        total = sum(weights[q] for q in open_queues)
        sated = {q for q in open_queues if wanted[q] <= left * weights[q] / total}
        if not sated:
            for q in open_queues:
                share[q] = left * weights[q] / total
            break
        for q in sated:
            share[q] = wanted[q]
        left -= sum(wanted[q] for q in sated)
        open_queues -= sated
    return share


# Buffers -----------------------------------------------------------------------------------------


def alpha_occupancy(alpha: float, buffer: float, queues: int) -> float:
    """Return where `queues` equally loaded queues settle when each may hold alpha times what is still free.

    Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM
    Transactions on Networking 6 (1998).
    """
    return alpha * buffer / (1 + queues * alpha)


def pfc_headroom(
    packet_ps: int, packet_bytes: int, propagation_ps: int, *, response_ps: int, frame_ps: int, reverse_ps: int = 0
) -> int:
    """Return the headroom with which a port of this model never drops a lossless packet.

    The packet that finds its group full is charged to headroom. The pause then waits for a packet under way in the
    other direction, is serialised, travels, and takes effect after the peer's response time; until then the peer
    starts packets, back to back since the one that asked for the pause left it one propagation ago. Every one of
    them arrives whole. So: 1 + ceil((2 propagation + response + frame + reverse) / packet) packets. This is never
    more than the textbook's rate x (2 propagation + response) + 2 MTU + frame, with one MTU more where the reverse
    direction carries full packets.

    Args:
        packet_ps: serialisation of the largest packet; `packet_bytes` are its bytes on the wire.
        propagation_ps: of the cable, one way.
        response_ps: from the arrival of the pause to the peer's silence.
        frame_ps: serialisation of a pause frame.
        reverse_ps: longest packet that may be under way in the other direction when the pause wants to leave.
    """
    open_ps = 2 * propagation_ps + response_ps + frame_ps + reverse_ps
    return packet_bytes * (1 + -(-open_ps // packet_ps))


@dataclass(frozen=True, slots=True)
class SharedBufferSwitch:
    """A switch that shares its buffer, and the thresholds of pause and mark that fit in it.

    Units:
        buffer: bytes.

    Source: Zhu et al., "Congestion control for large-scale RDMA deployments", SIGCOMM 2015, section 4.
    """

    buffer: int
    ports: int
    priorities: int

    def static_pause_threshold(self, flight: int) -> float:
        """Return the largest pause threshold a port's priority can have when all fill at once.

        Args:
            flight: headroom of one priority of one port, bytes.
        """
        return self._shareable(flight) / (self.priorities * self.ports)

    def dynamic_pause_threshold(self, flight: int, *, beta: float, used: float) -> float:
        """Return the pause threshold when `used` bytes of the shared buffer are taken: beta (B - 8 n f - s) / 8."""
        return beta * (self._shareable(flight) - used) / self.priorities

    def mark_threshold(self, flight: int, *, beta: float) -> float:
        """Return the bound below which a queue's mark comes before any pause, however many ports send to it.

        beta (B - 8 n flight) / (8 n (beta + 1)) for 8 priorities.
        """
        return beta * self._shareable(flight) / (self.priorities * self.ports * (beta + 1))

    def _shareable(self, flight: int) -> int:
        return self.buffer - self.priorities * self.ports * flight
