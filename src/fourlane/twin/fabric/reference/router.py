"""Which egress port a switch sends a packet to.

Among the ports on shortest paths that are up, the class's routing mode chooses. Where there is only one there is no
choice: nothing is drawn, counted or remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.fabric.reference.packet import Kind, mix32, mix64

if TYPE_CHECKING:
    from fourlane.twin.fabric.reference.packet import Packet
    from fourlane.twin.fabric.reference.simulation import Simulation

__all__ = ["STATIC", "Router"]

STATIC = 5
"""The routing mode in which packets carry a pin."""
_WORD64 = 0xFFFFFFFFFFFFFFFF


class Router:
    """The routing state of all switches: counters of draws, turns, flowlet tables, queue depths as known."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.scenario = simulation.scenario
        self.counter = [0] * self.scenario.nodes
        self.turns: dict[int, int] = {}  # two lines, of data and of control, for each row of the table
        self.flowlets: dict[tuple[int, int], tuple[int, int]] = {}  # (switch, entry) -> (last packet's time, port)
        self.seen: dict[int, tuple[int, int]] = {}  # port -> (time of the look, depth seen)

    def choose(self, packet: Packet, switch: int) -> int:  # noqa: PLR0911 - a return for each mode
        """Return the egress port, or -1 where no port towards the destination is up."""
        candidates = self.candidates(switch, packet.destination)
        if len(candidates) < 2:
            return candidates[0] if candidates else -1
        tier, n = self.scenario.node_tier[switch], len(candidates)
        h = mix32(packet.hash32 ^ self.scenario.tier_seed[tier])
        match self.scenario.class_routing[packet.traffic_class]:
            case 0:  # ECMP; whether the hash is of a 5-tuple or of a queue pair too lies in `hash32`
                return candidates[h * n >> 32]
            case 1:
                return self.flowlet(switch, h, candidates)
            case 2:  # a random one for every packet
                return candidates[self.draw(switch) * n >> 32]
            case 3:  # the next one for every packet towards the same leaf, control packets by themselves
                return candidates[self.turn(2 * self.row(switch, packet.destination) + (packet.kind != Kind.DATA)) % n]
            case 4:
                return self.least_loaded(switch, candidates)
            case _:  # static: the packet carries the flow's pin, a byte a tier, in place of a hash
                return candidates[(packet.hash32 >> 8 * (tier - 1) & 255) % n if tier else 0]

    def candidates(self, switch: int, destination: int) -> list[int]:
        """Return the ports that are up on shortest paths, by number; at the last switch the endpoint's own port."""
        scenario, simulation = self.scenario, self.simulation
        last_hop = scenario.port_peer[destination]
        leaf = scenario.port_node[last_hop]
        if leaf == switch:
            listed = [last_hop]
        else:
            table = scenario.route_first[scenario.route_table[simulation.epoch]]
            row = self.row(switch, destination)
            listed = scenario.route_ports[table[row] : table[row + 1]]
        return [port for port in listed if simulation.up[port]]

    def row(self, switch: int, destination: int) -> int:
        """Return the place in the routing table of a switch's ways towards the leaf of an endpoint."""
        leaf = self.scenario.port_node[self.scenario.port_peer[destination]]
        return self.scenario.switch_index[switch] * self.scenario.leaves + self.scenario.leaf_index[leaf]

    def turn(self, line: int) -> int:
        """Return whose turn it is among the ways of a line, and move on. The first is drawn by lot.

        With one counter a switch, hosts that send in step have their packets take the same ways again and again: the
        permutation P1024_2MB then took 63 us and the all-to-all A128_64K 187.5, with lines 49.2 and 176.0.
        """
        if line not in self.turns:
            self.turns[line] = mix64((self.scenario.seed ^ (line + 1) * 0x9E3779B97F4A7C15) & _WORD64) >> 32
        self.turns[line] = (self.turns[line] + 1) & 0xFFFFFFFF
        return (self.turns[line] - 1) & 0xFFFFFFFF

    def draw(self, switch: int) -> int:
        """Return 32 random bits: a hash of seed, switch and counter, so that no other switch's draws matter."""
        salt = (switch + 1) * 0x9E3779B97F4A7C15 ^ self.counter[switch] * 0xD1B54A32D192ED03
        self.counter[switch] += 1
        return mix64((self.scenario.seed ^ salt) & _WORD64) >> 32

    def flowlet(self, switch: int, h: int, candidates: list[int]) -> int:
        """Keep to the flow's last port, unless it has paused so long that a new path cannot reorder it."""
        now, entry = self.simulation.now, h % self.scenario.flowlet_entries
        last, port = self.flowlets.get((switch, entry), (0, -1))
        if port not in candidates or now - last > self.scenario.flowlet_gap:
            port = self.least_loaded(switch, candidates)
        self.flowlets[switch, entry] = (now, port)
        return port

    def least_loaded(self, switch: int, candidates: list[int]) -> int:
        """Return the port of the least queue signal; of several the first, beginning at a place drawn by lot.

        With a place that moves on by one each time, switches that began together choose in step for ever: the
        permutation P1024_2MB then took 62-66 us, with lots 54.
        """
        first = self.draw(switch) * len(candidates) >> 32
        return min(candidates[first:] + candidates[:first], key=self.signal)

    def signal(self, port: int) -> int:
        """Return a port's queue depth as routing sees it: in quanta, up to a level, and perhaps out of date."""
        now, scenario = self.simulation.now, self.scenario
        looked, depth = self.seen.get(port, (0, -1))
        if depth < 0 or now - looked >= scenario.ar_staleness:
            looked, depth = now, self.simulation.depth[port]
            self.seen[port] = looked, depth
        return min(depth // scenario.ar_quantum, scenario.ar_levels - 1)
