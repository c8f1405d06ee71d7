"""A topology as a picture: servers, tiers of switches, cables between them.

Small networks are drawn switch by switch and GPU by GPU. Where a row would hold more than fits, its switches are drawn
by rail, then by pod, then all in one, with their number; cables between the same two are one line with their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.twin.fabric.topology import HOST, LEAF, NVLINK, SPINE, SUPERSPINE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from fourlane.twin.fabric.figures import CableFigures, TierFigures, TopologyFigures
    from fourlane.twin.fabric.topology import Topology

__all__ = ["plot_topology"]

MOST_IN_A_ROW = 20
MOST_SERVERS = 6
"""More than these are drawn together."""
_RAILS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989", "#9a6700", "#0a7ea4", "#57606a")
_WIDTH, _TALL = 0.86, 0.3
_NAMES = {LEAF: ("leaf", "leaves"), SPINE: ("spine", "spines"), SUPERSPINE: ("superspine", "superspines")}


@dataclass(slots=True)
class _Box:
    """What is drawn as one thing: a server, a switch, or many of them."""

    row: int
    nodes: NDArray[np.int64]
    rail: int
    pod: int
    plane: int
    x: float = 0.0
    width: float = 0.0
    lines: list[str] = field(default_factory=list)


def plot_topology(path: Path, topology: Topology, figures: TopologyFigures) -> None:
    """Draw a topology.

    Args:
        path: where to; the suffix says the format (.png, .svg, .pdf, .html).
        topology: what to draw.
        figures: of it, for the texts.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    boxes = _boxes(topology)
    top = max(box.row for box in boxes)
    network = figures.networks[0]
    counted = f"{figures.gpus:,} GPUs" if figures.gpus else f"{figures.hosts:,} hosts"
    title = (
        f"{topology.name}: {counted}, {sum(tier.switches for tier in figures.tiers if tier.network != NVLINK):,} "
        f"switches, bisection {network.bisection / 1e12:,.4g} Tbit/s"
        f"{' a plane' if topology.networks[0].endswith('.0') else ''} ({network.full:.0%} of full)"
    )
    with figure_of(title, height=1.4 + 1.25 * (top + 1)) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_xlim(0, 1.2)
        axes.set_ylim(-0.32, top + 0.4)
        _draw_cables(axes, topology, boxes)
        for box in boxes:
            _draw_box(axes, topology, box)
        _draw_margin(axes, figures, top)
        save_figure(figure, path)


def _boxes(topology: Topology) -> list[_Box]:
    """Return what is drawn, row by row, with its place."""
    rails = _rails(topology)
    kind = topology.node_tier.astype(np.int64)
    plane = topology.node_network.astype(np.int64)
    drawn = np.array([name != NVLINK for name in (*topology.networks, "")])[plane]
    found: list[_Box] = []
    for tier in range(HOST, SUPERSPINE + 1):
        nodes = np.flatnonzero((kind == tier) & drawn)
        if not len(nodes):
            continue
        for part in _parts(topology, tier, nodes, rails):
            pods, of_rail = np.unique(topology.node_pod[part]), np.unique(rails[part])
            found.append(
                _Box(
                    row=tier,
                    nodes=part,
                    rail=int(of_rail[0]) if len(of_rail) == 1 else -1,
                    pod=int(pods[0]) if len(pods) == 1 else -1,
                    plane=int(plane[part[0]]),
                )
            )
    for tier in range(SUPERSPINE + 1):
        _place(topology, [box for box in found if box.row == tier], rails)
    return found


def _rails(topology: Topology) -> NDArray[np.int64]:
    """Return [nodes]: the rail of hosts, and of switches all of whose hosts, or leaves, are of one; else -1."""
    rail = np.full(topology.nodes, -1, dtype=np.int64)
    first_of = np.searchsorted(topology.host_server, topology.host_server)
    rail[: topology.hosts] = np.arange(topology.hosts) - first_of
    for tier in (LEAF, SPINE):
        below = topology.port_node[topology.port_peer]
        chosen = (topology.node_tier[topology.port_node] == tier) & (topology.node_tier[below] == tier - 1)
        least = np.full(topology.nodes, 1 << 30)
        most = np.full(topology.nodes, -1)
        np.minimum.at(least, topology.port_node[chosen], rail[below[chosen]])
        np.maximum.at(most, topology.port_node[chosen], rail[below[chosen]])
        rail = np.where((least == most) & (topology.node_tier == tier), most, rail)
    return rail


