"""DCQCN: fixed point and fairness against the fluid model, where it fails, and what it does to an incast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fabric_validation.networks import common, compile_flows, incast_pairs, leaf_spine_128, run
from fabric_validation.page import Claim, Part, Plot, Table, within
from fourlane.report.plots import BLUE, GREEN, ORANGE, figure_of, save_figure
from fourlane.twin.fabric.builders import single_switch
from fourlane.twin.fabric.compiled import Dcqcn
from fourlane.twin.fabric.dcqcn_theory import DcqcnFluid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["dcqcn_fixed_point", "dcqcn_incast"]

_PAYLOAD, _HEADER = 1024, 64
_FLUID = DcqcnFluid(packet=_PAYLOAD + _HEADER)
_PAPER = Dcqcn(rate_hai=40e6)
"""The paper's parameters; its analysis has no hyper increase."""


def dcqcn_fixed_point(
    *, flows: tuple[int, ...] = (2, 4, 8, 12, 16, 32), duration_ms: int = 100, crowds: tuple[int, ...] = (64, 128, 256)
) -> Part:
    """Run N flows on one 40 Gbit/s link until they settle; compare rates and queue with the fluid's fixed point."""
    part = Part("DCQCN: fixed point and fairness", _FIXED_POINT)
    rows, drawn = [], {}
    for n in (*flows, *crowds):
        seen = _Settled(n, duration_ms)
        point = _FLUID.fixed_point(n)
        rows.append(_row(n, seen, point.marked, point.queue))
        drawn[n] = seen
        if n in flows:
            part.claims += _claims(n, seen, point.queue)
        elif n > _FLUID.most_flows_heard():
            part.claims.append(_taken_over(n, seen))
    columns = ("flows", "utilisation", "Jain index", "slowest / fair", "marked, theory", "marked", "queue, theory, kB")
    part.tables.append(Table("Second half of the run", (*columns, "queue, kB", "pauses"), rows))
    part.plots.append(Plot("dcqcn-convergence", "Rates and queue of 4 and 16 flows over time", _over_time(drawn)))
    return part


