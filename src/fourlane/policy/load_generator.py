"""Draw expert loads that look like those published: skew, phases, drift, batches that lean.

Loads are tokens each expert got, [layers, experts] int64. A token picks `top_k` distinct experts, so no expert gets
more than one pair a token: shares are held at 1 / top_k. Not for requests and their arrival times
(`gateway.load`), nor for which tokens go together: experts of a token are drawn independently of each other,
which is all that the load of a rank depends on.

Source: recorded loads of DeepSeek-V3 as published with EPLB (deepseek-ai/EPLB), CRAFT (arXiv 2603.28768) and
    METRO (arXiv 2512.09277): coefficient of variation 0.73 to 1.07, hottest expert 5.6 to 8.1 times the mean (worst
    layer 10 to 14), a lognormal body of 0.6 to 0.8 with a heavier tail; popularity in prefill and in decode correlates
    0.70 to 0.90, that of prompts of different lengths 0.96 to 0.99.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import BalanceInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "DECODE",
    "DEEPSEEK_V3",
    "PREFILL",
    "PRESETS",
    "LoadModel",
    "ModelShape",
    "draw_phases",
    "drift",
    "drift_windows",
    "lean",
    "leaning_batch",
    "leaning_counts",
    "lognormal",
    "single_hot",
    "zipf",
]

Loads = np.ndarray


def _check(name: str, value: float, *, least: float, most: float | None = None) -> None:
    if not (value >= least and (most is None or value <= most)):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise BalanceInputError(f"{name}: expected {allowed}, got {value}")


@dataclass(frozen=True)
class ModelShape:
    """What loads are drawn for: layers with experts, experts a layer in so many groups, experts a token, tokens."""

    layers: int = 58
    experts: int = 256
    groups: int = 8
    top_k: int = 8
    tokens: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "groups", "top_k", "tokens"):
            _check(name, getattr(self, name), least=1, most=self.experts if name == "top_k" else None)


DEEPSEEK_V3 = ModelShape()


@dataclass(frozen=True)
class LoadModel:
    """A distribution of expert popularity: lognormal, bent up beyond one sigma, levelled off near `most`.

    Args:
        sigma: the body's standard deviation of log-popularity, a layer's drawn evenly between these two.
        tail: how much hot experts exceed a lognormal: log-popularity z gains tail * (z - 1) ^ 1.5 beyond z = 1.
        most: where the hottest experts level off, in multiples of the mean.
        shared: the part of the variance of log-popularity that experts of a group have in common.
    """

    sigma: tuple[float, float]
    tail: float
    most: float
    shared: float

    def draw(self, rng: np.random.Generator, shape: ModelShape = DEEPSEEK_V3) -> NDArray[np.int64]:
        """Draw loads, [layers, experts]."""
        return self._loads(_normals(rng, shape, self.shared), rng.uniform(size=(shape.layers, 1)), shape)

    def _loads(self, z_LE: NDArray[Any], width_L1: NDArray[Any], shape: ModelShape) -> NDArray[np.int64]:
        """Return the loads of standard normal draws; `width_L1` in 0..1 says where in `sigma` a layer is."""
        low, high = self.sigma
        bent_LE = z_LE + self.tail * np.maximum(z_LE - 1.0, 0.0) ** 1.5
        popularity_LE = np.exp((low + (high - low) * width_L1) * bent_LE)
        popularity_LE /= popularity_LE.mean(axis=1, keepdims=True)
        return _as_tokens((popularity_LE**-4 + self.most**-4) ** -0.25, shape)


DECODE = LoadModel(sigma=(0.5, 1.0), tail=0.07, most=12.5, shared=0.4)
PREFILL = LoadModel(sigma=(0.5, 0.97), tail=0.07, most=12.5, shared=0.4)
PRESETS: Mapping[str, LoadModel] = {"decode": DECODE, "prefill": PREFILL}


def draw_phases(
    rng: np.random.Generator, shape: ModelShape = DEEPSEEK_V3, *, correlation: float = 0.8
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the loads of prefill and of decode of one model; `correlation` is that of the loads, in the mean layer."""
    _check("correlation", correlation, least=0, most=1)
    prefill_LE, other_LE = _normals(rng, shape, PREFILL.shared), _normals(rng, shape, DECODE.shared)
    width_L1 = rng.uniform(size=(shape.layers, 1))
    latent = _latent(correlation, np.full(1, sum(DECODE.sigma) / 2)).item()
    decode_LE = latent * prefill_LE + math.sqrt(1.0 - latent**2) * other_LE
    return PREFILL._loads(prefill_LE, width_L1, shape), DECODE._loads(decode_LE, width_L1, shape)  # noqa: SLF001


def zipf(exponent: float, rng: np.random.Generator, shape: ModelShape = DEEPSEEK_V3) -> NDArray[np.int64]:
    """Draw loads that fall as 1 / rank ^ exponent, in an order of each layer's own.

    An expert beyond one pair a token is held there, and the rest shared out: with 256 experts and top 8 that is the
    hottest one from an exponent of 0.9 on.
    """
    _check("exponent", exponent, least=0)
    popularity_E = np.arange(1, shape.experts + 1) ** -float(exponent)
    return _as_tokens(np.stack([rng.permutation(popularity_E) for _ in range(shape.layers)]), shape)


