"""The ports of a switch in use: how fast, how long a cable, and what is at its other end.

Not for their names, which differ by operating system (the renderers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fourlane.spec.hardware import switch_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.cluster import Cluster, Network, NetworkName, Tier, TierName
    from fourlane.spec.hardware import SwitchModel
    from fourlane.units import Length, Rate

__all__ = ["Facing", "Port", "Switch", "switches"]

Facing = Literal["server", "leaf", "spine", "superspine"]


@dataclass(frozen=True, slots=True)
class Port:
    """A port in use; `lane` is the first of the chip's serial lanes it takes, `lanes` how many."""

    lane: int
    lanes: int
    rate: Rate
    cable: Length
    facing: Facing


@dataclass(frozen=True, slots=True)
class Switch:
    """One kind of switch: all `count` in a tier of a network are alike. `role` is its tier."""

    network: NetworkName
    role: TierName
    tier: Tier
    model: SwitchModel
    ports: tuple[Port, ...]

    @property
    def name(self) -> str:
        """Return "hpn-leaf", "dcn-spine", ..."""
        return f"{self.network}-{self.role}"

    @property
    def lanes_used(self) -> int:
        """Return how many serial lanes its ports take."""
        return sum(port.lanes for port in self.ports)


def switches(cluster: Cluster) -> list[Switch]:
    """Return the kinds of switches of a cluster: from the leaf up, hpn then dcn."""
    return [switch for name, network in cluster.networks().items() for switch in _of_network(name, network)]


def _of_network(name: NetworkName, network: Network) -> Iterator[Switch]:
    tiers = list(network.tiers().items())
    rate, cable, below = network.rate, network.leaf.down_cable, "server"
    for place, (role, tier) in enumerate(tiers):
        model = switch_models()[tier.switch]
        up_rate, up_cable = tier.up_rate or rate, tier.up_cable or cable
        above = tiers[place + 1][0] if place + 1 < len(tiers) else "spine"
        ports = [(rate, cable, below)] * tier.down_ports + [(up_rate, up_cable, above)] * tier.up_ports
        yield Switch(name, role, tier, model, _numbered(ports, model))
        rate, cable, below = up_rate, up_cable, role


def _numbered(ports: list[tuple[Rate, Length, str]], model: SwitchModel) -> tuple[Port, ...]:
    """Give ports their lanes, one after the other, each begun where its width allows."""
    lane_rate = int(model.port_rate) // model.lanes_per_port
    numbered: list[Port] = []
    lane = 0
    for rate, cable, facing in ports:
        lanes = max(1, -(-int(rate) // lane_rate))
        lane = -(-lane // lanes) * lanes
        numbered.append(Port(lane, lanes, rate, cable, facing))  # type: ignore[arg-type]
        lane += lanes
    return tuple(numbered)
