"""The lanes of one service: what carries each, which mark it has, and the connections opened on it.

For the terminal and /health. Which ranks opened what is in their logs and in /metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.rank_config import exchange_of
from fourlane.gateway.balancing import moves_experts
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fourlane.engine.messages import Hello
    from fourlane.gateway.ranks import RankView
    from fourlane.lanes.connections import LikeConnections
    from fourlane.lanes.marking import LaneMark
    from fourlane.spec.deployment import Deployment

__all__ = ["LIVE_LANES", "LaneState", "lane_lines", "lane_states", "unlike_marks"]

LIVE_LANES = (TrafficClass.EXPERT, TrafficClass.KV, TrafficClass.CONTROL)
"""The classes that every running service has traffic of; where experts move, `bulk` comes on top."""


class LaneState(msgspec.Struct, frozen=True, kw_only=True):
    """One lane. `incomplete`: connections whose mark is not the plan's; `interfaces`: those with connections."""

    dscp: int
    priority: int
    carrier: str
    connections: int
    incomplete: int
    interfaces: list[str]


def lane_states(
    deployment: Deployment,
    marks: Mapping[TrafficClass, LaneMark],
    ranks: Iterable[RankView],
    own: Iterable[LikeConnections],
) -> dict[str, LaneState]:
    """Return the state of every lane, by name.

    Args:
        deployment: says what carries what.
        marks: by class.
        ranks: say what they opened.
        own: what the gateway opened itself.
    """
    ranks = list(ranks)
    opened = [*own, *(like for rank in ranks for like in rank.connections())]
    carriers = {
        TrafficClass.EXPERT: _expert_carrier(deployment),
        TrafficClass.KV: _kv_carrier(deployment, ranks),
        TrafficClass.CONTROL: f"ZeroMQ at {deployment.gateway.control or 'a UNIX socket, which no network sees'}",
    }
    if moves_experts(deployment):
        carriers[TrafficClass.BULK] = f"experts' weights over tcp at {deployment.exchange.address}"
    return {kind.value: _state(marks[kind], carrier, opened) for kind, carrier in carriers.items()}


def lane_lines(states: Mapping[str, LaneState]) -> list[str]:
    """Return a line a lane, for people."""
    return [
        f"lane {name:<7}  DSCP {state.dscp:>2}, priority {state.priority}: {state.carrier}; {_opened(state)}"
        for name, state in states.items()
    ]


def unlike_marks(hello: Hello, marks: Mapping[TrafficClass, LaneMark]) -> str:
    """Describe where a rank puts other marks on its sockets than the gateway's plan has; "" if nowhere."""
    unlike = [
        f"{mark.traffic_class.value}: expected DSCP {wanted.dscp}, priority {wanted.priority}, "
        f"got DSCP {mark.dscp}, priority {mark.priority}"
        for mark in hello.marks
        if (wanted := marks[mark.traffic_class]) != mark
    ]
    return "; ".join(unlike)


def _state(mark: LaneMark, carrier: str, opened: Iterable[LikeConnections]) -> LaneState:
    mine = [like for like in opened if like.traffic_class is mark.traffic_class]
    return LaneState(
        dscp=mark.dscp,
        priority=mark.priority,
        carrier=carrier,
        connections=sum(like.connections for like in mine),
        incomplete=sum(like.connections for like in mine if not like.complete),
        interfaces=sorted({like.interface for like in mine}),
    )


def _opened(state: LaneState) -> str:
    if not state.connections:
        return "no connections yet"
    text = f"{state.connections} connection ends on {', '.join(state.interfaces)}"
    return f"{text}, {state.incomplete} of them not marked as planned" if state.incomplete else f"{text}, all marked"


def _expert_carrier(deployment: Deployment) -> str:
    shared = [pool for pool in deployment.pools().values() if (pool.expert_parallel or pool.ranks) > 1]
    groups = {exchange_of(deployment, pool) for pool in shared}
    if not groups:
        return "within each rank, no network"
    return " and ".join(_exchange_carrier(name, deployment.exchange.address) for name in sorted(groups))


def _exchange_carrier(implementation: str, address: str) -> str:
    return "shared_memory, no network" if implementation == "shared_memory" else f"{implementation} at {address}"


def _kv_carrier(deployment: Deployment, ranks: Iterable[RankView]) -> str:
    if deployment.unified is not None:
        return "within each rank, no network"
    endpoints = {rank.hello.kv_endpoint for rank in ranks if rank.hello is not None and rank.hello.kv_endpoint}
    schemes = sorted({endpoint.partition("://")[0] for endpoint in endpoints})
    if schemes == ["shm"]:
        return "shared memory, which no network sees"
    addresses = ", ".join([deployment.kv_transfer.address, *deployment.kv_transfer.more_addresses])
    return f"{' and '.join(schemes) or deployment.kv_transfer.transport} at {addresses}, opened as needed"
