"""Advice: is balancing experts worth switching on, with how many redundant slots, and what it costs.

Everything is worked out from loads: what redundancy can buy at all, what placements reach, what is left of it a window
later and in a single batch, and what following the load moves. Not for deciding in a running service, which knows
its own batches, nor for times other than those that follow tokens: experts' computation and exchange.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourlane.errors import BalanceInputError
from fourlane.policy.advice_values import (
    Advice,
    Balance,
    Circumstances,
    Following,
    LayerBudget,
    Need,
    RedundancyOption,
)
from fourlane.policy.expert_statistics import LoadHistory
from fourlane.policy.load_generator import leaning_batch
from fourlane.policy.placement import Leaning, linear_placement, lower_bound, place_experts, redundancy_per_layer
from fourlane.policy.token_split import split_equally, split_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement
    from fourlane.policy.token_split import TokenSplit

__all__ = [
    "Advice",
    "Balance",
    "Circumstances",
    "Following",
    "LayerBudget",
    "Need",
    "RedundancyOption",
    "advise",
    "least_redundancy",
    "usual_sweep",
]

_MORE_SLOTS = (0, 1, 2, 3, 4, 6, 8)
"""Slots a rank beyond the least that a usual sweep tries, as far as memory for experts at most doubles."""
_ALWAYS_TRIED = 3
"""Steps of a usual sweep that are tried even where memory more than doubles."""
_TOLERANCE = 1e-9
"""Relative: balance this little above a target holds it."""


def least_redundancy(load_LE: NDArray[Any], *, ranks: int, target: float) -> NDArray[np.int64]:
    """Return how many redundant slots each layer needs at least for max/mean <= target, [layers].

    A rank holds a replica of an expert at most once and computes at most target x mean tokens, so that an expert with
    share w of the load needs ceil(w x ranks / target) ranks - however replicas share its tokens.

    Raises:
        BalanceInputError: target below 1, or a load that is none.
    """
    loads = _history(load_LE).load_WLE[0]
    _check_target(target)
    share = loads / loads.sum(axis=1, keepdims=True)
    copies = np.ceil(share * ranks / target - _TOLERANCE)
    return (np.maximum(copies, 1) - 1).sum(axis=1).astype(np.int64)


def usual_sweep(experts: int, ranks: int) -> tuple[int, ...]:
    """Return redundancies worth trying: from the fewest slots a rank up to twice the memory, equal slots a rank."""
    least = -(-experts // ranks)
    slots = [least + more for more in _MORE_SLOTS if least + more <= experts]
    found = [each * ranks - experts for each in slots]
    return tuple(count for place, count in enumerate(found) if place < _ALWAYS_TRIED or count <= experts)


def advise(
    load: LoadHistory | NDArray[Any],
    *,
    ranks: int,
    circumstances: Circumstances | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Advice:
    """Work out what balancing would bring for a load, and what it would cost.

    Args:
        load: windows of it, [windows, layers, experts], or one load, [layers, experts].
        ranks: ranks that share the experts.
        circumstances: what else the advice depends on.
        progress: called with steps done, steps in all, and what was done.

    Raises:
        BalanceInputError: naming the argument that is wrong.
    """
    given, history = circumstances or Circumstances(), _history(load)
    _check(history.experts, ranks, given)
    sweep = usual_sweep(history.experts, ranks) if given.redundant is None else tuple(sorted(set(given.redundant)))
    steps = _Steps(history.layers, len(sweep) + 2, progress)
    study = _Study(history, ranks, given, steps)
    options = [study.option(redundant) for redundant in sweep]
    chosen = _choose(options, ranks, given)
    following = study.following(options[chosen].slots)
    known = not np.isnan(history.lag_one_L).all()
    return Advice(
        layers=history.layers,
        experts=history.experts,
        ranks=ranks,
        windows=history.windows,
        circumstances=given,
        linear=study.linear,
        linear_batches=study.linear_batches,
        lag_one=float(np.nanmean(history.lag_one_L)) if known else None,
        drift=float(np.nanmean(history.drift_L)) if history.windows > 1 else None,
        needs=tuple(_need(study.total_LE, ranks, target, options) for target in given.targets),
        options=tuple(options),
        chosen=chosen,
        following=following,
        layer_budget=study.layer_budget(options[chosen]),
    )


class _Batch(NamedTuple):
    """A batch drawn: from which pair of windows, in which layer, and its counts [ranks, experts]."""

    pair: int
    layer: int
    count_GE: NDArray[np.int32]


class _Steps:
    """What is told of progress: first the layers that batches are drawn for, then stages."""

    def __init__(self, layers: int, stages: int, tell: Callable[[int, int, str], None] | None) -> None:
        self._layers, self._stages, self._tell = layers, stages, tell
        self._done = 0

    def step(self, text: str, *, layers: int) -> None:
        """Say what begins, and how many layers' worth of work it is; a stage goes through all layers."""
        if self._tell is not None:
            self._tell(self._done, self._layers * (self._stages + 1), text)
        self._done += layers


