"""Why a simulation did not end: which flows hang, which ports stand paused, and whether pauses wait for each other.

A paused port waits for the switch behind it to send what it holds; where the ports of that switch are paused too,
the wait goes on there. A circle of such waits is a PFC deadlock: none of them can ever end by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fourlane.twin.fabric.results import Results

__all__ = ["circle_of_pauses", "hangs", "paused_ports", "unfinished_flows"]

_SHOWN = 5


def unfinished_flows(results: Results, most: int = _SHOWN) -> list[int]:
    """Return the first flows that began and did not finish, then those that did not begin."""
    raw = results.raw
    open_flows = np.flatnonzero(raw["flow_finish"] < 0)
    begun = raw["flow_started"][open_flows] >= 0
    return [int(flow) for flow in (*open_flows[begun][:most], *open_flows[~begun][:most])][:most]


def paused_ports(results: Results) -> list[tuple[int, int]]:
    """Return (port, queue) of all that stood paused at the end with packets waiting, or at a host."""
    bits = results.raw["port_paused"]
    found: list[tuple[int, int]] = []
    for port in np.flatnonzero(bits):
        found += [(int(port), queue) for queue in range(8) if bits[port] >> queue & 1]
    return found


def circle_of_pauses(results: Results) -> list[tuple[int, int]]:
    """Return paused (port, queue) that wait for each other in a circle; empty without one."""
    paused = paused_ports(results)
    waits_for = _waits(results, paused)
    state: dict[tuple[int, int], int] = {}
    for root in paused:
        path: list[tuple[int, int]] = []
        stack = [(root, iter(waits_for[root]))] if root not in state else []
        if stack:
            state[root] = 1
            path.append(root)
        while stack:
            here, others = stack[-1]
            following = next(others, None)
            if following is None:
                state[here] = 2
                stack.pop()
                path.pop()
            elif state.get(following) == 1:
                return path[path.index(following) :]
            elif following not in state:
                state[following] = 1
                path.append(following)
                stack.append((following, iter(waits_for[following])))
    return []


def _waits(results: Results, paused: list[tuple[int, int]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return for each paused (port, queue) those of the switch behind it that stand paused with packets."""
    scenario, depth = results.scenario, results.raw["port_depth"]
    held_by: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for port, queue in paused:
        if depth[port, queue] > 0:
            held_by.setdefault((int(scenario.port_node[port]), queue), []).append((port, queue))
    behind = {(port, queue): int(scenario.port_node[scenario.port_peer[port]]) for port, queue in paused}
    return {(port, queue): held_by.get((behind[port, queue], queue), []) for port, queue in paused}


def hangs(results: Results) -> list[str]:
    """Say in sentences what did not end and what it waits for."""
    left = results.flows - results.flows_finished
    raw: Any = results.raw
    begun = int(((raw["flow_started"] >= 0) & (raw["flow_finish"] < 0)).sum())
    lines = [f"unfinished: {left:,} flows, of which {begun:,} had begun"]
    lines += [_flow_line(results, flow) for flow in unfinished_flows(results)]
    if left > _SHOWN:
        lines.append(f"  and {left - _SHOWN:,} more")
    paused = paused_ports(results)
    if paused:
        shown = ", ".join(_port_text(results, each) for each in paused[:_SHOWN])
        more = f" and {len(paused) - _SHOWN:,} more" if len(paused) > _SHOWN else ""
        lines.append(f"paused: {shown}{more}")
    circle = circle_of_pauses(results)
    if circle:
        shown = ", ".join(_port_text(results, each) for each in circle[:_SHOWN])
        lines.append(f"a circle of {len(circle)} pauses that wait for each other (PFC deadlock): {shown}")
    return lines


def _flow_line(results: Results, flow: int) -> str:
    scenario, raw = results.scenario, results.raw
    source, target = int(scenario.flow_src_port[flow]), int(scenario.flow_dst_port[flow])
    ends = "a gate" if source < 0 else f"{_end(results, source)} to {_end(results, target)}"
    size = f"{int(results.flow_bytes[flow]):,} bytes"
    state = f"began at {results.start_us[flow]:,.4f} us" if raw["flow_started"][flow] >= 0 else "has not begun"
    return f"  {scenario.flow_name(flow)}: {ends}, {size}, {state}" + _held(results, source)


def _held(results: Results, port: int) -> str:
    """Say that a flow's first port stands paused."""
    bits = int(results.raw["port_paused"][port]) if port >= 0 else 0
    return f"; its port {results.port_name(port)} is paused" if bits else ""


def _end(results: Results, port: int) -> str:
    return results.scenario.node_name(int(results.scenario.port_node[port]))


def _port_text(results: Results, place: tuple[int, int]) -> str:
    return f"{results.port_name(place[0])} ({results.queue_names[place[1]]})"
