"""Closed forms, permutations and all-to-alls under every routing; a stale, coarse queue signal; cost by packets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric_validation.networks import (
    ADAPTIVE,
    ECMP,
    ROUND_ROBIN,
    SPRAY,
    all_to_all_pairs,
    common,
    compile_flows,
    fat_tree_1024,
    flow_hashes,
    incast_pairs,
    leaf_spine_128,
    path,
    permutation_pairs,
    run,
)
from fabric_validation.page import Claim, Part, Plot, Table
from fourlane.report.plots import figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fourlane.twin.fabric.topology import Topology

__all__ = ["Load", "adaptive_rate", "closed_forms", "full_load", "herding", "linear_cost", "loads"]

_KIB64 = 65_536


def closed_forms() -> Part:
    """Run one flow and incasts whose completion time has a closed form."""
    part = Part("Closed forms: one flow, incast", _CLOSED)
    for name, flows, size, printed in (
        ("ONE_4K", 1, 4096, "4.1379"),
        ("ONE_1M", 1, 1 << 20, "25.3539"),
        ("I64_64K", 64, _KIB64, "89.2515"),
        ("I64_256K", 64, 1 << 18, "344.842"),
        ("I64_1M", 64, 1 << 20, "1367.2"),
    ):
        finish = _last(leaf_spine_128(), *incast_pairs(flows), size)
        exact = path(4).incast_ps(flows, size // 4096)
        digits = len(printed.split(".")[1])
        ours = f"{finish / 1e6:.{digits}f}"
        part.claims.append(
            Claim(
                f"{name}: last acknowledgement",
                f"{printed} us ({exact:,} ps)",
                f"{ours} us ({finish:,} ps)",
                "every digit, to the ps",
                ours == printed and finish == exact,
            )
        )
    return part


def _last(topology: Topology, source: Sequence[int], target: Sequence[int], size: int, **given: Any) -> int:
    made = compile_flows(topology, source, target, size, **(common(topology) | given))
    return int(run(made)["flow_finish"].max())


@dataclass(frozen=True, slots=True)
class Load:
    """A scenario of full load, and what public simulators give for it: completion of the last flow, us."""

    name: str
    pairs: tuple[list[int], list[int]]
    size: int
    bound_ps: int
    best: float
    ecmp: tuple[float, float]

    @property
    def topology(self) -> Topology:
        """The network it runs on."""
        return fat_tree_1024() if self.name.startswith("P1024") else leaf_spine_128()

    def finish_us(self, routing: int, **given: Any) -> float:
        """Return when the last flow has its last acknowledgement."""
        return _last(self.topology, *self.pairs, self.size, class_routing=[routing], **given) / 1e6

    def hashed_us(self, seed: int, **given: Any) -> float:
        """Return the same under flow ECMP, with the hashes of one draw of ports."""
        forth, back = flow_hashes(*self.pairs, seed=seed)
        return self.finish_us(ECMP, flow_hash=forth, flow_back_hash=back, **given)


def loads(*names: str) -> list[Load]:
    """Return the scenarios of these names; of all, without names."""
    every = [
        Load("A64_64K", all_to_all_pairs(64), _KIB64, path(4).all_to_all_ps(64, 16), 88.9, (109.8, 124.0)),
        Load("A128_64K", all_to_all_pairs(128), _KIB64, path(4).all_to_all_ps(128, 16), 175.2, (198.1, 235.0)),
        Load("P128_2MB", permutation_pairs(128), 2_000_000, path(4).flow_ps(489), 51.0, (139.3, 204.0)),
        Load("P1024_2MB", permutation_pairs(1024), 2_000_000, path(6).flow_ps(489), 53.6, (229.0, 493.4)),
    ]
    return [load for load in every if not names or load.name in names]


def full_load(*, seeds: dict[str, int]) -> Part:
    """Run all-to-alls and permutations under every routing.

    Args:
        seeds: how many draws of hashes for ECMP, by scenario; scenarios not named are left out.
    """
    part = Part("All-to-all and permutation", _FULL_LOAD)
    rows = []
    for load in loads(*seeds):
        found = {
            (name, every): load.finish_us(mode, class_ack_every=[every], ar_quantum=_QUANTUM)
            for name, mode in _SPRAYS.items()
            for every in _ACK_EVERY
        }
        drawn = range(seeds[load.name])
        hashed = [np.array([load.hashed_us(s, queue_service=[order, 0]) for s in drawn]) for order in (0, 1)]
        better, name = min((found[name, _ACK_EVERY[0]], name) for name in _SPRAYS)
        part.claims.append(
            Claim(
                f"{load.name}: best of spray and adaptive",
                f"bound {load.bound_ps / 1e6:.1f} us, best public {load.best} us",
                f"{better:.1f} us ({name})",
                "no slower than the best public figure",
                round(better, 1) <= load.best,
            )
        )
        low, high = load.ecmp
        both = np.concatenate(hashed)
        share = float(np.mean((both >= low) & (both <= high)))
        part.claims.append(
            Claim(
                f"{load.name}: flow ECMP, {len(both)} runs",
                f"public {low:g} to {high:g} us",
                f"median {np.median(both):.1f} us ({both.min():.1f} to {both.max():.1f}), {share * 100:.0f} % in it",
                "median in the public range",
                low <= np.median(both) <= high,
            )
        )
        spread = " ".join(f"{each.min():.1f} / {np.median(each):.1f} / {each.max():.1f};" for each in hashed).rstrip(
            ";"
        )
        each = [" / ".join(f"{found[name, every]:.2f}" for every in _ACK_EVERY) for name in _SPRAYS]
        rows.append([load.name, f"{load.bound_ps / 1e6:.2f}", *each, spread])
    columns = ("scenario", "bound", *_SPRAYS, "ECMP: least / median / most; the same with flows one after the other")
    caption = "Completion of the last flow, us; an acknowledgement every 4 packets / every packet"
    part.tables.append(Table(caption, columns, rows))
    return part


_SPRAYS = {"adaptive": ADAPTIVE, "spray in turn": ROUND_ROBIN, "random spray": SPRAY}
_ACK_EVERY = (4, 1)
_QUANTUM = 2 * 4160
"""Of the queue signal: two packets. By the byte, acknowledgements alone would decide between idle links."""


def adaptive_rate(*, size: int = 32 << 20) -> Part:
    """Measure what share of link rate a permutation of long flows gets, adaptively routed and hashed."""
    part = Part("Adaptive routing of a permutation", _ADAPTIVE)
    load = Load("P128_32MiB", permutation_pairs(128), size, path(4).flow_ps(size // 4096), 0.0, (0.0, 0.0))
    least = load.bound_ps / 1e6 / load.finish_us(ADAPTIVE, ar_quantum=_QUANTUM)
    hashed = load.bound_ps / 1e6 / load.hashed_us(0)
    part.claims.append(
        Claim("adaptive: rate of the slowest flow", "link rate", f"{least * 100:.1f} %", "at least 95 %", least >= 0.95)
    )
    part.claims.append(
        Claim(
            "ECMP on the same flows: rate of the slowest",
            "1 / (flows on the fullest link)",
            f"{hashed * 100:.1f} %",
            "at most 50 %: hashes collide",
            hashed <= 0.5,
        )
    )
    return part


def herding(
    *,
    quanta: tuple[int, ...] = (1, 2 * 4160, 8 * 4160, 32 * 4160),
    ages_ns: tuple[int, ...] = (0, 100, 500, 1000, 2000, 5000),
    levels: int = 1 << 20,
    permutations: int = 3,
) -> Part:
    """Sweep how coarse and how old the queue signal of adaptive routing is; compare with spray in turn."""
    part = Part("A coarse, stale signal herds", _HERDING)
    all_to_all = loads("A64_64K")
    bound = path(4).flow_ps(489)
    turned = [Load("P128", permutation_pairs(128, s), 2_000_000, bound, 0, (0, 0)) for s in range(1, permutations + 1)]
    maps = {}
    for name, group in (("A64_64K", all_to_all), ("P128_2MB", turned)):
        base = sum(load.finish_us(ROUND_ROBIN) for load in group)
        ratio = [
            [
                sum(load.finish_us(ADAPTIVE, ar_quantum=q, ar_levels=levels, ar_staleness=1000 * age) for load in group)
                / base
                for age in ages_ns
            ]
            for q in quanta
        ]
        maps[name] = np.array(ratio)
        rows = [[_quantum_name(q), *(f"{r:.3f}" for r in row)] for q, row in zip(quanta, ratio, strict=True)]
        caption = f"{name}: completion under adaptive routing over that under spray in turn"
        part.tables.append(Table(caption, ("quantum \\ age of the signal", *(f"{a} ns" for a in ages_ns)), rows))
    part.claims += _herding_claims(maps, ages_ns)
    part.plots.append(Plot("adaptive-herding", "Adaptive routing against spray in turn", _heat(maps, quanta, ages_ns)))
    return part


def _herding_claims(maps: dict[str, NDArray[np.float64]], ages_ns: tuple[int, ...]) -> list[Claim]:
    """Say where a signal helps and where it herds; rows are quanta (the second: two packets), columns ages."""
    us = ages_ns.index(1000)
    old, fresh, permuted = maps["A64_64K"][1, us], maps["A64_64K"][1, 0], maps["P128_2MB"][1, -1]
    by_byte = maps["P128_2MB"][0, 0]
    return [
        Claim("A64_64K, signal 1 us old", "herds", f"{old:.2f} times spray in turn", "at least 1.1", old >= 1.1),
        Claim("A64_64K, fresh signal", "does not herd", f"{fresh:.2f} times", "at most 1.02", fresh <= 1.02),
        Claim("P128_2MB, signal 5 us old", "herds", f"{permuted:.2f} times", "at least 1.1", permuted >= 1.1),
        Claim(
            "P128_2MB, fresh signal by the byte",
            "no ties to draw lots in: hosts in step keep their ways",
            f"{by_byte:.2f} times",
            "at least 1.1",
            by_byte >= 1.1,
        ),
    ]


def _quantum_name(quantum: int) -> str:
    return "1 byte" if quantum == 1 else f"{quantum // 4160} packet{'s' if quantum > 4160 else ''}"


def _heat(
    maps: dict[str, NDArray[np.float64]], quanta: tuple[int, ...], ages: tuple[int, ...]
) -> Callable[[Path], None]:
    def draw(file: Path) -> None:
        with figure_of("Completion under adaptive routing over that under spray in turn", height=3.4) as figure:
            most = max(2.0, *(float(ratio.max()) for ratio in maps.values()))
            for axes, (name, ratio) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
                axes.imshow(ratio, cmap="RdYlGn_r", vmin=2 - most, vmax=most, aspect="auto")
                axes.set_title(name)
                axes.grid(visible=False)
                axes.set_xticks(range(len(ages)), [f"{age / 1000:g}" for age in ages])
                axes.set_yticks(range(len(quanta)), [_quantum_name(q) for q in quanta])
                axes.set_xlabel("age of the signal, us")
                for (y, x), value in np.ndenumerate(ratio):
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
            figure.axes[0].set_ylabel("quantum of the signal")
            save_figure(figure, file)

    return draw


def linear_cost(*, sizes: tuple[int, ...] = (1 << 18, 1 << 19, 1 << 20, 1 << 21)) -> Part:
    """Count the simulator's events at four sizes of the same permutation."""
    part = Part("Cost is linear in packets", _LINEAR)
    rows, each = [], []
    for size in sizes:
        topology = leaf_spine_128()
        made = compile_flows(topology, *permutation_pairs(128), size, class_routing=[ADAPTIVE], **common(topology))
        result = run(made)
        hops = int(result["data_hops"])
        each.append(int(result["events"]) / hops)
        rows.append([f"{size >> 10:,} KiB", f"{hops:,}", f"{int(result['events']):,}", f"{each[-1]:.3f}"])
    spread = max(each) / min(each) - 1
    part.claims.append(
        Claim(
            "events a packet-hop, four sizes",
            "the same",
            f"differ by {spread * 100:.1f} %",
            "at most 5 %",
            spread <= 0.05,
        )
    )
    part.tables.append(Table("Events", ("a flow", "data packet-hops", "events", "events a hop"), rows))
    return part


