"""Waiting at one link against M/D/1; sprayed packets at many links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabric_validation.networks import PACKET_PS, ROUND_ROBIN, SPRAY, compile_flows, run
from fabric_validation.page import Claim, Part, Plot, Table, within
from fourlane.report.plots import BLUE, GREEN, ORANGE, figure_of, save_figure
from fourlane.twin.fabric.builders import leaf_spine, single_switch
from fourlane.twin.fabric.theory import md1_mean_wait, md1_wait_at_most, md1_wait_percentile, work_conserving_finish

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["one_link", "poisson_starts", "sprayed"]

_MTU = 4096
_SOURCES = 16
_BASE_PS = PACKET_PS + 2 * 100_000 + 500_000
"""Of a packet through one switch, beyond its wait and its serialisation at the last link."""


def poisson_starts(load: float, packets: int, seed: int) -> NDArray[np.int64]:
    """Return when packets arrive, in ps, so that one link carries `load`."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(PACKET_PS / load, packets)).astype(np.int64)


def one_link(*, packets: int, runs: dict[float, int]) -> Part:
    """Send single packets from many hosts to one, at Poisson times; compare waits with M/D/1.

    Args:
        packets: in each run.
        runs: how many runs at each load; more where waits are correlated for longer.
    """
    part = Part("One link: M/D/1", _ONE_LINK)
    rows, drawn = [], {}
    for load, repeats in runs.items():
        waits = [_waits(load, packets, seed) for seed in range(repeats)]
        exact = all(found is not None for found in waits)
        part.claims.append(
            Claim(
                f"load {load}: departures of {packets * repeats:,} packets",
                "the recursion of one queue",
                "equal, to the picosecond" if exact else "differ",
                "every packet",
                exact,
            )
        )
        wait = np.concatenate([found for found in waits if found is not None]) / PACKET_PS
        low, high = _interval(wait)
        part.claims.append(
            within(f"load {load}: mean wait, service times", md1_mean_wait(load), wait.mean(), percent=1)
        )
        tails = [f"{np.percentile(wait, q):.2f} ({md1_wait_percentile(load, q):.2f})" for q in (50, 90, 99, 99.9)]
        rows.append([f"{load}", f"{wait.mean():.4f} ({md1_mean_wait(load):.4f})", f"{low:.3f} to {high:.3f}", *tails])
        drawn[load] = wait
    columns = ("load", "mean", "95 % interval of the mean", "p50", "p90", "p99", "p99.9")
    part.tables.append(Table("Waits in service times, simulated (theory)", columns, rows))
    part.plots.append(Plot("md1-wait", "Share of packets that wait longer, simulated and by theory", _tails(drawn)))
    return part


def _waits(load: float, packets: int, seed: int) -> NDArray[np.int64] | None:
    """Return the waits of one run in order of departure; None if any departure is not where one queue has it."""
    start = poisson_starts(load, packets, seed)
    rng = np.random.default_rng(seed + 1000)
    source = rng.integers(1, _SOURCES + 1, packets)
    made = compile_flows(
        single_switch(_SOURCES + 1), source, np.zeros(packets, np.int64), _MTU, flow_start=start, seed=seed
    )
    result = run(made)
    finish = work_conserving_finish(start, PACKET_PS)
    if not np.array_equal(np.sort(result["flow_delivered"]), finish + _BASE_PS):
        return None
    return finish - start - PACKET_PS


def _interval(wait: NDArray[np.float64], batches: int = 40) -> tuple[float, float]:
    """Return a 95 % interval of the mean by batch means, which are nearly independent."""
    means = np.array([batch.mean() for batch in np.array_split(wait, batches)])
    half = 2.02 * means.std(ddof=1) / np.sqrt(batches)
    return float(means.mean() - half), float(means.mean() + half)


def _tails(drawn: dict[float, NDArray[np.float64]]):  # noqa: ANN202 - a function that draws
    def draw(path: Path) -> None:
        with figure_of("Wait at one link", height=3.8) as figure:
            axes = figure.subplots()
            for (load, wait), colour in zip(drawn.items(), (BLUE, GREEN, ORANGE, "#8250df"), strict=False):
                at = np.linspace(0, md1_wait_percentile(load, 99.99), 60)
                beyond = 1 - np.searchsorted(np.sort(wait), at, side="right") / len(wait)
                axes.semilogy(at, [1 - md1_wait_at_most(load, x) for x in at], color=colour, linewidth=1)
                axes.semilogy(at, beyond, ".", color=colour, markersize=4, label=f"load {load}")
            axes.set_xlabel("wait, service times (lines: theory; dots: simulated)")
            axes.set_ylabel("share that waits longer")
            axes.set_ylim(1e-4, 1.1)
            axes.legend(frameon=False)
            save_figure(figure, path)

    return draw


