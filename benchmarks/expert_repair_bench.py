"""Repairing placements as loads drift, beside planning anew: balance, moves, and what both take."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import eplb
import numpy as np
from expert_cases import SEED, SIZES, Size, baseline, baseline_value, named_loads, placed
from recorded_parts import Bar, Figures, Part, Rows, Section

from fourlane.policy import load_generator as generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement

__all__ = ["PARTS"]


def repair(layers: int = 58) -> Part:
    """Repair a placement window after window within a budget of moves, beside planning anew."""
    sections, bars, figures = list[Section](), list[Bar](), Figures()
    for size, rho in ((SIZES[0], 0.95), (SIZES[0], 0.99), (SIZES[3], 0.95)):
        window_WLE = generator.drift_windows(named_loads(layers)["decode"], 5, rho, np.random.default_rng((SEED, 8)))
        anew = _anew(window_WLE, size)
        budgets = (8, 16, 32, 60) if size is SIZES[0] else (24, anew["ours, anew"]["moves"] // 3)
        found = {
            **anew,
            **{f"repaired, at most {each:.0f}": _repaired(window_WLE, size, int(each)) for each in budgets},
        }
        rows: Rows = [(name, *_cells(each)) for name, each in found.items()]
        columns = ("way", "balance, mean / worst layer", "first window", "moves a layer, mean", "most")
        sections.append(Section(f"{size.name}, rho {rho}", columns, rows))
        figures[f"{size.name}/{rho}"] = found
        bars += _repair_bars(size, rho, found)
    text = (
        "Four windows of decode, each drifted from the one before; a move is an expert that a rank has to receive, a "
        "layer. Balance is of the window repaired for (equal split, max / mean)."
    )
    return Part(title="Repair instead of planning anew", text=text, sections=sections, bars=bars, figures=figures)


def _anew(window_WLE: NDArray[Any], size: Size) -> dict[str, dict[str, float]]:
    """Return what planning each window from nothing gives: EPLB's way and ours."""
    slots = [baseline(load_LE, size) for load_LE in window_WLE]
    balances = [eplb.balance(each, load_LE, size.ranks) for each, load_LE in zip(slots, window_WLE, strict=True)]
    theirs = _figures(balances, [baseline_value(each, size) for each in slots])
    ours = [placed(load_LE, size, split_aware=False) for load_LE in window_WLE]
    return {"EPLB, anew": theirs, "ours, anew": _walked(ours, window_WLE)}


def _repaired(window_WLE: NDArray[Any], size: Size, moves: int) -> dict[str, float]:
    kept = [placed(window_WLE[0], size, split_aware=False)]
    for load_LE in window_WLE[1:]:
        kept.append(placed(load_LE, size, previous=kept[-1], moves=moves, split_aware=False))
    return _walked(kept, window_WLE)


def _walked(placements: list[Placement], window_WLE: NDArray[Any]) -> dict[str, float]:
    """Return balance and moves over all windows but the first."""
    return _figures([each.balance(load) for each, load in zip(placements, window_WLE, strict=True)], placements)


def _figures(balances: list[NDArray[np.float64]], placements: list[Placement]) -> dict[str, float]:
    balance_WL = np.stack(balances[1:])
    moves_WL = np.stack([now.moves_from(old) for old, now in itertools.pairwise(placements)])
    return {
        "mean": float(balance_WL.mean()),
        "first": float(balance_WL[0].mean()),
        "worst": float(balance_WL.max()),
        "moves": float(moves_WL.mean()),
        "most": float(moves_WL.max()),
    }


def _repair_bars(size: Size, rho: float, found: dict[str, dict[str, float]]) -> list[Bar]:
    if rho != 0.95:
        return []
    if size is SIZES[0]:
        mine = found["repaired, at most 32"]
        met = mine["mean"] <= 1.02 and mine["most"] <= 32
        return [Bar(f"repair, {size.name}, rho .95", "<= 1.02, <= 32 moves", _moved(mine), met)]
    fresh = found["ours, anew"]
    mine = list(found.values())[-1]
    met = mine["mean"] <= 1.02 * fresh["mean"] and mine["moves"] <= fresh["moves"] / 3
    wanted = f"<= 1.02 x {fresh['mean']:.4f}, <= {fresh['moves']:.0f} / 3 moves"
    return [Bar(f"repair, {size.name}, rho .95", wanted, _moved(mine), met)]


def _cells(found: dict[str, float]) -> tuple[str, ...]:
    balance = f"{found['mean']:.4f} / {found['worst']:.4f}"
    return balance, f"{found['first']:.4f}", f"{found['moves']:.1f}", f"{found['most']:.0f}"


def _moved(found: dict[str, float]) -> str:
    moves = f"{found['moves']:.1f} moves (most {found['most']:.0f})"
    return f"{found['mean']:.4f} (first window {found['first']:.4f}), {moves}"


PARTS: dict[str, Callable[[int], Part]] = {"repair": repair}
