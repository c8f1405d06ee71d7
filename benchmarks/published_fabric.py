"""What public simulators were measured to do on the named scenarios; constants, not measured by this repository's runs.

Each was built and run by itself on the same definitions (`fourlane.twin.fabric.named`), on one core of another machine
in November 2026: csg-htsim (github.com/Broadcom/csg-htsim, RoCE with PFC), uet-htsim
(github.com/ultraethernet/uet-htsim, NSCC), and the ns-3 of SimAI (github.com/aliyun/SimAI, RDMA, optimised build).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMPLETION_US", "INSTRUCTIONS", "PEERS", "RATES", "Published"]

PEERS = ("uet-htsim", "csg-htsim", "SimAI ns-3")

RATES: dict[str, dict[str, float]] = {
    "P1024_2MB": {"uet-htsim": 0.19e6, "csg-htsim": 0.145e6, "SimAI ns-3": 0.076e6},
    "A128_64K": {"uet-htsim": 0.20e6, "csg-htsim": 0.33e6, "SimAI ns-3": 0.16e6},
    "small": {"uet-htsim": 0.66e6, "csg-htsim": 1.1e6, "SimAI ns-3": 0.21e6},
}
"""Data packet-hops per CPU-second; "small": the best of the others, those of up to 100,000 hops."""

INSTRUCTIONS: dict[str, tuple[float, float]] = {"htsim": (5_600, 6_400), "SimAI ns-3": (13_700, 13_700)}
"""Instructions per data packet-hop, least and most."""


class Published(NamedTuple):
    """When the last flow finished, in us: the best figure of any mode, and the range under per-flow ECMP."""

    best: float
    best_is: str
    ecmp: tuple[float, float] | None
    ecmp_is: str


COMPLETION_US: dict[str, Published] = {
    "P1024_2MB": Published(
        53.6, "uet-htsim, adaptive per packet in the switch", (229.0, 350.0), "csg-htsim, uet-htsim"
    ),
    "P128_2MB": Published(51.0, "uet-htsim, NSCC mixed", (139.3, 204.0), "uet-htsim, SimAI ns-3"),
    "A64_64K": Published(88.9, "uet-htsim, round robin per packet", (103.8, 124.0), "csg-, uet-htsim, SimAI ns-3"),
    "A128_64K": Published(175.2, "uet-htsim, round robin per packet", (198.1, 235.0), "csg-htsim, SimAI ns-3"),
}