class _Study:
    """Loads, the batches drawn from them once, and what placements make of both."""

    def __init__(self, history: LoadHistory, ranks: int, given: Circumstances, steps: _Steps) -> None:
        self.load_WLE, self.ranks, self.given = history.load_WLE, ranks, given
        self.total_LE = history.load_LE
        self._steps = steps
        self._pairs = list(_pairs(history.windows, given.pairs))
        self._batches = list(self._draw())
        flat = linear_placement(layers=history.layers, experts=history.experts, ranks=ranks)
        self._flat_slots = flat.slots
        self.linear = Balance(flat.balance(self.total_LE))
        self.linear_batches = self._of_batches([flat] * len(self._pairs), split_equally)

    def option(self, redundant: int) -> RedundancyOption:
        """Return what a redundancy brings."""
        self._steps.step(f"R={redundant}", layers=len(self.total_LE))
        slots = self.total_LE.shape[1] + redundant
        placed = self._place(self.total_LE, slots)
        made = [self._place(self.load_WLE[before], slots) for before, _ in self._pairs]
        windows = [plan.balance(self.load_WLE[after]) for plan, (_, after) in zip(made, self._pairs, strict=True)]
        designed = [self._design(self.load_WLE[before], slots) for before, _ in self._pairs]
        split = self._of_batches(designed, split_tokens)
        return RedundancyOption(
            redundant=redundant,
            slots=slots,
            bound=Balance(lower_bound(self.total_LE, ranks=self.ranks, slots=slots)),
            placed=Balance(placed.balance(self.total_LE)),
            stale=Balance(np.mean(windows, axis=0)) if len(self.load_WLE) > 1 else None,
            equal=self._of_batches(made, split_equally),
            split=split,
            extra_bytes=self._extra_bytes(slots),
            gain=1 - split.mean / self.linear_batches.mean,
        )

    def following(self, slots: int) -> Following | None:
        """Return what going from window to window costs, planned from nothing and repaired."""
        self._steps.step("following the load", layers=len(self.total_LE))
        if len(self.load_WLE) < 2:
            return None
        moves = self.ranks if self.given.moves is None else self.given.moves
        counts: list[list[float]] = []
        balances: list[list[NDArray[np.float64]]] = []
        for before, after in self._pairs:
            load_LE = self.load_WLE[after]
            old, fresh = self._place(self.load_WLE[before], slots), self._place(load_LE, slots)
            mended = place_experts(load_LE, ranks=self.ranks, slots=slots, previous=old, moves=moves, split_aware=False)
            counts.append([float(plan.moves_from(old).mean()) for plan in (fresh, mended)])
            balances.append([plan.balance(load_LE) for plan in (fresh, mended)])
        replan, repair = np.mean(counts, axis=0).tolist()
        sizes = [self._received(count) for count in (replan, repair)]
        times = [None if size is None or not self.given.rate else size / self.given.rate for size in sizes]
        return Following(
            moves=moves,
            replan_moves=replan,
            repair_moves=repair,
            replan=Balance(np.mean([pair[0] for pair in balances], axis=0)),
            repair=Balance(np.mean([pair[1] for pair in balances], axis=0)),
            replan_bytes=sizes[0],
            repair_bytes=sizes[1],
            replan_s=times[0],
            repair_s=times[1],
        )

    def layer_budget(self, option: RedundancyOption) -> LayerBudget | None:
        """Share the memory of a redundancy out by layer; None where there is none to share out."""
        self._steps.step("redundancy by layer", layers=len(self.total_LE))
        layers, experts = self.total_LE.shape
        if option.slots <= self._flat_slots or layers < 2:
            return None
        slots_L = redundancy_per_layer(self.total_LE, ranks=self.ranks, extra_slots=layers * (option.slots - experts))
        placed = place_experts(self.total_LE, ranks=self.ranks, slots=slots_L, split_aware=False)
        return LayerBudget(slots_L=slots_L, by_layer=Balance(placed.balance(self.total_LE)), uniform=option.placed)

    def _place(self, load_LE: NDArray[Any], slots: int) -> Placement:
        """Place for equal shares."""
        return place_experts(load_LE, ranks=self.ranks, slots=slots, split_aware=False)

    def _design(self, load_LE: NDArray[Any], slots: int) -> Placement:
        """Place for splitting batches such as those drawn."""
        given = self.given
        leaning = Leaning(sd=min(given.lean_sd, 1.0), tokens=given.batch_tokens * given.top_k)
        return place_experts(load_LE, ranks=self.ranks, slots=slots, split_aware=leaning)

    def _draw(self) -> Iterator[_Batch]:
        """Draw the batches that every placement is tried on, from the pairs of windows in turn."""
        given, rng = self.given, np.random.default_rng(self.given.seed)
        for layer in range(self.total_LE.shape[0]):
            self._steps.step("drawing batches", layers=1)
            for number in range(given.batches):
                pair = (layer * given.batches + number) % len(self._pairs)
                load_E = self.load_WLE[self._pairs[pair][1], layer]
                count_GE = leaning_batch(
                    load_E, rng, ranks=self.ranks, tokens=given.batch_tokens, lean_sd=given.lean_sd, top_k=given.top_k
                )
                yield _Batch(pair, layer, count_GE)

    def _of_batches(self, made: list[Placement], split: Callable[..., TokenSplit]) -> Balance:
        """Return the balance of the batches, split in this way, in the placements of their pairs of windows."""
        sum_L, layers = np.zeros(len(self.total_LE)), len(self.total_LE)
        for batch in self._batches:
            mean = batch.count_GE.sum() / self.ranks
            sum_L[batch.layer] += split(batch.count_GE, made[batch.pair], batch.layer).tokens_G.max() / mean
        return Balance(sum_L / (len(self._batches) / layers))

    def _extra_bytes(self, slots: int) -> int | None:
        if self.given.expert_bytes is None:
            return None
        return (slots - self._flat_slots) // self.ranks * self.total_LE.shape[0] * self.given.expert_bytes

    def _received(self, moves: float) -> float | None:
        if self.given.expert_bytes is None:
            return None
        return moves * self.total_LE.shape[0] * self.given.expert_bytes / self.ranks