def _parts(
    topology: Topology, tier: int, nodes: NDArray[np.int64], rails: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Cut the nodes of a tier into what is drawn as one: as fine as fits into a row."""
    pod, plane = topology.node_pod[nodes], topology.node_network[nodes]
    if tier == HOST:
        finest, most = topology.host_server[nodes], MOST_SERVERS
    else:
        finest, most = nodes, MOST_IN_A_ROW
    cuts = ([finest], [plane, pod, rails[nodes]], [plane, pod], [plane])
    for keys in cuts[:1] + cuts[2:] if tier == HOST else cuts:
        _, place = np.unique(np.stack(keys), axis=1, return_inverse=True)
        if place.max() < most:
            break
    return [nodes[place == each] for each in range(int(place.max()) + 1)]


def _place(topology: Topology, row: list[_Box], rails: NDArray[np.int64]) -> None:
    """Give the boxes of a row their places and texts."""
    row.sort(key=lambda box: (box.plane, box.pod, box.rail, int(box.nodes[0])))
    step = 1.0 / max(1, len(row))
    for place, box in enumerate(row):
        box.x = (place + 0.5) * step
        box.width = min(_WIDTH * step, 0.5)
        box.lines = _host_lines(topology, box) if box.row == HOST else _switch_lines(topology, box, rails)


def _host_lines(topology: Topology, box: _Box) -> list[str]:
    servers = np.unique(topology.host_server[box.nodes])
    each = "GPUs" if topology.gpus else "hosts"
    if len(servers) == 1:
        return [] if len(box.nodes) > 1 else [topology.node_name(int(box.nodes[0]))]
    where = f"pod {box.pod}: " if box.pod >= 0 and int(topology.node_pod.max()) > 0 else ""
    gpus = int(np.isin(topology.gpu_host, box.nodes).sum()) or len(box.nodes)
    if gpus == len(servers):
        return [f"{where}{gpus:,} hosts"]
    lines = [f"{where}{len(servers):,} servers", f"{gpus:,} {each}"]
    return [*lines, "NVLink inside"] if NVLINK in topology.networks else lines


def _switch_lines(topology: Topology, box: _Box, rails: NDArray[np.int64]) -> list[str]:
    if len(box.nodes) == 1:
        return [topology.node_name(int(box.nodes[0]))]
    lines = [f"{len(box.nodes):,} {_NAMES[box.row][1]}"]
    held = np.unique(rails[box.nodes])
    if box.rail >= 0 and box.row == LEAF:
        lines.insert(0, f"rail {box.rail}")
    elif box.row == LEAF and len(held) > 1:
        lines.append(f"of {len(held)} rails")
    if topology.networks[box.plane].endswith(tuple("0123456789")):
        lines.insert(0, f"plane {topology.networks[box.plane].rpartition('.')[2]}")
    return lines


def _draw_box(axes: Axes, topology: Topology, box: _Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour = _colour(box)
    corner = (box.x - box.width / 2, box.row - _TALL / 2)
    shape = FancyBboxPatch(
        corner,
        box.width,
        _TALL,
        boxstyle="round,pad=0,rounding_size=0.008",
        mutation_aspect=6,
        facecolor="white",
        edgecolor=colour,
        linewidth=1.4 if len(box.nodes) == 1 or box.row == HOST else 2.2,
        zorder=3,
    )
    axes.add_patch(shape)
    if box.row == HOST and not box.lines:
        _draw_server(axes, topology, box)
        return
    small = box.width < 0.06
    axes.text(
        box.x,
        box.row,
        "\n".join(box.lines),
        ha="center",
        va="center",
        fontsize=6 if small else 8,
        rotation=90 if small else 0,
        color="#24292f",
        zorder=4,
    )


def _draw_server(axes: Axes, topology: Topology, box: _Box) -> None:
    """Draw a server's GPUs (or NICs) one by one, and its NVSwitch below them."""
    places = _seats(box)
    height = box.row + 0.05
    axes.scatter(
        places, [height] * len(places), s=42, c=[_RAILS[rail % 8] for rail in range(len(places))], marker="s", zorder=5
    )
    server = int(topology.host_server[box.nodes[0]])
    name = f"server {server}"
    for rail, place in enumerate(places):
        axes.plot([place] * 2, [height, box.row + _TALL / 2], color=_RAILS[rail % 8], linewidth=1, zorder=4)
    if NVLINK in topology.networks:
        axes.plot([places[0], places[-1]], [height - 0.1] * 2, color=GREY, linewidth=3, zorder=4)
        for place in places:
            axes.plot([place] * 2, [height - 0.1, height], color=GREY, linewidth=1, zorder=4)
        name += ", NVSwitch"
    axes.text(box.x, box.row - _TALL / 2 - 0.03, name, ha="center", va="top", fontsize=7, color=GREY)


def _seats(box: _Box) -> NDArray[np.float64]:
    inner = box.width * 0.86
    return (
        np.linspace(box.x - inner / 2, box.x + inner / 2, len(box.nodes)) if len(box.nodes) > 1 else np.array([box.x])
    )


def _draw_cables(axes: Axes, topology: Topology, boxes: Sequence[_Box]) -> None:
    """Draw a line for the cables between each two boxes; its label where there are few."""
    from matplotlib.collections import LineCollection

    bundles, counts = _bundles(topology, boxes)
    thick = 0.45 if len(counts) < 60 else 0.15
    lines: list[list[tuple[float, float]]] = []
    colours: list[str] = []
    for x, lower, upper in bundles.T:
        below, above = boxes[int(lower)], boxes[int(upper)]
        lines.append([(float(x), below.row + _TALL / 2), (above.x, above.row - _TALL / 2)])
        colours.append(_colour(above if below.row == HOST else below))
    widths = (0.5 + thick * np.log2(1 + counts)).tolist()
    alpha = 0.35 if len(lines) > 150 else 0.6
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=widths, alpha=alpha, zorder=1))
    _label_cables(axes, boxes, bundles, counts)


