"""Placements beside EPLB's: balance, staleness, groups in nodes, repair, and what they take."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import eplb
import numpy as np
from expert_cases import (
    BUNDLED_SIZES,
    SEED,
    SIZES,
    Size,
    baseline,
    bundled_loads,
    named_loads,
    placed,
)
from recorded_parts import Bar, Figures, Part, Rows, Section

from fourlane.policy import load_generator as generator
from fourlane.policy.placement import group_traffic, lower_bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


__all__ = ["PARTS"]

WANTED = {"EP32+32": (1.002, 1.005), "EP64+64": (1.003, 1.01), "EP128+128": (1.006, 1.02)}
CALIBRATED = ("decode", "prefill")
WANTED_MS = {"EP64+64": 100.0, "EP128+128": 400.0}


def balance(layers: int = 58) -> Part:
    """Compare balance on the loads that placements are made for."""
    return _compared(named_loads(layers), SIZES, "Placement: balance on the load it is made for", bars=True)


def bundled(_: int = 58) -> Part:
    """Compare balance on the bundled model's routing of real text."""
    part = _compared(bundled_loads(), BUNDLED_SIZES, "The bundled model's routing of real text", bars=False)
    part.text = (
        "32 experts, top 4, 8 layers; loads recorded on held-out documents (prompts) and on the model's own text "
        "(generated), as in `expert_use.json`. " + part.text
    )
    return part


def _compared(loads: dict[str, NDArray[Any]], sizes: tuple[Size, ...], title: str, *, bars: bool) -> Part:
    rows, figures, told = Rows(), Figures(), list[Bar]()
    worse: list[str] = []
    for size in sizes:
        for name, load_LE in loads.items():
            found = _balances(load_LE, size)
            ratio = float(np.median(found["ours"] / found["bound"]))
            rows.append((size.name, name, *(_pair(value_L) for value_L in found.values()), f"{ratio:.4f}"))
            figures[f"{size.name}/{name}"] = {each: _mean_worst(value_L) for each, value_L in found.items()}
            behind = int((found["ours"] > found["EPLB"] * (1 + 1e-9)).sum())
            worse += [f"{size.name} {name}: {behind} layers"] if behind else []
            if bars and name in CALIBRATED:
                told += _wanted(size, name, found["ours"], found["EPLB"], ratio)
    cases = len(sizes) * len(loads)
    never = Bar(
        f"{title}: never worse than EPLB, in any layer of {cases} comparisons",
        "0 layers worse",
        ", ".join(worse) or "0 layers worse",
        not worse,
    )
    columns = ("size", "load", "EPLB", "ours", "ours, for splitting", "lower bound", "ours / bound, median")
    text = (
        "max / mean over ranks when each expert's load is split equally over its replicas: mean layer / worst layer. "
        "`ours` is `place_experts(..., split_aware=False)`, `for splitting` its default, which gives up a little of "
        "this for batches that lean."
    )
    return Part(title=title, text=text, sections=[Section("", columns, rows)], bars=[never, *told], figures=figures)


def _balances(load_LE: NDArray[Any], size: Size) -> dict[str, NDArray[np.float64]]:
    return {
        "EPLB": eplb.balance(baseline(load_LE, size), load_LE, size.ranks),
        "ours": placed(load_LE, size, split_aware=False).balance(load_LE),
        "for splitting": placed(load_LE, size).balance(load_LE),
        "bound": lower_bound(load_LE, ranks=size.ranks, slots=size.slots),
    }


def _wanted(size: Size, name: str, ours_L: NDArray[Any], eplb_L: NDArray[Any], ratio: float) -> list[Bar]:
    claim = f"placement, {size.name}, {name}"
    mean, worst = _mean_worst(ours_L)
    if size.name in WANTED:
        most_mean, most_worst = WANTED[size.name]
        met = mean <= most_mean and worst <= most_worst
        return [Bar(claim, f"<= {most_mean} / {most_worst}", f"{mean:.4f} / {worst:.4f}", met)]
    other = float(eplb_L.mean())
    return [
        Bar(claim, f"<= EPLB ({other:.4f})", f"{mean:.4f}", mean <= other),
        Bar(f"{claim}: over the lower bound, median layer", "<= 1.01", f"{ratio:.4f}", ratio <= 1.01),
    ]


