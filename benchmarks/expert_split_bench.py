"""Splitting batches over replicas, beside choosing replicas without counts: what each rank has to compute, and time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import eplb
import numpy as np
import replica_choices
from expert_cases import BUNDLED_SIZES, SEED, SIZES, Size, Slots, baseline, baseline_value, named_loads, placed
from recorded_parts import Bar, Figures, Part, Rows, Section

from fourlane.policy.load_generator import leaning_batch
from fourlane.policy.token_split import rank_tokens, split_equally, split_local_tokens, split_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement

    Way = Callable[[NDArray[Any], "_Compared", int], float]

__all__ = ["PARTS"]

TOKENS = 128
WANTED = {"EP32+32": 1.05, "EP64+64": 1.09, "EP128+128": 1.20}
LEANS = (0.0, 0.1, 0.2, 0.3)
WANTED_US = 100.0
OTHERS = ("random", "hash", "round robin")


class _Compared(NamedTuple):
    """A placement, and the slots that choices without counts are made on: EPLB's with its second copies on a rank."""

    value: Placement
    slots: Placement | Slots

    def fullest(self, quota_GP: NDArray[np.int32]) -> float:
        return float(rank_tokens(quota_GP, self.value.ranks).max())


def _equally(count_GE: NDArray[Any], compared: _Compared, layer: int) -> float:
    slot_of_1P = compared.slots.slot_of_LP[layer : layer + 1]
    return float(eplb.rank_load(slot_of_1P, count_GE.sum(axis=0)[None], compared.value.ranks).max())


def _locally(count_GE: NDArray[Any], compared: _Compared, layer: int) -> float:
    value = compared.value
    quotas = [split_local_tokens(count_E, value, layer, rank=rank) for rank, count_E in enumerate(count_GE)]
    return compared.fullest(np.stack(quotas))


def _globally(count_GE: NDArray[Any], compared: _Compared, layer: int) -> float:
    return float(split_tokens(count_GE, compared.value, layer).tokens_G.max())


def _bound(count_GE: NDArray[Any], compared: _Compared, layer: int) -> float:
    return split_tokens(count_GE, compared.value, layer).lower_bound


def _chosen(choose: Callable[..., NDArray[np.int32]]) -> Way:
    return lambda count_GE, compared, layer: compared.fullest(choose(count_GE, compared.slots, layer))


def _ways(rng: np.random.Generator) -> dict[str, Way]:
    """Return the ways to share a batch's tokens out, each a function that returns the fullest rank's tokens."""
    return {
        "random": _chosen(partial(replica_choices.randomly, rng=rng)),
        "hash": _chosen(partial(replica_choices.by_hash, tokens=TOKENS, rng=rng)),
        "round robin": _chosen(replica_choices.in_turn),
        "equal": _equally,
        "local": _locally,
        "global": _globally,
        "lower bound": _bound,
    }


def _over_mean(
    batches: Iterable[tuple[int, NDArray[Any]]], placements: dict[str, _Compared], ways: dict[str, Way]
) -> dict[str, dict[str, float]]:
    """Return sum of maxima over sum of means, by placement and way, of (layer, counts) batches."""
    fullest: dict[str, dict[str, float]] = {name: defaultdict(float) for name in placements}
    mean = 0.0
    for layer, count_GE in batches:
        mean += float(count_GE.sum()) / len(count_GE)
        for name, compared in placements.items():
            for way, measure in ways.items():
                fullest[name][way] += measure(count_GE, compared, layer)
    return {name: {way: total / mean for way, total in found.items()} for name, found in fullest.items()}


def _placements(load_LE: NDArray[Any], size: Size) -> dict[str, _Compared]:
    slot_of_LP = baseline(load_LE, size)
    ours = {
        "ours, equal split": placed(load_LE, size, split_aware=False),
        "ours, for splitting": placed(load_LE, size),
    }
    return {
        "EPLB": _Compared(baseline_value(slot_of_LP, size), Slots(slot_of_LP, size)),
        **{name: _Compared(value, value) for name, value in ours.items()},
    }


def leaning(size: Size, layers: int = 58) -> Part:
    """Split leaning batches of one size."""
    load_LE = named_loads(layers)["decode"]
    placements, rng = _placements(load_LE, size), np.random.default_rng((SEED, size.ranks))
    figures: dict[str, Any] = {}
    rows = Rows()
    for lean_sd in LEANS:
        batches = (
            (layer, leaning_batch(load_E, rng, ranks=size.ranks, tokens=TOKENS, lean_sd=lean_sd))
            for layer, load_E in enumerate(load_LE)
        )
        figures[str(lean_sd)] = _over_mean(batches, placements, _ways(np.random.default_rng((SEED, 1))))
        for name, found in figures[str(lean_sd)].items():
            rows.append((f"{lean_sd:.1f}", name, *(f"{value:.3f}" for value in found.values())))
    columns = ("lean", "placement", *figures["0.2"]["EPLB"])
    text = (
        f"{size.name}: one batch in each of {layers} layers of decode, {TOKENS} tokens x top 8 a rank, log-popularity "
        "shifted by a normal of s.d. `lean` a batch; sum of the fullest ranks' tokens over sum of the means. "
        "`random`, `hash` and `round robin` choose a replica for each token without counts; `equal` is in fractions."
    )
    return Part(
        title=f"Splitting leaning batches, {size.name}",
        text=text,
        sections=[Section("", columns, rows)],
        bars=_leaning_bars(size, figures),
        figures=figures,
    )