def lognormal(sigma: float, rng: np.random.Generator, shape: ModelShape = DEEPSEEK_V3) -> NDArray[np.int64]:
    """Draw loads whose logarithm is normal with standard deviation `sigma`."""
    _check("sigma", sigma, least=0, most=20)
    return _as_tokens(np.exp(sigma * rng.standard_normal((shape.layers, shape.experts))), shape)


def single_hot(rng: np.random.Generator, shape: ModelShape = DEEPSEEK_V3) -> NDArray[np.int64]:
    """Draw loads in which every token chooses one expert (another in each layer), and all others are equal."""
    popularity_LE = np.ones((shape.layers, shape.experts))
    # More than any share allows: the cap makes it exactly one pair a token.
    popularity_LE[np.arange(shape.layers), rng.integers(shape.experts, size=shape.layers)] = shape.experts
    return _as_tokens(popularity_LE, shape)


def drift(load_LE: Loads, rho: float, rng: np.random.Generator, *, top_k: int = 8) -> NDArray[np.int64]:
    """Draw the next window's loads: as skewed as these, and correlated with them.

    Log-popularity takes a step of a stationary first-order autoregression in each layer.

    Args:
        load_LE: [layers, experts] tokens; an expert with none is taken to have had half a token.
        rho: the correlation of successive loads: exact in expectation where they are lognormal.
        top_k: experts a token.

    Raises:
        BalanceInputError: loads are not [layers, experts] of finite numbers >= 0, or a number is out of range.
    """
    _check("rho", rho, least=0, most=1)
    _check_loads("load_LE", load_LE, dims=2)
    _check("top_k", top_k, least=1)
    log_LE = np.log(np.maximum(load_LE, 0.5))
    mean_L1, sd_L1 = log_LE.mean(axis=1, keepdims=True), log_LE.std(axis=1, keepdims=True)
    latent_L1 = _latent(rho, sd_L1)
    fresh_LE = sd_L1 * rng.standard_normal(log_LE.shape)
    next_LE = mean_L1 + latent_L1 * (log_LE - mean_L1) + np.sqrt(1.0 - latent_L1**2) * fresh_LE
    layers, experts = log_LE.shape
    pairs_L = np.asarray(load_LE).sum(axis=1)
    shares_LE = _capped(np.exp(next_LE - next_LE.max(axis=1, keepdims=True)), 1.0 / min(top_k, experts))
    return np.stack([_whole(shares_LE[layer], int(pairs_L[layer])) for layer in range(layers)])


def drift_windows(
    load_LE: Loads, windows: int, rho: float, rng: np.random.Generator, *, top_k: int = 8
) -> NDArray[np.int64]:
    """Draw successive windows that begin with `load_LE` and drift, [windows, layers, experts]."""
    drawn = [np.asarray(load_LE, dtype=np.int64)]
    while len(drawn) < windows:
        drawn.append(drift(drawn[-1], rho, rng, top_k=top_k))
    return np.stack(drawn)