def sprayed(*, packets: int, hosts: int = 128, links: int = 8, loads: tuple[float, ...] = (0.5, 0.8, 0.9)) -> Part:
    """Spray packets of many hosts over the uplinks of a leaf; compare the wait there with M/D/1."""
    part = Part("Spray: M/D/1 at every uplink", _SPRAYED)
    rows = []
    for load in loads:
        random_wait = _uplink_wait(load, packets, hosts=hosts, links=links, routing=SPRAY)
        turn_wait = _uplink_wait(load, packets, hosts=hosts, links=links, routing=ROUND_ROBIN)
        theory = md1_mean_wait(load)
        part.claims.append(within(f"load {load}: random spray, mean wait", theory, random_wait, percent=_SPRAY_BAR))
        part.claims.append(
            Claim(
                f"load {load}: spray in turn, mean wait",
                f"below {theory:.3f}",
                f"{turn_wait:.3f}",
                "below M/D/1",
                turn_wait < theory,
            )
        )
        every = _every_nth_wait(load, links)
        rows.append([f"{load}", f"{theory:.3f}", f"{random_wait:.3f}", f"{every:.3f}", f"{turn_wait:.3f}"])
    columns = ("load", "M/D/1", "random spray", "every 8th Poisson arrival", "spray in turn")
    part.tables.append(Table("Mean wait at an uplink, in service times", columns, rows))
    return part


_SPRAY_BAR = 3.0


def _uplink_wait(load: float, packets: int, *, hosts: int, links: int, routing: int) -> float:
    """Return the mean wait at the uplinks of leaf 0, in service times; all other links are nearly idle."""
    start = poisson_starts(load * links, packets, seed=int(load * 100))
    rng = np.random.default_rng(7)
    source, target = rng.integers(0, hosts, packets), hosts + rng.integers(0, hosts, packets)
    topology = leaf_spine(leaves=2, hosts_per_leaf=hosts, spines=links)
    fast = topology.port_ps_q16.copy()
    ends = topology.endpoint_of[0][hosts:]
    fast[ends] //= 64
    fast[topology.port_peer[ends]] //= 64
    made = compile_flows(topology, source, target, _MTU, flow_start=start, class_routing=[routing], port_ps_q16=fast)
    result = run(made)
    at_host = np.zeros(packets, np.int64)
    for host in range(hosts):
        mine = np.flatnonzero(source == host)
        at_host[mine] = work_conserving_finish(start[mine], PACKET_PS) - start[mine]
    fixed = 2 * PACKET_PS + PACKET_PS // 64 + 4 * 100_000 + 3 * 500_000  # two store-and-forwards, last link, path
    return float((result["flow_delivered"] - start - at_host - fixed).mean() / PACKET_PS)


def _every_nth_wait(load: float, links: int, packets: int = 400_000) -> float:
    """Return the mean wait where a queue gets every n-th arrival of a Poisson stream."""
    start = poisson_starts(load * links, packets * links, seed=11)[::links]
    return float((work_conserving_finish(start, PACKET_PS) - start).mean() / PACKET_PS - 1)


_ONE_LINK = f"""
{_SOURCES} hosts send single packets of 4,096 bytes (83.2 ns on the wire) to one host through one switch, at Poisson
times. All links are equal. A packet waits in its own NIC and at the switch; the two together are the wait of one
M/D/1 queue, exactly: a packet held back in its NIC waits behind one that keeps the shared link busy just then. So two
claims can be made: the shared link's departures are those of Lindley's recursion on the same arrivals, packet by
packet; and the mean wait is that of the Pollaczek-Khinchine formula, load / (2 (1 - load)), within sampling error.
"""
_SPRAYED = """
128 hosts on one leaf send single packets at Poisson times to hosts of another leaf over 8 spines; links to the
receiving hosts are 64 times faster, so that packets wait in their NIC (known exactly, and subtracted) and at the
uplink only. Sprayed at random, each uplink gets a Poisson stream - nearly, for a host cannot send two packets at once -
and waits are those of M/D/1. Sprayed in turn, each uplink gets every 8th packet, which is more even: waits are shorter,
and those of one queue fed with every 8th arrival of a Poisson stream.
"""
