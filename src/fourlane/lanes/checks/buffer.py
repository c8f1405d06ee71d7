"""Proofs about buffers: headroom for pauses, reservations, what is left to share, and marking thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.buffers import queue_limit
from fourlane.lanes.checks.case import Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.buffers import Budget
    from fourlane.lanes.checks.case import Case
    from fourlane.units import Size

__all__ = [
    "budget_text",
    "ecn_thresholds_are_within_reach",
    "headroom_is_known",
    "lossless_classes_cost_headroom",
    "pmax_is_a_whole_percent",
    "the_budget_fits",
]

LEAST_SHARED = 0.25
"""The share of a buffer below which little is left to share."""
_WHOLE_PERCENT = frozenset({"sonic", "cumulus", "eos"})


def megabytes(count: int) -> str:
    """Write bytes in MB, rounded: budgets are read, not parsed."""
    return f"{count / 1e6:.1f} MB"


def budget_text(budget: Budget) -> str:
    """Write a budget as one sum."""
    rows = [f"{row.ports} x {row.each} {row.purpose}" for row in (*budget.headroom, *budget.reserved)]
    needed = budget.headroom_pool + budget.reserved_total
    given_out = megabytes(budget.headroom_pool) if budget.headroom_pool else "none"
    return (
        f"{'; '.join(rows) or 'nothing set aside'}: headroom {given_out} + reserved {megabytes(budget.reserved_total)}"
        f" = {megabytes(needed)} of {megabytes(budget.buffer)}"
    )


def headroom_is_known(case: Case) -> Iterator[Found]:
    """For every lossless port its headroom is known: from a formula, a published figure, or the plan."""
    for switch, budget in case.budgets:
        for rate in budget.unknown if switch.model.pfc else ():
            found = f"no headroom is published for {rate} ports of {switch.tier.switch}, and lossless classes run there"
            mend = 'set pfc.headroom = "..." to your vendor\'s figure, or lossless = false'
            yield Found("error", switch.name, found, mend)


def the_budget_fits(case: Case) -> Iterator[Found]:
    """Headroom and reservations fit the buffer of every kind of switch, and leave a quarter of it to share."""
    for switch, budget in case.budgets:
        place = f"{switch.name} ({switch.tier.switch})"
        if not budget.fits:
            yield Found("error", place, f"the buffer does not hold the plan: {budget_text(budget)}", _LESS)
        elif budget.shared < LEAST_SHARED * budget.buffer:
            found = f"only {megabytes(budget.shared)} are left to share: {budget_text(budget)}"
            yield Found("warning", place, found, _LESS)


_LESS = "make fewer classes lossless, set pfc.shared_headroom = true, shorten cables, or lower reserved"


def lossless_classes_cost_headroom(case: Case) -> Iterator[Found]:
    """What two or more lossless classes cost in headroom is told."""
    for switch, budget in case.budgets:
        count = len(case.plan.lossless_on(switch.network))
        if count > 1 and budget.headroom_pool:
            share = budget.headroom_pool / budget.buffer
            found = (
                f"{count} lossless classes take {megabytes(budget.headroom_pool)}, {share * 100:.0f} % of the buffer"
            )
            yield Found(
                "note",
                f"{switch.name} ({switch.tier.switch})",
                found,
                "none needed if you can spare it; a lossy class takes none",
            )


def ecn_thresholds_are_within_reach(case: Case) -> Iterator[Found]:
    """A marking queue can grow beyond kmin, and to kmax, in the buffer it may use."""
    for switch, budget in case.budgets:
        for kind, lane in case.plan.on(switch.network).items():
            limit = queue_limit(lane, budget.shared)
            ecn, place = lane.marking, f"classes.{kind.value}.ecn"
            if ecn is None or not budget.fits:
                continue
            longest = f"but on {switch.name} its queue ends at {_rounded(limit)} (alpha {lane.alpha:g})"
            if ecn.kmin >= limit:
                found = f"kmin = {ecn.kmin}, {longest}: it drops before it ever marks"
                yield Found("error", f"{place}.kmin", found, "lower kmin, or raise alpha")
            elif ecn.kmax > limit:
                found = f"kmax = {ecn.kmax}, {longest}: it drops before it marks every packet"
                yield Found("warning", f"{place}.kmax", found, "lower kmax, or raise alpha")


def _rounded(size: Size) -> str:
    return megabytes(size) if size >= 10**5 else str(size)


def pmax_is_a_whole_percent(case: Case) -> Iterator[Found]:
    """Marking probabilities are whole percents, which is all that switches take."""
    systems = {switch.tier.os for switch in case.switches} & _WHOLE_PERCENT
    for kind, lane in case.plan.classes.items():
        ecn = lane.marking
        if ecn is not None and systems and abs(ecn.pmax * 100 - round(ecn.pmax * 100)) > 1e-9:
            found = f"{ecn.pmax:g} is no whole percent, and {', '.join(sorted(systems))} take no other"
            nearest = max(1, round(ecn.pmax * 100)) / 100
            yield Found("error", f"classes.{kind.value}.ecn.pmax", found, f"write {nearest:g}")