def _history(load: LoadHistory | NDArray[Any]) -> LoadHistory:
    """Return loads as a history in which every layer has tokens in every window.

    Raises:
        BalanceInputError: another shape, numbers that are no loads, or a layer without tokens.
    """
    if not isinstance(load, LoadHistory):
        try:
            given = np.asarray(load)
        except ValueError as error:
            raise BalanceInputError(f"load: expected layers of equally many experts, got {error}") from error
        load = LoadHistory(given[None] if given.ndim == 2 else given)
    empty = np.argwhere(load.load_WLE.sum(axis=2) == 0)
    if empty.size:
        window, layer = empty[0]
        raise BalanceInputError(f"load: expected tokens in every layer, got none in window {window}, layer {layer}")
    return load


def _check_target(target: float) -> None:
    if not (math.isfinite(target) and target >= 1):
        raise BalanceInputError(f"target: expected max/mean of at least 1, got {target:g}")


def _check(experts: int, ranks: int, given: Circumstances) -> None:
    """Refuse what advice cannot be given on.

    Raises:
        BalanceInputError: naming the argument.
    """
    if ranks < 2:
        raise BalanceInputError(f"ranks: expected at least 2 (one rank has nothing to balance), got {ranks}")
    for name in ("batch_tokens", "batches", "pairs"):
        if getattr(given, name) < 1:
            raise BalanceInputError(f"{name}: expected at least 1, got {getattr(given, name)}")
    if not 1 <= given.top_k <= experts:
        raise BalanceInputError(f"top_k: expected 1 to {experts} experts, got {given.top_k}")
    for target in given.targets:
        _check_target(target)
    if not (math.isfinite(given.lean_sd) and given.lean_sd >= 0):
        raise BalanceInputError(f"lean_sd: expected a number of at least 0, got {given.lean_sd}")
    for redundant in given.redundant or ():
        if redundant < 0 or (experts + redundant) % ranks:
            near = -(-experts // ranks) * ranks - experts
            raise BalanceInputError(
                f"redundant: expected as many as give every one of {ranks} ranks equally many of {experts} experts' "
                f"slots, such as {near} or {near + ranks}, got {redundant}"
            )


def _pairs(windows: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield windows to place from and to live in: the latest successive ones, or the only one twice."""
    if windows == 1:
        yield 0, 0
    for after in range(max(1, windows - most), windows):
        yield after - 1, after


def _choose(options: list[RedundancyOption], ranks: int, given: Circumstances) -> int:
    """Return the redundancy, of those that memory allows, from which on no slot saves enough."""
    allowed = [
        place
        for place, option in enumerate(options)
        if given.memory is None or option.extra_bytes is None or option.extra_bytes <= given.memory
    ] or [0]
    least = options[allowed[0]].slots

    def score(place: int) -> float:
        return options[place].split.mean * (1 + given.slot_gain * (options[place].slots - least) / ranks)

    return min(allowed, key=score)


def _need(load_LE: NDArray[Any], ranks: int, target: float, options: list[RedundancyOption]) -> Need:
    reached_L = np.full(load_LE.shape[0], -1, dtype=np.int64)
    for option in reversed(options):
        reached_L[option.placed.balance_L <= target * (1 + _TOLERANCE)] = option.redundant
    return Need(target, least_redundancy(load_LE, ranks=ranks, target=target), reached_L)