def lean(load_E: Loads, lean_sd: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw what a batch prefers, in a layer or in each: log-popularity shifted by a normal of s.d. `lean_sd`."""
    load = np.asarray(load_E, dtype=np.float64)
    return load * np.exp(lean_sd * rng.standard_normal(load.shape))


def leaning_batch(
    load_E: Loads, rng: np.random.Generator, *, ranks: int, tokens: int, lean_sd: float = 0.0, top_k: int = 8
) -> NDArray[np.int32]:
    """Draw one layer's counts of one batch: tokens of each rank for each expert, [ranks, experts].

    The batch leans as a whole (`lean`); then each token draws `top_k` distinct experts, by Pareto sampling: the chance
    that a token chooses an expert is top_k times its share, within about a hundredth of itself.

    Args:
        load_E: [experts] one layer's loads.
        rng: where draws come from.
        ranks: ranks of the group.
        tokens: tokens of each rank.
        lean_sd: standard deviation of the batch's shift of log-popularity.
        top_k: experts a token.

    Raises:
        BalanceInputError: loads are not [experts] of finite numbers >= 0 with any above, or a number is out of range.

    Source: B. Rosen, On sampling with probability proportional to size, J. Stat. Plan. Inference 62 (1997).
    """
    _check_loads("load_E", load_E, dims=1)
    _check("ranks", ranks, least=1)
    _check("tokens", tokens, least=0)
    _check("lean_sd", lean_sd, least=0, most=20)
    _check("top_k", top_k, least=1, most=np.size(load_E))
    share_1E = _capped(lean(load_E, lean_sd, rng)[None, :], 1.0 / top_k)
    chance_E = np.clip(top_k * share_1E[0], 1e-12, 1.0 - 1e-9).astype(np.float32)
    odds_E = (1.0 - chance_E) / chance_E
    count_GE = np.empty((ranks, chance_E.size), dtype=np.int32)
    for rank in range(ranks):
        draw_TE = rng.random((tokens, chance_E.size), dtype=np.float32)
        rank_TE = draw_TE / (1.0 - draw_TE) * odds_E
        chosen_TK = np.argpartition(rank_TE, top_k - 1, axis=1)[:, :top_k]
        count_GE[rank] = np.bincount(chosen_TK.ravel(), minlength=chance_E.size)
    return count_GE


def leaning_counts(
    load_E: Loads, rng: np.random.Generator, *, ranks: int, tokens: int, lean_sd: float = 0.0, top_k: int = 8
) -> NDArray[np.int64]:
    """Draw what `leaning_batch` does for many tokens, in a time that does not grow with them, [ranks, experts].

    Each expert's count is drawn by itself; what a rank's then have too many or too few together is taken from or given
    to each in proportion to its variance, as it would be for normal variables of which the sum is known.

    Args and Raises: as of `leaning_batch`.
    """
    _check_loads("load_E", load_E, dims=1)
    _check("ranks", ranks, least=1)
    _check("tokens", tokens, least=0)
    _check("lean_sd", lean_sd, least=0, most=20)
    _check("top_k", top_k, least=1, most=np.size(load_E))
    share_1E = _capped(lean(load_E, lean_sd, rng)[None, :], 1.0 / top_k)
    chance_E = np.clip(top_k * share_1E[0], 0.0, 1.0)
    count_GE = rng.binomial(tokens, chance_E, size=(ranks, chance_E.size)).astype(np.float64)
    variance_E = chance_E * (1.0 - chance_E) + 1e-12
    missing_G1 = tokens * top_k - count_GE.sum(axis=1, keepdims=True)
    count_GE = np.maximum(count_GE + missing_G1 * variance_E / variance_E.sum(), 0)
    count_GE *= tokens * top_k / np.maximum(count_GE.sum(axis=1, keepdims=True), 1e-12)
    upto_GE = np.rint(np.cumsum(count_GE, axis=1)).astype(np.int64)
    return np.minimum(np.diff(upto_GE, axis=1, prepend=0), tokens)


def _check_loads(name: str, load: Loads, *, dims: int) -> None:
    array = np.asarray(load)
    shape = ("[experts]", "[layers, experts]")[dims - 1]
    if array.ndim != dims or array.dtype.kind not in "iuf" or not array.size:
        raise BalanceInputError(f"{name}: expected numbers {shape}, got {array.dtype} of shape {list(array.shape)}")
    if not np.isfinite(array).all() or array.min() < 0 or not array.any(axis=-1).all():
        raise BalanceInputError(f"{name}: expected finite numbers of 0 or more, some above 0 in each layer")


def _normals(rng: np.random.Generator, shape: ModelShape, shared: float) -> NDArray[np.float64]:
    """Draw standard normals, [layers, experts], correlated by `shared` within a group of experts."""
    group_LQ = rng.standard_normal((shape.layers, shape.groups))
    own_LE = rng.standard_normal((shape.layers, shape.experts))
    group_of_E = np.arange(shape.experts) * shape.groups // shape.experts
    return math.sqrt(1.0 - shared) * own_LE + math.sqrt(shared) * group_LQ[:, group_of_E]


def _latent(correlation: float, sigma: NDArray[Any]) -> NDArray[np.float64]:
    """Return the correlation of two normals whose exponentials, of that s.d., correlate as wanted."""
    variance = np.maximum(np.square(sigma, dtype=np.float64), 1e-9)
    return np.log1p(correlation * np.expm1(variance)) / variance


def _as_tokens(popularity_LE: NDArray[Any], shape: ModelShape) -> NDArray[np.int64]:
    """Return whole loads in proportion to popularity, `shape.tokens * shape.top_k` in each layer."""
    shares_LE = _capped(popularity_LE, 1.0 / min(shape.top_k, shape.experts))
    return np.stack([_whole(share_E, shape.tokens * shape.top_k) for share_E in shares_LE])


def _capped(weight_LE: NDArray[Any], cap: float) -> NDArray[np.float64]:
    """Return shares in proportion to weights, none above `cap`; what is cut off goes to the others."""
    shares_LE = np.asarray(weight_LE, dtype=np.float64) / np.sum(weight_LE, axis=1, keepdims=True)
    for share_E in shares_LE:
        held_E = np.zeros(share_E.size, dtype=bool)
        while (over_E := (share_E > cap) & ~held_E).any():
            held_E |= over_E
            share_E[held_E] = cap
            free = 1.0 - cap * held_E.sum()
            share_E[~held_E] *= max(0.0, free) / max(share_E[~held_E].sum(), 1e-300)
    return shares_LE


def _whole(share_E: NDArray[Any], total: int) -> NDArray[np.int64]:
    """Return whole numbers in proportion to shares with the given sum, by largest remainder."""
    exact_E = share_E * total
    whole_E = np.floor(exact_E).astype(np.int64)
    missing = total - int(whole_E.sum())
    order_E = np.argsort(whole_E - exact_E, kind="stable")
    whole_E[order_E[: max(0, missing)]] += 1
    return whole_E
