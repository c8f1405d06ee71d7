"""Proofs about pauses (PFC) and what guards them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.checks.case import Found
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.checks.case import Case

__all__ = [
    "a_watchdog_guards_pauses",
    "dropped_expert_traffic_is_waited_for",
    "pauses_are_possible",
    "shared_headroom_is_possible",
    "watchdog_timers_are_within_limits",
]

_LIMITS = {
    "poll": (Duration.parse("100ms"), Duration.parse("1s")),
    "detection": (Duration.parse("100ms"), Duration.parse("5s")),
    "restoration": (Duration.parse("100ms"), Duration.parse("60s")),
}
"""Source: SONiC, sonic-pfcwd.yang: poll 100..1000 ms, detection 100..5000 ms, restoration 100..60000 ms."""
_MILLISECOND = 10**9


def pauses_are_possible(case: Case) -> Iterator[Found]:
    """A class is lossless only where fabric, NICs and every switch can pause."""
    lossless = [(kind, name) for kind, lane, name, _ in case.lanes() if lane.lossless]
    for kind, name in lossless:
        network = case.cluster.networks()[name]
        place = f"classes.{kind.value}.lossless on {name}"
        if network.fabric != "roce":
            found = f'the fabric is "{network.fabric}"; pauses by priority belong to "roce"'
            yield Found("error", place, found, "set lossless = false")
            continue
        if not case.nic(name).dcb:
            yield Found("error", place, f"NICs of model {network.nic} cannot pause", "set lossless = false")
        for switch in case.switches:
            if switch.network == name and not switch.model.pfc:
                yield Found(
                    "error", place, f"{switch.name} ({switch.tier.switch}) cannot pause", "set lossless = false"
                )


def a_watchdog_guards_pauses(case: Case) -> Iterator[Found]:
    """Where a class is lossless, the PFC watchdog is on."""
    kinds = [kind.value for kind, lane in case.plan.classes.items() if lane.lossless]
    if kinds and not case.plan.pfc.watchdog:
        found = f"off, but {', '.join(kinds)} may pause: one NIC that pauses forever stops the whole fabric"
        yield Found("error", "pfc.watchdog", found, "set pfc.watchdog = true")


def watchdog_timers_are_within_limits(case: Case) -> Iterator[Found]:
    """The watchdog's timers are in the ranges of switches, in whole ms, and none is shorter than its poll."""
    pfc = case.plan.pfc
    if not pfc.watchdog or not any(lane.lossless for lane in case.plan.classes.values()):
        return
    for name, (least, most) in _LIMITS.items():
        value: Duration = getattr(pfc, name)
        if not least <= value <= most:
            yield Found("error", f"pfc.{name}", f"{value}, but switches take {least} to {most}", "choose one of those")
        elif value % _MILLISECOND:
            yield Found("error", f"pfc.{name}", f"{value} is no whole number of ms", "round it to whole ms")
        elif value < pfc.poll:
            found = f"{value} is shorter than pfc.poll = {pfc.poll}, between two looks"
            yield Found("error", f"pfc.{name}", found, f"set at least {pfc.poll}, or poll more often")


def shared_headroom_is_possible(case: Case) -> Iterator[Found]:
    """Shared headroom serves only as many lossless classes as the operating system allows."""
    for switch in case.switches:
        count = len(case.plan.lossless_on(switch.network))
        if case.plan.pfc.shared_headroom and switch.tier.os == "cumulus" and count > 1:
            found = f"{switch.name} runs Cumulus Linux, whose shared headroom serves one lossless class, not {count}"
            yield Found("error", "pfc.shared_headroom", found, "set it to false, or make one class lossless only")


def dropped_expert_traffic_is_waited_for(case: Case) -> Iterator[Found]:
    """What the watchdog drops looks lost to expert traffic: how long its timeout must be is told."""
    pfc, expert = case.plan.pfc, case.plan.classes[TrafficClass.EXPERT]
    if expert.lossless and pfc.watchdog and pfc.action == "drop":
        longest = Duration(pfc.poll + pfc.detection + pfc.restoration)
        found = f"drops expert traffic for up to {pfc.poll} + {pfc.detection} + {pfc.restoration} = {longest}"
        yield Found("note", "pfc.action", found, f"let exchange timeouts be longer than {longest}")