def staleness(layers: int = 58) -> Part:
    """Compare placements on loads they were not made for."""
    loads = named_loads(layers)
    rng = np.random.default_rng((SEED, 7))
    windows = {rho: generator.drift_windows(loads["decode"], 9, rho, rng) for rho in (0.99, 0.95)}
    cases: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        f"rho {rho}: {what}": (from_WLE, window_WLE[-1])
        for rho, window_WLE in windows.items()
        for what, from_WLE in (("one window before", window_WLE[-2:-1]), ("eight windows before", window_WLE[:-1]))
    }
    cases["prefill's, used for decode"] = (loads["prefill"][None], loads["decode"])
    rows, figures = Rows(), Figures()
    for size in SIZES:
        for name, (from_WLE, to_LE) in cases.items():
            theirs = eplb.balance(baseline(from_WLE.sum(axis=0), size), to_LE, size.ranks)
            ours = placed(from_WLE, size, split_aware=False).balance(to_LE)
            aware = placed(from_WLE, size).balance(to_LE)
            rows.append(
                (size.name, name, _pair(theirs), _pair(ours), _pair(aware), f"{ours.mean() / theirs.mean():.3f}")
            )
            figures[f"{size.name}/{name}"] = [float(theirs.mean()), float(ours.mean()), float(aware.mean())]
    columns = ("size", "statistics", "EPLB", "ours", "ours, for splitting", "ours / EPLB")
    text = (
        "Equal split, max / mean, mean layer / worst layer, on the next window of decode. No placement knows the "
        "window it is used on: what is left is for repair and for splitting by batch."
    )
    title = "Statistics that have aged"
    return Part(title=title, text=text, sections=[Section("", columns, rows)], figures=figures)


def hierarchy(layers: int = 58) -> Part:
    """Compare groups kept in nodes with placing globally."""
    rows, figures = Rows(), Figures()
    for size, nodes in ((SIZES[0], 4), (SIZES[1], 8)):
        for name in CALIBRATED:
            load_LE = named_loads(layers)[name]
            held = placed(load_LE, size, nodes=nodes, groups=8, split_aware=False)
            anywhere = placed(load_LE, size, split_aware=False)
            saved = 1.0 - (
                group_traffic(held, load_LE, nodes=nodes, groups=8).mean()
                / group_traffic(anywhere, load_LE, nodes=nodes, groups=8).mean()
            )
            theirs = eplb.balance(baseline(load_LE, size, nodes=nodes, groups=8), load_LE, size.ranks)
            ours = held.balance(load_LE)
            free = anywhere.balance(load_LE)
            rows.append((f"{size.name}, {nodes} nodes", name, _pair(theirs), _pair(ours), _pair(free), f"{saved:.1%}"))
            figures[f"{size.name}/{name}"] = [float(value.mean()) for value in (theirs, ours, free)]
    columns = ("size", "load", "EPLB, groups in nodes", "ours, groups in nodes", "ours, global", "traffic saved")
    text = (
        "8 groups of 32 experts, equal split, max / mean, mean layer / worst layer. Public engines keep groups in "
        "nodes whenever groups divide by nodes; what that costs is the step from `ours, global` to the left. `traffic "
        "saved` is what groups in nodes save between nodes when a token's experts come from 4 groups (`group_traffic`)."
    )
    return Part(title="Groups in nodes", text=text, sections=[Section("", columns, rows)], figures=figures)


def times(layers: int = 58) -> Part:
    """Time planning all layers on one core, beside the baseline."""
    load_LE = named_loads(layers)["decode"]
    next_LE = generator.drift(load_LE, 0.95, np.random.default_rng((SEED, 9)))
    rows, bars, figures = Rows(), list[Bar](), Figures()
    for size in SIZES:
        previous = placed(load_LE, size, split_aware=False)
        ways: dict[str, Callable[[], object]] = {
            "EPLB": partial(baseline, load_LE, size),
            "ours": partial(placed, load_LE, size, split_aware=False),
            "repair": partial(placed, next_LE, size, previous=previous, moves=32, split_aware=False),
            "for splitting": partial(placed, load_LE, size),
        }
        taken = {name: _cpu_ms(way, repeats=3 if name == "for splitting" else 5) for name, way in ways.items()}
        rows.append((size.name, *(f"{ms:.0f}" for ms in taken.values()), f"{taken['ours'] / taken['EPLB']:.1f}"))
        figures[size.name] = taken
        if size.name in WANTED_MS:
            wanted = WANTED_MS[size.name]
            claim = f"planning {layers} layers on one core, {size.name}"
            bars.append(Bar(claim, f"< {wanted:.0f} ms", f"{taken['ours']:.0f} ms", taken["ours"] < wanted))
    columns = ("size", "EPLB (NumPy)", "ours", "repair, 32 moves", "ours, for splitting", "ours / EPLB")
    text = f"CPU milliseconds of one core for {layers} layers of decode, median of several."
    return Part(title="Time to plan", text=text, sections=[Section("", columns, rows)], bars=bars, figures=figures)


def _cpu_ms(way: Callable[[], object], *, repeats: int) -> float:
    way()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        way()
        taken.append((time.process_time() - began) * 1e3)
    return statistics.median(taken)


def _mean_worst(value_L: NDArray[Any]) -> tuple[float, float]:
    return float(value_L.mean()), float(value_L.max())


def _pair(value_L: NDArray[Any]) -> str:
    return "{:.4f} / {:.4f}".format(*_mean_worst(value_L))


PARTS: dict[str, Callable[[int], Part]] = {
    "balance": balance,
    "bundled": bundled,
    "staleness": staleness,
    "hierarchy": hierarchy,
    "times": times,
}
