"""Advice in words: whether to switch balancing on, with which redundancy, and what to mind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.policy.advice_values import Advice, Need

__all__ = ["verdict"]

_SLIGHT = 0.01
"""Differences of balance below this share are not worth a recommendation."""


def verdict(advice: Advice) -> list[str]:
    """Return the advice as sentences, the most important first."""
    said = [_answer(advice), _means(advice)]
    said += [_need(advice, need) for need in advice.needs]
    said += [sentence for sentence in (_drift(advice), _following(advice), _layers(advice)) if sentence]
    return said


def _answer(advice: Advice) -> str:
    choice = advice.choice
    more = choice.slots // advice.ranks - -(-advice.experts // advice.ranks)
    size = "" if choice.extra_bytes is None else f", {choice.extra_bytes / 1e9:.1f} GB a rank"
    slots = f"{more} slots a rank more{size}" if more else "no slot a rank more"
    fall = (
        f"max/mean of a batch falls from {advice.linear_batches.mean:.2f} to {choice.split.mean:.2f} "
        f"(worst layer {advice.linear_batches.worst:.2f} to {choice.split.worst:.2f})"
    )
    if not advice.worthwhile:
        return (
            f"Not worth it: even R={choice.redundant} ({slots}) would save {choice.gain:.1%} of the experts' time, "
            f"less than the {advice.circumstances.least_gain:.1%} asked for."
        )
    return f"Worth it, with R={choice.redundant} ({slots}): {fall}, which saves {choice.gain:.0%} of the experts' time."


def _means(advice: Advice) -> str:
    choice = advice.choice
    before, equal, split = advice.linear_batches.mean, choice.equal.mean, choice.split.mean
    best = min(option.split.mean for option in advice.options)
    text = f"Placement takes it from {before:.2f} to {equal:.2f}, splitting each batch by its counts to {split:.2f}"
    if split > best * (1 + _SLIGHT):
        at = min(advice.options, key=lambda option: option.split.mean)
        text += f"; R={at.redundant} would give {best:.2f}"
    return f"{text}."


def _need(advice: Advice, need: Need) -> str:
    least = f"{need.least_L.mean():.0f} in the mean layer, {need.least_L.max()} in the worst"
    missing = int((need.reached_L < 0).sum())
    text = f"Max/mean {need.target:g} takes at least R={least}"
    if missing == advice.layers:
        return f"{text}; no placement of this sweep reached it."
    found = int(need.reached_L.max())
    if missing:
        return f"{text}; placements reached it in {advice.layers - missing} of {advice.layers} layers (R={found})."
    return f"{text}; placements reached it in every layer with R={found}."


def _drift(advice: Advice) -> str:
    stale, placed = advice.choice.stale, advice.choice.placed
    if stale is None or advice.drift is None:
        return "One window alone says nothing about how fast loads change; give several for that."
    alike = "" if advice.lag_one is None else f" (correlation {advice.lag_one:.3f})"
    seen = (
        f"From window to window {advice.drift:.1%} of the load changes experts{alike}; a placement one window old "
        f"gives {stale.mean:.3f} (worst layer {stale.worst:.3f}), one made for all of them {placed.mean:.3f}"
    )
    if stale.mean > placed.mean * (1 + 5 * _SLIGHT):
        return f"{seen}: loads change fast, so place again at least every window, and split each batch."
    return f"{seen}: loads are steady from window to window."


def _following(advice: Advice) -> str:
    following = advice.following
    if following is None:
        return ""

    repair = _cost(following.repair_moves, following.repair_bytes, following.repair_s)
    replan = _cost(following.replan_moves, following.replan_bytes, following.replan_s)
    return (
        f"Following each window by repair costs {repair} and gives {following.repair.mean:.3f}; "
        f"planning from nothing costs {replan} and gives {following.replan.mean:.3f}."
    )


def _cost(moves: float, size: float | None, time_s: float | None) -> str:
    text = f"{moves:.0f} moved experts a layer"
    text += "" if size is None else f" ({size / 1e9:.2f} GB received by a rank"
    return text + ("" if size is None else ")" if time_s is None else f", {time_s:.2f} s)")


def _layers(advice: Advice) -> str:
    budget = advice.layer_budget
    if budget is None:
        return ""
    by_layer, uniform = budget.by_layer, budget.uniform
    figures = (
        f"{by_layer.mean:.3f} in the mean layer and {by_layer.worst:.3f} in the worst, "
        f"against {uniform.mean:.3f} and {uniform.worst:.3f}"
    )
    if by_layer.mean < uniform.mean * (1 - _SLIGHT / 2) or by_layer.worst < uniform.worst * (1 - _SLIGHT):
        return f"The same memory shared out by layer gives {figures}: take it."
    return f"The same memory shared out by layer gives {figures}: not worth it."
