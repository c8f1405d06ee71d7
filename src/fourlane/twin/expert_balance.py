"""How full the fullest rank of an expert-parallel group is, by how many tokens there are to share out.

Batches are drawn (`policy.load_generator`), experts placed for their popularity (`policy.placement`) and each batch
split over their replicas (`policy.token_split`): by the very policies that the live engine runs. What a rank gets then
is the mean over layers and batches. The placement is made for the true popularity: a stale one is not modelled, but
batches depart from it as far as `Experts.lean` says. Not for what an imbalance costs (`twin.step_model`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane import policy
from fourlane.errors import SpecError
from fourlane.policy.load_generator import PRESETS, ModelShape, leaning_batch, leaning_counts, zipf
from fourlane.policy.placement import linear_placement, place_experts
from fourlane.policy.token_split import split_equally, split_tokens
from fourlane.spec.expert_files import read_loads
from fourlane.twin.exchange.cache import keep, kept, key_of
from fourlane.twin.times import RankShare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.twin import Experts
    from fourlane.twin.times import Phase

__all__ = ["TOKENS", "DrawnBalance", "ForcedBalance", "expert_balance", "physical_slots"]

TOKENS = (0.25, 1, 4, 16, 64, 256, 1024, 8192)
"""Tokens a rank for which batches are drawn; between them the excess over 1 is a straight line in their logarithm."""
LAYERS, BATCHES, SMALL_BATCHES = 8, 2, 8
_KIND = "expert-balance"
_DRAWN_ONE_BY_ONE = 1 << 19  # tokens x experts of a batch up to which every token is drawn


def physical_slots(experts: int, redundant: int, ranks: int) -> int:
    """Return the physical slots a layer: experts and replicas, rounded up so that ranks hold equally many."""
    return -(-(experts + redundant) // ranks) * ranks


@dataclass(frozen=True, slots=True)
class DrawnBalance:
    """A `BalanceCurve` from drawn batches.

    Args:
        held_experts: slots a layer that a rank holds.
        tokens: [points] ascending, tokens a rank.
        max_over_mean, received, active: [points] of (token, expert) pairs, of those from other ranks, and of the
            fullest rank's experts with any.
        worst_layer: the most uneven layer's pairs, at the most tokens.
        source: in words.
    """

    held_experts: int
    tokens: tuple[float, ...]
    max_over_mean: tuple[float, ...]
    received: tuple[float, ...]
    active: tuple[float, ...]
    worst_layer: float
    source: str

    def at(self, tokens: float) -> RankShare:
        """Return how batches of so many tokens a rank are shared out; beyond the drawn ones like the nearest."""
        place = math.log(max(tokens, self.tokens[0]))
        grid = np.log(self.tokens)
        pairs, received, active = (
            float(np.interp(place, grid, values)) for values in (self.max_over_mean, self.received, self.active)
        )
        return RankShare(pairs, received, active, self.source)


@dataclass(frozen=True, slots=True)
class ForcedBalance:
    """A `BalanceCurve` where every expert is made to get the same, as in published profiles."""

    held_experts: int
    top_k: int
    source: str = "forced balance"

    def at(self, tokens: float) -> RankShare:
        """Return that every rank gets the same."""
        return RankShare(1.0, 1.0, min(float(self.held_experts), max(1.0, tokens * self.top_k)), self.source)


def expert_balance(
    architecture: Architecture,
    ranks: int,
    redundant: int,
    experts: Experts,
    *,
    nodes: int = 1,
    seed: int = 0,
    phase: Phase = "decode",
) -> DrawnBalance | ForcedBalance:
    """Return how full the fullest of `ranks` ranks is.

    Args:
        architecture: of the model.
        ranks: of the expert-parallel group.
        redundant: replicas a layer beyond one of each expert, rounded up so that ranks hold equally many.
        experts: which experts tokens choose, and what is done about it.
        nodes: servers the ranks are in, equally many in each.
        seed: where draws begin.
        phase: popularity differs between prefill and decode.

    Raises:
        SpecError: `experts.popularity` is nothing known, or a file of other layers or experts; or more replicas are
            asked for than ranks can hold.
    """
    slots = physical_slots(architecture.experts, redundant, ranks)
    if slots // ranks > architecture.experts:
        raise SpecError(
            f"redundant_experts: expected at most {architecture.experts * (ranks - 1)} on {ranks} ranks "
            f"(each holds an expert once), got {redundant}"
        )
    if experts.forced:
        return ForcedBalance(slots // ranks, architecture.top_k)
    file = _file_of(experts.popularity)
    key = "" if file is None else hashlib.sha256(_bytes_of(file)).hexdigest()
    moe_layers = architecture.layers - architecture.dense_layers
    shape = ModelShape(
        layers=min(LAYERS, moe_layers),
        experts=architecture.experts,
        groups=architecture.groups if architecture.experts % architecture.groups == 0 else 1,
        top_k=architecture.top_k,
    )
    return _balance(
        _Group(ranks, slots, nodes if ranks % nodes == 0 else 1, shape.groups), shape, experts, phase, seed, key
    )


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A balance as the cache holds it."""

    key: str
    balance: DrawnBalance