def _over_time(drawn: dict[int, _Settled]) -> Callable[[Path], None]:
    def draw(file: Path) -> None:
        shown = [n for n in (4, 16) if n in drawn] or list(drawn)[:1]
        with figure_of("DCQCN: rates of all flows, and the queue they share", height=4.2) as figure:
            for column, axes in zip(shown, figure.subplots(2, len(shown), squeeze=False).T, strict=True):
                seen = drawn[column]
                width = max(1, len(seen.rates) // 250)
                cut = len(seen.rates) // width * width
                rates = seen.rates[:cut].reshape(-1, width, column).mean(axis=1) / 1e9
                depth = seen.depth[1 : cut + 1].reshape(-1, width).mean(axis=1) / 1e3
                at = seen.time_ms[1 : cut + 1].reshape(-1, width).mean(axis=1)
                axes[0].plot(at, rates, linewidth=0.7)
                axes[0].axhline(40 / column, color=ORANGE, linewidth=1, linestyle="--")
                axes[0].set_title(f"{column} flows")
                axes[1].plot(at, depth, color=BLUE, linewidth=0.8)
                queue = _FLUID.fixed_point(column).queue
                axes[1].axhline(200 if queue is None else queue / 1e3, color=GREEN, linewidth=1, linestyle="--")
                axes[1].set_ylim(0, 1.3 * max(depth[len(depth) // 4 :].max(), 200))
                axes[1].set_xlabel("ms (dashed: fair share; fixed point of the queue, or kmax)")
            figure.axes[0].set_ylabel("Gbit/s")
            figure.axes[len(shown)].set_ylabel("queue, kB")
            save_figure(figure, file)

    return draw


class _Settled:
    """What N flows do in the second half of a run, all starting at line rate."""

    def __init__(self, flows: int, duration_ms: int) -> None:
        topology = single_switch(flows + 1, rate="40Gbps", propagation="1us")
        port = topology.endpoint_of[0][1:]
        self.bottleneck = topology.port_peer[topology.endpoint_of[0][0]]
        result, before = (
            run(
                compile_flows(
                    topology,
                    np.arange(1, flows + 1),
                    np.zeros(flows, np.int64),
                    int(5e9 * duration_ms / 1e3),
                    sample_interval=20_000_000,
                    sample_ports=np.append(port, self.bottleneck),
                    max_time=until * 1_000_000_000,
                    **_lanes(topology.ports, topology.node_kind),
                )
            )
            for until in (duration_ms, duration_ms // 2)
        )
        half = len(result["sample_time"]) // 2
        time = result["sample_time"]
        self.time_ms = time / 1e9
        sent = result["sample_tx"][:, :-1]
        self.depth = result["sample_depth"][:, -1]
        self.rate = (sent[-1] - sent[half]) * 8e12 / (time[-1] - time[half])
        self.rates = np.diff(sent, axis=0) * 8e12 / np.diff(time)[:, None]
        total = result["sample_tx"][:, -1]
        self.utilisation = (total[-1] - total[half]) * 8e12 / (time[-1] - time[half]) / 40e9
        self.queue = float(self.depth[half:].mean())
        self.pauses = int(result["port_pauses"].sum())
        self.drops = int(result["port_drops"].sum())
        counters = ("port_marks", "port_tx_packets")
        marks, packets = ((result[name] - before[name])[self.bottleneck].sum() for name in counters)
        self.marked = min(1.0, float(marks / packets))

    @property
    def jain(self) -> float:
        """Return Jain's fairness index of the rates."""
        return float(self.rate.sum() ** 2 / (len(self.rate) * (self.rate**2).sum()))


def _lanes(ports: int, kind: NDArray[np.uint8]) -> dict[str, Any]:
    """Set up one lossless queue that marks as in the paper, in a 12 MB switch; ACKs and CNPs before all else."""
    return {
        "mtu": _PAYLOAD,
        "header": _HEADER,
        "queue_weight": [_PAYLOAD + _HEADER, 0],
        "queue_lossless": [1, 0],
        "queue_alpha_q16": [65536 // 8, 65536],
        "queue_reserved": [0, 1 << 30],
        "queue_kmin": [5_000, -1],
        "queue_kmax": [200_000, 0],
        "queue_pmax_q32": [round(0.01 * 2**32), 0],
        "class_ack_queue": [1],
        "class_cnp_queue": [1],
        "class_ecn": [1],
        "class_cc": [1],
        "class_window": [0],
        "class_ack_every": [16],
        "node_shared": np.where(kind == 1, 12_000_000, 0),
        "port_headroom": np.full(ports, 25_000),
        "dcqcn": _PAPER,
    }


def _claims(n: int, seen: _Settled, queue: float | None) -> list[Claim]:
    fair, held = seen.jain >= 0.95, f"{seen.queue / 1e3:.1f} kB"
    claims = [Claim(f"{n} flows: shares of the link", f"1/{n} each", f"Jain {seen.jain:.3f}", "at least 0.95", fair)]
    if queue is not None:
        inside = 5_000 < seen.queue < 200_000
        claims.append(Claim(f"{n} flows: mean queue", "between kmin and kmax", held, "5 to 200 kB", inside))
    if queue is not None and n <= _STEADY:
        claims.append(within(f"{n} flows: mean queue, kB", queue / 1e3, seen.queue / 1e3, percent=33, digits=1))
    return claims


_STEADY = 8
"""Flows up to which the fixed point is steady; beyond, rates and queue swing about it."""


def _taken_over(n: int, seen: _Settled) -> Claim:
    """Check that more flows than marks can reach in time are held by pauses."""
    return Claim(
        f"{n} flows, more than one packet a CNP interval each ({_FLUID.most_flows_heard():.0f}): pauses take over",
        "queue beyond kmax, pauses",
        f"{seen.queue / 1e3:,.0f} kB, {seen.pauses:,} pauses, {seen.drops} drops",
        "all three",
        seen.queue > 200_000 and seen.pauses > 0 and seen.drops == 0,
    )


def _row(n: int, seen: _Settled, marked: float, queue: float | None) -> list[str]:
    return [
        str(n),
        f"{seen.utilisation * 100:.1f} %",
        f"{seen.jain:.3f}",
        f"{seen.rate.min() / (40e9 / n):.2f}",
        f"{marked * 100:.2f} %",
        f"{seen.marked * 100:.2f} %",
        "above kmax" if queue is None else f"{queue / 1e3:.1f}",
        f"{seen.queue / 1e3:.1f}",
        str(seen.pauses),
    ]


def dcqcn_incast() -> Part:
    """Run the incast of 64 MiB with and without reaction to marks, under the parameters that SimAI ships."""
    part = Part("Marking an incast", _INCAST)
    rows, base, slower = [], {}, {}
    for (window, reaction), given in _REACTIONS.items():
        finish, pauses, depth = _incast_us(**given)
        base.setdefault(window, finish)
        slower[window, reaction] = finish / base[window] - 1
        against = f"{slower[window, reaction] * 100:+.0f} %"
        rows.append([window, reaction, f"{finish:.1f}", against, f"{pauses}", f"{depth / 1e6:.1f}"])
    found = slower[_WINDOWED, _SIMAI_NAME]
    part.claims.append(
        Claim(
            "I64_1M, windows: what heeding marks with SimAI's parameters costs",
            "+66 % (ns-3: 1347.5 to 2233.7 us)",
            f"{found * 100:+.0f} %",
            "+50 to +80 %",
            0.5 <= found <= 0.8,
        )
    )
    columns = ("window", "reaction to marks", "last flow, us", "against none", "pauses", "deepest queue, MB")
    part.tables.append(Table("I64_1M: 64 hosts send 1 MiB each to one", columns, rows))
    return part


_SIMAI = Dcqcn(
    g=1 / 256,
    alpha0=1.0,
    alpha_period=1_000_000,
    cnp_interval=0,
    decrease_gate=4_000_000,
    timer=900_000_000,
    byte_counter=1 << 40,
    fast_rounds=1,
    rate_ai=50e6,
    rate_hai=100e6,
    min_rate=100e6,
    clamp=0,
)
_WINDOWED, _OPEN = "208 kB", "none"
_SIMAI_NAME = "SimAI's parameters"
_HEEDED = {"class_cc": [1], "class_ecn": [1]}
_REACTIONS: dict[tuple[str, str], dict[str, Any]] = {
    (window, reaction): {**limit, **given}
    for window, limit in ((_WINDOWED, {"class_window": [50 * 4160]}), (_OPEN, {}))
    for reaction, given in (
        ("none", {}),
        (_SIMAI_NAME, {**_HEEDED, "dcqcn": _SIMAI}),
        ("the paper's parameters", {**_HEEDED, "dcqcn": _PAPER}),
    )
}


def _incast_us(**given: Any) -> tuple[float, int, int]:
    """Return when the last flow of I64_1M is done, in us, the pauses, and the deepest queue in bytes."""
    topology = leaf_spine_128()
    lanes = common(topology) | {
        "queue_kmin": [800_000, -1],
        "queue_kmax": [3_200_000, 0],
        "queue_pmax_q32": [round(0.2 * 2**32), 0],
        "class_cnp_queue": [1],
    }
    result = run(compile_flows(topology, *incast_pairs(64), 1 << 20, **(lanes | given)))
    finish_us = float(result["flow_finish"].max() / 1e6)
    return finish_us, int(result["port_pauses"].sum()), int(result["port_max_depth"].max())


_FIXED_POINT = """
N flows of one 40 Gbit/s link, under the parameters of the DCQCN paper (kmin 5 kB, kmax 200 kB, pmax 1 %; CNP interval
50 us, timer 55 us, byte counter 10 MB, R_AI 40 Mbit/s, g 1/256), all starting at line rate. The fluid model gives the
marking probability at which N equal rates stand still, and the marking line the queue that goes with it. From about
ten flows on rates and queue swing instead of resting there (Zhu et al., CoNEXT 2016, section 3, on when the fluid is
unstable): packets are marked in bursts, and the mean queue stays below the fixed point. When a fair share is less than
a packet a CNP interval (link x 50 us / packet), cuts come too rarely, and PFC holds the flows; a study of DCQCN at 40G
saw that above about 160 flows: 40 Gbit/s x 50 us are 167 packets of 1,500 bytes.
"""
_INCAST = """
64 hosts send 1 MiB each to one host at once: the pattern of expert dispatch. Marks tell senders to slow down although
nothing is gained by it: the receiver's link is the bound, and it idles when senders have slowed too far. How much that
costs depends on what is still to be sent when the first mark comes back. With windows (SimAI has them) most of the
message is; without, all of it has left at line rate, waits in the switch, and marks come too late to do harm.
"""
