"""Networks at flow level: weighted max-min rates over the packet simulator's own topology, lanes and routing.

    rates = flow_rates(net, [all_to_all(net), kv], plan=plan)
    times = flow_times(net, all_to_all(net), routing="ecmp")

For whole clusters, on which packets would take hours. A flow has a rate, which changes only when flows begin or end.
At a port, strict queues and weighted ones get what their lanes say; flows of a queue share it by what arrives of them.
What packets do beyond that - waiting, pauses, marks and what senders make of them - is left out, and what that costs is
measured against packets (`fourlane.twin.flow_level.validation`). Not for tails of latency.
"""

from __future__ import annotations

from fourlane.twin.flow_level.rates import FlowRates, FlowSets, flow_rates, rates_of
from fourlane.twin.flow_level.times import FlowTimes, flow_times, times_of

__all__ = ["FlowRates", "FlowSets", "FlowTimes", "flow_rates", "flow_times", "rates_of", "times_of"]