def _bundles(topology: Topology, boxes: Sequence[_Box]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return [3, lines]: the place where a line begins, and its boxes below and above; and how many cables each is."""
    box_of = np.full(topology.nodes, -1, dtype=np.int64)
    seat = np.full(topology.nodes, np.nan)
    for place, box in enumerate(boxes):
        box_of[box.nodes] = place
        seat[box.nodes] = _seats(box) if box.row == HOST and not box.lines else box.x
    here, there = topology.port_node, topology.port_node[topology.port_peer]
    chosen = (topology.node_tier[here] < topology.node_tier[there]) & (box_of[here] >= 0) & (box_of[there] >= 0)
    ends = np.empty((3, int(chosen.sum())), dtype=np.float64)
    ends[0], ends[1], ends[2] = seat[here[chosen]], box_of[here[chosen]], box_of[there[chosen]]
    bundles, counts = np.unique(ends, axis=1, return_counts=True)
    return bundles, counts.astype(np.int64)


def _label_cables(axes: Axes, boxes: Sequence[_Box], bundles: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Write the number of cables at lines that stand for several, row by row: at each where few, else once for all."""
    rows = np.array([boxes[int(lower)].row for lower in bundles[1]])
    for row in np.unique(rows):
        here = np.flatnonzero(rows == row)
        if len(here) > 24 or counts[here].max() == 1:
            continue
        lower = bundles[0][here]
        upper = np.array([boxes[int(place)].x for place in bundles[2][here]])
        along = 0.7 if len(np.unique(upper)) > len(np.unique(lower)) else 0.3 if len(np.unique(lower)) > 1 else 0.5
        for x, count in zip(lower + along * (upper - lower), counts[here], strict=True):
            y = row + _TALL / 2 + along * (1 - _TALL)
            frame = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.text(x, y, f"{count:,}", ha="center", va="center", fontsize=7, color=GREY, zorder=2, bbox=frame)


def _colour(box: _Box) -> str:
    if box.row == HOST:
        return GREY
    if box.row == LEAF:
        return _RAILS[box.rail % 8] if box.rail >= 0 else BLUE
    return GREEN if box.row == SPINE else "#8250df"


def _draw_margin(axes: Axes, figures: TopologyFigures, top: int) -> None:
    """Write at the right what each tier is and what the cables above it are."""
    tiers = {name: row for row, name in ((LEAF, "leaf"), (SPINE, "spine"), (SUPERSPINE, "superspine"))}
    seen: set[int] = set()
    for tier in figures.tiers:
        row = tiers.get(tier.tier, 0)
        if row in seen or not 0 < row <= top:
            continue
        seen.add(row)
        axes.text(1.01, row, _tier_text(figures, tier), va="center", fontsize=7.5, color="#24292f")
    done: set[str] = set()
    for cable in figures.cables:
        lower = {"host": 0, "leaf": 1, "spine": 2}[cable.between.split("-")[0]]
        if cable.between not in done and not cable.between.endswith("nvswitch"):
            done.add(cable.between)
            axes.text(1.01, lower + 0.5, _cable_text(figures, cable), va="center", fontsize=7.5, color=GREY)


def _tier_text(figures: TopologyFigures, tier: TierFigures) -> str:
    count = sum(each.switches for each in figures.tiers if each.tier == tier.tier)
    names = _NAMES[{"leaf": LEAF, "spine": SPINE, "superspine": SUPERSPINE}[tier.tier]]
    lines = [f"{count:,} {names[count > 1]}", tier.model] if tier.model else [f"{count:,} {names[count > 1]}"]
    if tier.oversubscription is not None:
        lines.append(
            f"{tier.oversubscription:.3g} : 1 oversubscribed" if tier.oversubscription > 1.001 else "non-blocking"
        )
    return "\n".join(lines)


def _cable_text(figures: TopologyFigures, cable: CableFigures) -> str:
    count = sum(each.count for each in figures.cables if each.between == cable.between)
    length = f", {cable.length}" if cable.length else ""
    return f"{count:,} x {cable.rate}{length}"
