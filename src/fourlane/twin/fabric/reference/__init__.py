"""The definition of the network model: a packet simulator in plain Python, one event after the other.

It is meant to be read, and to be the judge of the native core, which must agree with it bit for bit; it is not meant to
be fast. Read `packet` (what there is, in which order it happens), `simulation` (ports and cables), `router`, `buffers`
and `watchdog` (switches), `hosts` and `rate_control` (senders and receivers). Time is in whole picoseconds, sizes in
bytes; only DCQCN's rates are floating point. What is decided where sources leave
room stands in each module's docstring.

Events are worked off in the order of (time, kind, id). An event pushed for the present instant comes next if its
key is the least then pending. Nothing depends on the order in which events were pushed.

A run ends with status

    done     all flows are finished: their senders know that everything arrived. What else was under way stays there
    stuck    nothing is pending, and yet flows are not finished: a loss nobody repeats, a flow that waits for itself
    time     the next event would be later than `max_time`; `time` is then that
    budget   the next event would be one more than `max_events`

Results (F flows, P egress ports, Q queues, C classes):

    time, events, flows_done             when it ended, events that meant something, flows finished
    data_hops                            data packets put on a wire by any port
    data_packets_sent, _delivered, _dropped   by hosts; having reached their host, whole or trimmed or in vain; lost
    delivered_payload                    bytes accepted, in order where a class has a reorder buffer
    wire_bytes_sent = _delivered + _dropped + _queued   all packets; what trimming cuts off is dropped
    flow_started, flow_delivered, flow_finish   [F] ps, -1 not yet: allowed to begin, all with the receiver's
                                         application, all acknowledged
    flow_retransmitted, flow_reorder     [F] packets to be sent again; how far behind the highest number one arrived
    latency_counts                       [C, buckets] of whole data packets, from NIC to NIC: `packet.latency_bucket`
    port_tx_bytes, _tx_packets           [P, Q] sent
    port_drops, _marks, _trims           [P, Q] by the egress port and queue they were meant for; drops for want of a
                                         route, and with a failed link, by the port that sent them
    port_pauses                          [P, Q] XOFF frames sent by the switch for what comes in at this port
    port_depth, port_paused              [P, Q] bytes queued at the end; [P] a bit a queue that stands paused then
    port_paused_ps                       [P, Q] how long the egress port's queue stood paused
    port_max_depth                       [P] most bytes queued; at hosts, of control packets
    sample_time, _tx, _depth             [samples], [samples, ports]: bytes sent so far, bytes queued
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourlane.twin.fabric.reference.simulation import Simulation

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario

__all__ = ["simulate"]


def simulate(compiled: CompiledScenario) -> dict[str, Any]:
    """Run a scenario to its end and return all results by name."""
    simulation = Simulation(compiled)
    return simulation.result(simulation.run())