def _leaning_bars(size: Size, figures: dict[str, Any]) -> list[Bar]:
    ours, theirs = figures["0.2"]["ours, for splitting"], figures["0.2"]["EPLB"]
    bars = []
    if size.name in WANTED:
        beside = ", ".join(f"{way} {theirs[way]:.3f}" for way in OTHERS)
        found = f"{ours['global']:.3f} (EPLB's placement: {beside})"
        met = ours["global"] <= WANTED[size.name]
        bars.append(Bar(f"splitting, {size.name}, lean 0.2", f"<= {WANTED[size.name]}", found, met))
    for name in ("ours, equal split", "ours, for splitting"):
        found = figures["0.2"][name]
        gap = found["local"] / found["global"]
        claim = f"local counts alone over global, {size.name}, lean 0.2, placement {name}"
        bars.append(Bar(claim, "<= 1.03", f"{gap:.3f}", gap <= 1.03))
    return bars


def times(layers: int = 8) -> Part:
    """Time one split."""
    load_LE = named_loads(58)["decode"][:layers]
    rows, bars, figures = Rows(), list[Bar](), Figures()
    for size in (*SIZES, Size(144, 176)):
        placement, rng = placed(load_LE, size, split_aware=False), np.random.default_rng((SEED, 5))
        counts = [leaning_batch(load_E, rng, ranks=size.ranks, tokens=TOKENS, lean_sd=0.2) for load_E in load_LE]
        globally = _median_us([partial(split_tokens, count, placement, layer) for layer, count in enumerate(counts)])
        locally = _median_us(
            [partial(split_local_tokens, count[0], placement, layer, rank=0) for layer, count in enumerate(counts)]
        )
        equally = _median_us([partial(split_equally, count, placement, layer) for layer, count in enumerate(counts)])
        rows.append((size.name, *(f"{us:.0f}" for us in (globally, locally, equally))))
        figures[size.name] = [globally, locally, equally]
        if size.ranks == 144:
            claim = f"one split, 256 experts, {size.name}"
            bars.append(Bar(claim, f"< {WANTED_US:.0f} us", f"{globally:.0f} us", globally < WANTED_US))
    columns = ("size", "global", "local", "equal")
    text = (
        f"CPU microseconds of one core for one call from Python, median over {layers} layers of decode "
        f"({TOKENS} tokens x top 8 a rank, lean 0.2) and many repetitions."
    )
    return Part(title="Time to split", text=text, sections=[Section("", columns, rows)], bars=bars, figures=figures)


def _median_us(calls: list[Callable[[], object]], repeats: int = 300) -> float:
    taken = []
    for call in calls:
        call()
        for _ in range(repeats):
            began = time.perf_counter_ns()
            call()
            taken.append((time.perf_counter_ns() - began) / 1e3)
    return statistics.median(taken)


def routed(layers: int = 58) -> Part:
    """Split batches of the bundled model's real routing of real text."""
    from expert_routing_record import record_routing

    chosen_LTK = record_routing()[:layers]
    rows, figures = Rows(), Figures()
    for size in BUNDLED_SIZES:
        batches = _batches(chosen_LTK, size)
        half = len(batches) // 2
        load_LE = np.sum(batches[:half], axis=(0, 2))
        used = [(layer, count_GE) for count_LGE in batches[half:] for layer, count_GE in enumerate(count_LGE)]
        found = _over_mean(used, _placements(load_LE, size), _ways(np.random.default_rng((SEED, 2))))
        figures[size.name] = found
        rows += [(size.name, name, *(f"{value:.3f}" for value in each.values())) for name, each in found.items()]
    columns = ("size", "placement", *figures[BUNDLED_SIZES[0].name]["EPLB"])
    text = (
        f"The bundled model ({len(chosen_LTK)} layers, 32 experts, top 4) reads {chosen_LTK.shape[1]:,} tokens of "
        "Python's own reference (`pydoc_data.topics`), each rank a stretch of its own; a batch is the next 128 tokens "
        "of each rank. Placed for the first half of the batches, split on the second. Sum of the fullest ranks' tokens "
        "over sum of the means. `local` supposes that other ranks' tokens choose as its own do, which ranks that read "
        "different chapters do not."
    )
    title = "Splitting the bundled model's routing of real text"
    return Part(title=title, text=text, sections=[Section("", columns, rows)], figures=figures)


def _batches(chosen_LTK: NDArray[Any], size: Size) -> list[NDArray[Any]]:
    """Return counts [layers, ranks, experts] of successive batches, each rank reading on from where it is."""
    layers, tokens, _ = chosen_LTK.shape
    each = tokens // size.ranks  # a rank's own stretch of the text
    batches = []
    for start in range(0, each - TOKENS + 1, TOKENS):
        count_LGE = np.zeros((layers, size.ranks, size.experts), dtype=np.int64)
        for rank in range(size.ranks):
            chosen = chosen_LTK[:, rank * each + start : rank * each + start + TOKENS]
            for layer in range(layers):
                count_LGE[layer, rank] = np.bincount(chosen[layer].ravel(), minlength=size.experts)
        batches.append(count_LGE)
    return batches


PARTS: dict[str, Callable[[int], Part]] = {
    **{f"split-{size.ranks}": partial(leaning, size) for size in SIZES},
    "split-times": lambda layers: times(min(8, layers)),
    "routed": routed,
}
