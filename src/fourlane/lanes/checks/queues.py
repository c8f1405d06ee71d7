"""Proofs about queues: shares of the link, caps, and the numbers that switches and NICs have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fourlane.lanes.checks.case import Found
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.checks.case import Case

__all__ = [
    "caps_leave_room",
    "caps_reach_the_share",
    "kv_beside_expert_traffic_is_held_back",
    "numbers_are_within_limits",
    "ports_fit",
    "strict_classes_are_capped",
    "weights_sum_to_100",
]

MOST_STRICT = 20
"""Percent of a link above which a strict class is no longer small."""
LEAST_WEIGHTED = 50
"""Percent of a link that strict classes together should leave to the others."""


def weights_sum_to_100(case: Case) -> Iterator[Found]:
    """The weights of each network's classes sum to 100."""
    for name in case.cluster.networks():
        weights = {kind.value: lane.weight for kind, lane in case.plan.on(name).items() if lane.weight is not None}
        total = sum(weights.values())
        if total != 100:
            listed = " + ".join(f"{kind} {weight}" for kind, weight in weights.items()) or "no class has a weight"
            over = f"take {total - 100} away" if total > 100 else f"add {100 - total}"
            yield Found("error", f"network {name}", f"{listed} = {total}, not 100", f"{over}; percent are then shares")


def strict_classes_are_capped(case: Case) -> Iterator[Found]:
    """Every strict class has a cap, so that it cannot starve the others."""
    for kind, lane in case.plan.classes.items():
        place = f"classes.{kind.value}.cap"
        if lane.scheduler == "strict" and lane.cap is None:
            yield Found("error", place, "strict without a cap: it can starve every other class", "set cap = 5, or so")
        elif lane.scheduler == "strict" and (lane.cap or 0) > MOST_STRICT:
            found = f"strict up to {lane.cap} % of the link; strict is for small messages everything waits for"
            yield Found("warning", place, found, f'set a cap up to {MOST_STRICT}, or scheduler = "dwrr" and a weight')


def caps_leave_room(case: Case) -> Iterator[Found]:
    """Strict classes together leave most of the link to the weighted ones."""
    for name in case.cluster.networks():
        caps = [lane.cap or 0 for lane in case.plan.on(name).values() if lane.scheduler == "strict"]
        weighted = any(lane.weight for lane in case.plan.on(name).values())
        left = 100 - sum(caps)
        if weighted and left < LEAST_WEIGHTED:
            severity = "error" if left <= 0 else "warning"
            found = f"strict classes may take {sum(caps)} % of a link, and leave {max(left, 0)} % to all others"
            yield Found(severity, f"network {name}", found, f"lower their caps to {100 - LEAST_WEIGHTED} together")


def caps_reach_the_share(case: Case) -> Iterator[Found]:
    """No weighted class is capped below the share its weight promises."""
    for kind, lane in case.plan.classes.items():
        if lane.weight is not None and lane.cap is not None and lane.cap < lane.weight:
            found = f"{lane.cap} % of the link, below the {lane.weight} % that its weight promises"
            yield Found(
                "error", f"classes.{kind.value}.cap", found, f"set cap = {lane.weight} or more, or lower the weight"
            )


def kv_beside_expert_traffic_is_held_back(case: Case) -> Iterator[Found]:
    """KV cache on the network of expert traffic has a low weight, a cap, ECN marks, and never pauses it."""
    for name in case.cluster.networks():
        here = case.plan.on(name)
        kv, expert = here.get(TrafficClass.KV), here.get(TrafficClass.EXPERT)
        if kv is None or expert is None:
            continue
        place = f"classes.kv on {name}, beside expert traffic"
        if kv.lossless:
            found = "lossless: its pauses stop links that expert traffic uses"
            yield Found("warning", place, found, "set lossless = false; KV transfers repair losses")
        if kv.cap is None:
            yield Found("warning", place, "no cap: on an idle link it takes all, and bursts meet it", "set cap = 50")
        if kv.marking is None:
            found = "ECN off: its queue grows to its whole buffer"
            yield Found("warning", place, found, "set ecn = {kmin = ..., kmax = ..., pmax = 0.2}")
        if (kv.weight or 100) >= (expert.weight or 100):
            found = f"weight {kv.weight or 'none'}, not below that of expert traffic, {expert.weight or 'none'}"
            yield Found("warning", place, found, 'lower it, or move KV to a second network (network = "dcn")')


def numbers_are_within_limits(case: Case) -> Iterator[Found]:
    """Queues, priorities and alphas are among those that every switch and NIC of the class's networks has."""
    for switch in case.switches:
        model, at = switch.model, f"{switch.name} ({switch.tier.switch})"
        least, most = model.alpha_exponents
        for kind, lane in case.plan.on(switch.network).items():
            place, exponent = f"classes.{kind.value}", round(math.log2(lane.alpha))
            if lane.queue >= model.queues:
                found = f"queue {lane.queue}, but a port of {at} has queues 0 to {model.queues - 1}"
                yield Found("error", f"{place}.queue", found, "choose a free one of those")
            if lane.priority >= model.priorities:
                found = f"priority {lane.priority}, but {at} has 0 to {model.priorities - 1}"
                yield Found("error", f"{place}.priority", found, "choose a free one of those")
            if not least <= exponent <= most:
                found = f"{lane.alpha:g} is 2^{exponent}, but {at} has 2^{least} to 2^{most}"
                yield Found("error", f"{place}.alpha", found, f"choose {2.0**least:g} to {2.0**most:g}")
    for kind, lane, name, network in case.lanes():
        nic = case.nic(name)
        if lane.priority >= nic.priorities:
            found = f"priority {lane.priority}, but {network.nic} has 0 to {nic.priorities - 1}"
            yield Found("error", f"classes.{kind.value}.priority", found, "choose a free one of those")


def ports_fit(case: Case) -> Iterator[Found]:
    """The ports in use of each kind of switch fit its chip."""
    for switch in case.switches:
        lanes = switch.model.ports * switch.model.lanes_per_port
        used = max(port.lane + port.lanes for port in switch.ports)
        if used > lanes:
            found = f"{len(switch.ports)} ports in use take {used} serial lanes, but {switch.tier.switch} has {lanes}"
            yield Found("error", f"cluster: {switch.network}.{switch.role}", found, "use fewer or slower ports")
