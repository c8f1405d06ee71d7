"""PFC pauses as egress ports feel them, and the watchdog that ends pauses which never end.

A deadlock or a broken host can pause a queue for ever, and the pause spreads back through the network. A switch whose
queue has stood paused for `watchdog_detection` declares a storm there: it drops what is in the queue and what comes for
it, or (`watchdog_drop` 0) sends regardless of the pause. Every `watchdog_restoration` (0: as often as
the detection takes) it looks again, and goes back to normal if the queue is no longer paused. As SONiC's PFC watchdog
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.fabric.compiled import SWITCH
from fourlane.twin.fabric.reference.packet import Event

if TYPE_CHECKING:
    from fourlane.twin.fabric.reference.simulation import Simulation

__all__ = ["Watchdog"]


class Watchdog:
    """Which queues are paused, since when, and which are in a storm; by [port][queue]."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.scenario = simulation.scenario
        ports, queues = self.scenario.ports, self.scenario.queues
        self.paused_since = [[-1] * queues for _ in range(ports)]
        self.storm = [[False] * queues for _ in range(ports)]
        self.look_at = [[-1] * queues for _ in range(ports)]  # when the pending event is due; others are stale

    def halted(self, port: int, queue: int) -> bool:
        """Tell whether a pause keeps the queue from sending."""
        ignored = self.storm[port][queue] and not self.scenario.watchdog_drop
        return self.paused_since[port][queue] >= 0 and not ignored

    def discards(self, port: int, queue: int) -> bool:
        """Tell whether the queue takes nothing in."""
        return self.storm[port][queue] and bool(self.scenario.watchdog_drop)

    def pause(self, event_id: int) -> None:
        """Let a PFC frame take effect."""
        port, queue, xoff = event_id >> 4, event_id >> 1 & 7, event_id & 1
        now, since = self.simulation.now, self.paused_since[port][queue]
        if xoff and since < 0:
            self.paused_since[port][queue] = now
            at_switch = self.scenario.node_kind[self.scenario.port_node[port]] == SWITCH
            if self.scenario.watchdog_detection and at_switch and not self.storm[port][queue]:
                self.watch(port, queue, now + self.scenario.watchdog_detection)
        elif not xoff and since >= 0:
            self.simulation.port_paused_ps[port, queue] += now - since
            self.paused_since[port][queue] = -1
            if not self.storm[port][queue]:
                self.look_at[port][queue] = -1
            self.simulation.kick(port)

    def watch(self, port: int, queue: int, time: int) -> None:
        """Look at the queue again at a time."""
        self.look_at[port][queue] = time
        self.simulation.push(time, Event.WATCHDOG, port * 8 + queue)

    def look(self, event_id: int) -> None:
        """Begin a storm, let it go on while the queue is paused, or end it."""
        port, queue = event_id >> 3, event_id & 7
        self.look_at[port][queue] = -1
        if self.storm[port][queue] and self.paused_since[port][queue] < 0:
            self.storm[port][queue] = False
            return
        begins = not self.storm[port][queue]
        self.storm[port][queue] = True
        again = self.scenario.watchdog_restoration or self.scenario.watchdog_detection
        self.watch(port, queue, self.simulation.now + again)
        if begins and self.scenario.watchdog_drop:
            self.simulation.drop_queued(port, queue)
        elif begins:
            self.simulation.kick(port)