@dataclass(frozen=True, slots=True)
class _Group:
    ranks: int
    slots: int
    nodes: int
    groups: int


@lru_cache(maxsize=512)
def _balance(group: _Group, shape: ModelShape, experts: Experts, phase: Phase, seed: int, file: str) -> DrawnBalance:
    """Draw it, or take it from the cache, which knows it by all it depends on."""
    key = key_of([_made_by(), asdict(group), asdict(shape), experts, phase, seed, file])
    held = kept(_KIND, key, _Kept)
    if held is None:
        held = _Kept(key=key, balance=_drawn(group, shape, experts, phase, seed))
        keep(_KIND, key, held)
    return held.balance


@cache
def _made_by() -> str:
    """Return a digest of the code that draws, places and splits."""
    folder = Path(policy.__file__).parent
    found = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(folder.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _drawn(group: _Group, shape: ModelShape, experts: Experts, phase: Phase, seed: int) -> DrawnBalance:
    rng = np.random.default_rng([seed, 0 if phase == "prefill" else 1])
    load_LE, popularity = _popularity(experts.popularity, shape, phase, rng)
    placement = _placement(load_LE, group, experts, seed)
    lean_sd = math.sqrt(math.log1p(experts.lean**2))
    drawn_TLF = np.array(
        [
            [
                _layer(load_LE[layer], placement, layer, group, (tokens, shape.top_k, lean_sd, experts.split), rng)
                for layer in range(len(load_LE))
            ]
            for tokens in TOKENS
        ]
    )
    mean_TF = drawn_TLF.mean(axis=1)
    placed = {"linear": "in order", "balanced": "placed for it", "hierarchical": "placed for it, groups in nodes"}
    how = placed[experts.placement]
    split = "batches split over replicas" if experts.split else "replicas used evenly"
    source = (
        f"{popularity}, batches leaning by {experts.lean:g}; {shape.experts} experts in {group.slots} slots on "
        f"{group.ranks} ranks, {how}, {split} (policy); {len(load_LE)} layers, {BATCHES} batches each or more, "
        f"seed {seed}"
    )
    return DrawnBalance(
        held_experts=group.slots // group.ranks,
        tokens=TOKENS,
        max_over_mean=tuple(mean_TF[:, 0].tolist()),
        received=tuple(mean_TF[:, 1].tolist()),
        active=tuple(mean_TF[:, 2].tolist()),
        worst_layer=float(drawn_TLF[-1, :, 0].max()),
        source=source,
    )


def _placement(load_LE: NDArray[np.int64], group: _Group, experts: Experts, seed: int) -> Placement:
    layers, count = load_LE.shape
    if experts.placement == "linear":
        return linear_placement(layers=layers, experts=count, ranks=group.ranks, redundant=max(0, group.slots - count))
    hierarchical = experts.placement == "hierarchical" and group.nodes > 1 and group.groups % group.nodes == 0
    return place_experts(
        load_LE,
        ranks=group.ranks,
        slots=group.slots,
        nodes=group.nodes,
        groups=group.groups if hierarchical else None,
        split_aware=experts.split,
        seed=seed,
    )


def _layer(
    load_E: NDArray[np.int64],
    placement: Placement,
    layer: int,
    group: _Group,
    how: tuple[float, int, float, bool],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the mean over batches of: pairs and received pairs, fullest over mean; the fullest rank's experts."""
    tokens, top_k, lean_sd, split = how
    found = np.zeros((SMALL_BATCHES if tokens * group.ranks <= 256 else BATCHES, 3))
    for batch in range(len(found)):
        count_GE = _batch(load_E, rng, group.ranks, tokens, top_k, lean_sd)
        if split:
            quota_GP = split_tokens(count_GE, placement, layer, nodes=group.nodes).quota_GP
        else:
            quota_GP = split_equally(count_GE, placement, layer).quota_GP
        per_slot_GGP = quota_GP.reshape(group.ranks, group.ranks, -1)
        pairs_GG = per_slot_GGP.sum(axis=2, dtype=np.int64)
        pairs_G = pairs_GG.sum(axis=0)
        received_G = pairs_G - pairs_GG.diagonal()
        fullest = int(pairs_G.argmax())
        active = int((per_slot_GGP[:, fullest].sum(axis=0) > 0).sum())
        found[batch] = _excess(pairs_G), _excess(received_G), active
    return found.mean(axis=0)


def _batch(
    load_E: NDArray[np.int64], rng: np.random.Generator, ranks: int, tokens: float, top_k: int, lean_sd: float
) -> NDArray[np.int64] | NDArray[np.int32]:
    """Draw a batch's counts; with less than a token a rank only some ranks have one, at least one rank does."""
    whole = max(1, round(tokens))
    if whole * load_E.size * ranks <= _DRAWN_ONE_BY_ONE:
        count_GE = leaning_batch(load_E, rng, ranks=ranks, tokens=whole, lean_sd=lean_sd, top_k=top_k)
    else:
        count_GE = leaning_counts(load_E, rng, ranks=ranks, tokens=whole, lean_sd=lean_sd, top_k=top_k)
    if tokens < 1:
        idle = ranks - max(1, round(tokens * ranks))
        count_GE[rng.permutation(ranks)[:idle]] = 0
    return count_GE


def _excess(tokens_G: NDArray[np.int64]) -> float:
    mean = tokens_G.mean()
    return float(tokens_G.max() / mean) if mean > 0 else 1.0


# Popularity -------------------------------------------------------------------------------------------


def _popularity(name: str, shape: ModelShape, phase: Phase, rng: np.random.Generator) -> tuple[NDArray[np.int64], str]:
    """Return loads, [layers, experts], and what they are in words."""
    if name == "uniform":
        return np.full((shape.layers, shape.experts), 1 << 12, dtype=np.int64), "uniform popularity"
    if name == "lognormal":
        return PRESETS[phase].draw(rng, shape), f"popularity of {phase} drawn like published loads"
    if name.startswith("zipf:"):
        return zipf(_exponent(name), rng, shape), f"power-law popularity, exponent {_exponent(name):g}"
    return _recorded(Path(name), shape, phase)


def _exponent(name: str) -> float:
    try:
        exponent = float(name.partition(":")[2])
    except ValueError:
        exponent = -1.0
    if not 0 <= exponent <= 20:
        raise SpecError(f'experts.popularity: expected an exponent from 0 to 20 as in "zipf:1.2", got "{name}"')
    return exponent


def _recorded(path: Path, shape: ModelShape, phase: Phase) -> tuple[NDArray[np.int64], str]:
    phases = read_loads(path)
    loads = phases.get(phase) or phases.get("mixed") or next(iter(phases.values()))
    held = next(name for name, found in phases.items() if found is loads)
    load_LE = np.asarray(loads.load_WLE, dtype=np.float64).sum(axis=0)
    if load_LE.shape[1] != shape.experts:
        raise SpecError(
            f"experts.popularity: {path.name}: expected loads of {shape.experts} experts a layer, "
            f"got {load_LE.shape[1]}; record them from the same model"
        )
    chosen = load_LE[np.unique(np.linspace(0, len(load_LE) - 1, shape.layers).round().astype(int))]
    chosen = chosen[chosen.any(axis=1)]
    if not len(chosen):
        raise SpecError(f"experts.popularity: {path.name}: expected layers with some load, got none")
    whole = np.maximum(np.rint(chosen), 0).astype(np.int64)
    return whole, f"popularity of {held} recorded in {path.name}"


def _file_of(popularity: str) -> Path | None:
    """Return the file a popularity names, None if it names none."""
    if popularity in ("uniform", "lognormal") or popularity.startswith("zipf:"):
        return None
    return Path(popularity)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(
            f'experts.popularity: expected "uniform", "lognormal", "zipf:1.2" or a file of recorded loads, '
            f'got "{path}" ({error.strerror})'
        ) from error