_CLOSED = """
Times to the last acknowledgement that have a closed form (L links, n packets of time s, base time b one way, an ACK of
time a): n s + (L - 1) s + 2 b + L a, for n packets of all flows together. Public simulators print the same digits.
"""
_FULL_LOAD = """
The same scenarios as public simulators ran them: 400 Gbit/s, 0.1 us a link, 0.5 us a switch, 4,096-byte packets.
Public figures: uet-htsim and csg-htsim, SimAI's ns-3, run on these scenarios; under ECMP several transports and seeds.
The best are uet-htsim's, whose receivers acknowledge every 16 KiB (`UecSink::_bytes_unacked_threshold`), four packets;
the claims are made with the same. With an acknowledgement a packet, 64 bytes beside 4,160 in either direction of a
full link are 1.5 % more work: those figures are the second of each pair. Under ECMP half of the runs have NICs that
serve their flows in turn, half NICs that send one flow after the other: an all-to-all takes longer so.
"""
_ADAPTIVE = """
Each of 128 hosts sends 32 MiB to another; leaves and spines have just the capacity for it. Link rate is what a flow
would get alone (its closed form over the time it took).
"""
_HERDING = """
Adaptive routing sends each packet to the uplink with the least queue. Real switches compare levels, not bytes, and look
at the queues from time to time. When all packets of an interval see the same signal they go the same way. Spray in turn
needs no signal. Public simulators found adaptive routing behind spray in turn on the all-to-all (115 to 135 us against
88.9), with a signal of 4 levels looked up every 0.1 us; whether herding was the reason was open. Here the age of the
signal makes the difference, not its coarseness: 0.1 us old it costs a few percent, from 1 us on a fifth to a third;
a quantum so coarse that all ports look alike turns adaptive routing into random spray, and herding ends. A signal
exact to the byte has a weakness of its own: ports hardly ever tie, so flows in step keep to the same ports and meet at
the spines. A leaf does not see queues there, so that on the permutation spray in turn, which is even at the spines
too, is ahead of adaptive routing by any signal.
"""
_LINEAR = """
Work is counted in events, which no other load on the machine can change.
"""
