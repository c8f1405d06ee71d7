"""Fair shares: max-min rates of windowed flows, weighted queues, and what pauses do to bystanders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabric_validation.networks import PACKET_PS, compile_flows, run
from fabric_validation.page import Claim, Part, Table, within
from fourlane.twin.fabric.builders import single_switch
from fourlane.twin.fabric.theory import dwrr_shares, max_min_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["max_min", "weighted"]

_PAYLOAD = 4096


def max_min(*, cases: int, duration_us: int, hosts: int = 10, flows: int = 24) -> Part:
    """Give flows sizes in proportion to their max-min fair rates: fairly served, they all end together."""
    part = Part("Max-min fair shares", _MAX_MIN)
    rows = []
    for case in range(cases):
        source, target = _random_flows(hosts, flows, case)
        share, off = _end_together(source, target, hosts, duration_us)
        distinct = len(set(share))
        part.claims.append(
            Claim(
                f"case {case}: {flows} flows, {distinct} different fair rates",
                f"all end after {duration_us} us",
                f"{off.min() * 100:+.2f} to {off.max() * 100:+.2f} %",
                "within 1 %",
                bool(np.abs(off).max() <= 0.01),
            )
        )
        levels = sorted(set(share))
        rows.append([str(case), ", ".join(f"{level:.3f}" for level in levels), f"{np.abs(off).max() * 100:.2f} %"])
    part.tables.append(Table("Fair rates as shares of a link, and the largest error", ("case", "rates", "error"), rows))
    part.claims.append(_bystander(duration_us))
    return part


def _random_flows(hosts: int, flows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, hosts, flows)
    target = (source + rng.integers(1, hosts, flows)) % hosts
    # Every host also receives what nobody congests: crowd half of the flows on two targets.
    crowd = rng.random(flows) < 0.5
    hot = np.where(source < 2, (source + 1) % 2, source % 2)
    return source, np.where(crowd, hot, target)


def _end_together(
    source: NDArray[np.int64], target: NDArray[np.int64], hosts: int, duration_us: int
) -> tuple[list[float], NDArray[np.float64]]:
    """Return the fair shares of a link, and by how much each flow ends off the time at which all should."""
    links = [[int(s), hosts + int(t)] for s, t in zip(source, target, strict=True)]
    share = [float(each) for each in max_min_shares(links, [1] * (2 * hosts))]
    packets = np.maximum(1, np.round(np.array(share) * duration_us * 1e6 / PACKET_PS)).astype(np.int64)
    made = compile_flows(single_switch(hosts), source, target, packets * _PAYLOAD, **_WINDOWED)
    finish = run(made)["flow_delivered"]
    ideal = packets * PACKET_PS / np.array(share)
    return share, finish / ideal - 1


_WINDOWED = {
    "class_window": [64 * 4160],
    "ack_wire": 1,
    "queue_weight": [4160, 4160],
    "class_ack_queue": [1],
}
"""64 packets under way, three times what a link holds; acknowledgements so small that they take nothing from links."""


def _bystander(duration_us: int) -> Claim:
    """Check that with windows only, a flow from a crowded source to an idle host takes all that the crowd leaves."""
    source, target = np.array([1, 2, 3, 3]), np.array([0, 0, 0, 4])
    _, off = _end_together(source, target, 5, duration_us)
    return Claim(
        "bystander: three flows into one host, a fourth from one of their sources elsewhere gets 2/3",
        "0.667 of the link",
        f"{2 / 3 / (1 + off[3]):.3f}",
        "within 1 %",
        bool(np.abs(off).max() <= 0.01),
    )


def weighted(*, duration_us: int) -> Part:
    """Overload weighted queues of one port and compare their shares of it with their weights."""
    part = Part("Deficit round robin", _WEIGHTED)
    rows = []
    for weights, payloads in _WEIGHT_SETS:
        share = _served(weights, payloads, duration_us)
        theory = dwrr_shares(weights)
        off = max(abs(s / t - 1) for s, t in zip(share, theory, strict=True))
        name = ":".join(map(str, weights))
        sizes = "/".join(map(str, payloads))
        part.claims.append(
            Claim(
                f"weights {name}, payloads {sizes} B",
                "shares as weights",
                f"off by {off * 100:.2f} %",
                "1 %",
                off <= 0.01,
            )
        )
        rows.append([name, sizes, _percents(theory), _percents(share)])
    part.tables.append(Table("Shares of the port", ("weights", "payloads, bytes", "by weight", "simulated"), rows))
    part.claims += _spare_capacity(duration_us)
    part.claims += _strict_with_cap(duration_us)
    return part


_WEIGHT_SETS = (
    ((50, 30, 20), (4096, 4096, 4096)),
    ((1, 1, 1, 1), (4096, 4096, 4096, 4096)),
    ((40, 30, 20, 10), (4096, 1000, 4096, 256)),
    ((70, 29, 1), (4096, 4096, 4096)),
    ((5, 4), (512, 4096)),
)


def _percents(shares: Sequence[float]) -> str:
    return ", ".join(f"{share * 100:.2f}" for share in shares)


def _served(weights: Sequence[int], payloads: Sequence[int], duration_us: int, **given: object) -> list[float]:
    """Return each queue's share of the bytes that a port sent, two senders with too much to send for each queue."""
    queues = len(weights)
    topology = single_switch(2 * queues + 1)
    source = np.arange(1, 2 * queues + 1)
    klass = (source - 1) // 2
    quantum = 4160 / min(weight for weight in weights if weight)
    size = int(1.2 * duration_us * 1e6 / 20)
    arrays = {
        "queue_weight": [round(weight * quantum) for weight in weights],
        "class_queue": list(range(queues)),
        "class_ack_queue": list(range(queues)),
        "flow_class": klass,
        "flow_message": np.array(payloads)[klass],
        "max_time": duration_us * 1_000_000,
    }
    made = compile_flows(topology, source, np.zeros(len(source), np.int64), size, **(arrays | given))
    sent = run(made)["port_tx_bytes"][topology.port_peer[topology.endpoint_of[0][0]]]
    return [float(share) for share in sent / sent.sum()]


