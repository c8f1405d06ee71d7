"""Render a plan for Linux host interfaces: one POSIX shell script a network that applies, checks and removes lanes.

The lanes are those of `host`, the same text as in the lab. They govern what passes the kernel (sockets), not what RDMA
sends past it. Marks for programs that set none go in by nftables, where they are asked for. The script's unchanging
part is `host.sh` beside this module.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.lanes.render.host import (
    MAJOR,
    HostQueues,
    apply_lines,
    class_id,
    dscp_blocks,
    host_queues,
)
from fourlane.units import Size

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster, Network, NetworkName

__all__ = ["host_buffer", "render_host"]

BUFFER_S = 2e-3
LEAST_BUFFER = 1 << 20
_SHIFT = {"ip": 16, "ipv6": 20}


def render_host(plan: LanePlan, cluster: Cluster) -> dict[str, str]:
    """Write `<network>.sh` for each network that carries sockets; servers are alike, so it is the same on all."""
    return {
        f"{name}.sh": _script(plan, cluster, name, network)
        for name, network in cluster.networks().items()
        if network.fabric != "infiniband"
    }


def host_buffer(network: Network) -> Size:
    """Return what the queues of one interface share: 2 ms of the line, at least 1 MiB, so that senders wait."""
    return Size(max(LEAST_BUFFER, round(network.rate.bytes_per_second * BUFFER_S)))


def _script(plan: LanePlan, cluster: Cluster, name: NetworkName, network: Network) -> str:
    queues = host_queues(plan, name, network.rate, buffer=host_buffer(network))
    classes = " ".join(f"{kind.value}:{lane.dscp}" for kind, lane in plan.on(name).items())
    return (
        "#!/bin/sh\n"
        f"# Lanes of a host's interfaces on the {name} of {_line(cluster.name)}, as the lane plan {_line(plan.name)} "
        "says.\n"
        "# Written by fourlane lanes render --target host: change the plan, not this file.\n\n"
        f"INTERFACES={shlex.quote(' '.join(network.interfaces))}\n"
        f"CLASSES={shlex.quote(classes)}\n"
        f"TABLE=fourlane_{name}\n\n"
        f"{_function('apply_lines', apply_lines(queues, '$1'))}\n"
        f"{_function('lanes_wanted', _wanted(queues))}\n" + _body()
    )


def _wanted(queues: HostQueues) -> list[str]:
    """Return what the kernel shall hold, in the words of the script's reading side."""
    major, default = MAJOR[queues.network], queues.queue(queues.default)
    line = int(queues.rate)
    lines = [
        f"root {major}: default 0x{default.minor:x}",
        f"class {major}:1 prio - rate {line} ceil {line}",
    ]
    for queue in queues.queues:
        name = class_id(queues, queue)
        lines.append(
            f"class {name} prio {int(queue.weight is not None)} rate {int(queues.guaranteed(queue))} "
            f"ceil {int(queues.most(queue))}"
        )
        lines.append(f"fifo {name} limit {int(queue.buffer)}")
        if queue.traffic_class is not queues.default:
            lines += [
                f"filter {protocol} {value << shift:08x}/{mask << shift:08x} at 0 to {name}"
                for value, mask in dscp_blocks(queue.dscps)
                for protocol, shift in _SHIFT.items()
            ]
    return lines


def _function(name: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return f"{name}() {{\n    cat <<END_OF_LINES\n{body}\nEND_OF_LINES\n}}\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def _body() -> str:
    return Path(__file__).with_name("host.sh").read_text(encoding="utf-8")