def _spare_capacity(duration_us: int) -> list[Claim]:
    """Let the heaviest queue's senders be slow: what it leaves goes to the others by weight."""
    weights, slow = (50, 30, 20), 0.05
    topology = single_switch(7)
    pace = topology.port_ps_q16.copy()
    for host in (1, 2):
        port = topology.endpoint_of[0][host]
        pace[port] = pace[topology.port_peer[port]] = round(pace[port] / slow)
    theory = dwrr_shares(weights, [2 * slow, 9, 9])
    share = _served(weights, (4096,) * 3, duration_us, port_ps_q16=pace)
    return [
        within(f"weights 50:30:20, the first wants 10 %: queue {q}", t * 100, s * 100, percent=1, unit="%")
        for q, (t, s) in enumerate(zip(theory, share, strict=True))
    ]


def _strict_with_cap(duration_us: int) -> list[Claim]:
    """Put a strict queue with a cap before two weighted ones."""
    share = _served((60, 40, 0), (4096,) * 3, duration_us, queue_cap_q16=[0, 0, round(65536 * 100 / 30)])
    theory = [0.7 * 0.6, 0.7 * 0.4, 0.3]
    return [
        within(f"strict queue capped at 30 % before weights 60:40: queue {q}", t * 100, s * 100, percent=1, unit="%")
        for q, (t, s) in enumerate(zip(theory, share, strict=True))
    ]


_MAX_MIN = """
Random flows between hosts of one switch, each with a window of 64 packets. A NIC serves its flows in turn, a switch
port in order of arrival; with equal windows and round trips both give equal rates to the flows that they hold back, so
the rates are max-min fair. Each flow's size is its fair rate (water-filling, in exact fractions) times one duration:
fairly served, all end at that time.
"""
_WEIGHTED = """
Each queue of one port has two senders with more than they can send. Shares of the port's bytes must be those of the
weights, whatever the size of the packets; a queue that wants less than its share leaves the rest to the others by
weight; a strict queue goes first, up to its cap.
"""
