"""Choose each sequence's next token from its logits.

The order of a row's steps, as Hugging Face and vLLM have it:

1. repetition penalty, over the tokens of prompt and output: logit / r if positive, else logit * r;
2. frequency and presence penalty, over the output alone: logit - frequency * count - presence;
3. logit bias, added;
4. end-of-sequence and stop tokens are ruled out while fewer than `min_tokens` tokens were given;
5. temperature 0: the likeliest token (the lowest id of equals). Otherwise logits / temperature, and
6. top-k: the k likeliest (those equal to the k-th too);
7. top-p: of what is left, renormalised, the fewest likeliest tokens whose probabilities sum to at
   least p (those equal to the last of them too);
8. min-p: of what is left, tokens at least min_p times as likely as the likeliest;
9. a draw from what is left.

**The draw** is stateless. For output position i of a request with seed s, Philox4x32-10 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (s mod 2^32, (s >> 32) mod 2^32)
and counter (i mod 2^32, i >> 32, 0, 0) gives words w0..w3, and u = (((w0 << 32) | w1) >> 12) / 2^52,
in [0, 1). With c_j the running sum, in float64, over token ids in ascending order of the weights
exp(logit - greatest logit) of what is left, the token is the first j with c_j > u * c_last. So the
same seed gives the same text whatever else is in the batch, on a retry, and on another rank.

Log-probabilities are those of the model itself: the log-softmax of the raw logits, before all of
these steps, as OpenAI and vLLM report them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fourlane.engine.messages import Sampling

__all__ = ["Sampled", "SamplingRow", "philox4x32", "sample", "uniforms"]

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_NUCLEUS_FIRST_TRY = 512
"""Likeliest tokens looked at for top-p before the whole vocabulary is sorted."""
_RULED_OUT = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One sequence that gets a token.

    index: output position of the token, from 0 at the first after the client's prompt.
    token_ids: prompt, then output so far; the first `prompt_tokens` are the prompt.
    eos_ids: tokens that end a text unless `sampling.ignore_eos`; `min_tokens` holds them back.
    """

    sampling: Sampling
    index: int
    token_ids: Sequence[int]
    prompt_tokens: int
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; `logprob` and `top` (likeliest first) if the row asked for them."""

    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


def sample(logits_NV: Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
    """Choose one token a row.

    Args:
        logits_NV: float32 [N, vocabulary]; left as it is.
        rows: N rows.
    """
    if not rows:
        return []
    adjusted_NV = _adjust(logits_NV, rows)
    token_N = adjusted_NV.argmax(dim=-1)
    drawn = [n for n, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        index_M = torch.tensor(drawn, device=logits_NV.device)
        drawn_MV = adjusted_NV if len(drawn) == len(rows) else adjusted_NV[index_M]
        token_N[index_M] = _draw(drawn_MV, [rows[n] for n in drawn])
    tokens: list[int] = token_N.tolist()
    reported = [n for n, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not reported:
        return [Sampled(token) for token in tokens]
    logprobs = _log_probabilities(logits_NV, tokens, reported, rows)
    return [Sampled(token, *logprobs.get(n, (None, None))) for n, token in enumerate(tokens)]


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Return the draw in [0, 1) of each (seed, output position), float64; see the module's docstring."""
    key_N = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    position_N = np.array(positions, dtype=np.uint64)
    zero_N = np.zeros_like(position_N)
    word_0, word_1, _, _ = philox4x32(
        (position_N & _LOW, position_N >> _HALF, zero_N, zero_N), (key_N & _LOW, key_N >> _HALF)
    )
    return ((word_0 << _HALF | word_1) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return Philox4x32-10 of counters and keys: 32-bit words held in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(_ROUNDS):
        round_0 = (k0 + np.uint64(step * _WEYL_0 & 0xFFFFFFFF)) & _LOW
        round_1 = (k1 + np.uint64(step * _WEYL_1 & 0xFFFFFFFF)) & _LOW
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c2 = (product_1 >> _HALF) ^ c1 ^ round_0, (product_0 >> _HALF) ^ c3 ^ round_1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
    return c0, c1, c2, c3


def _adjust(logits_NV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return logits after penalties, bias and minimum length; the very tensor if no row has any."""
    adjusted_NV = logits_NV
    for n, row in enumerate(rows):
        steps = _adjustments(row)
        if not steps:
            continue
        if adjusted_NV is logits_NV:
            adjusted_NV = logits_NV.clone()
        for step in steps:
            step(adjusted_NV[n], row)
    return adjusted_NV


def _adjustments(row: SamplingRow) -> list[Callable[[Tensor, SamplingRow], None]]:
    sampling = row.sampling
    steps: list[Callable[[Tensor, SamplingRow], None]] = []
    if sampling.repetition_penalty != 1.0:
        steps.append(_penalise_repetition)
    if (sampling.presence_penalty or sampling.frequency_penalty) and len(row.token_ids) > row.prompt_tokens:
        steps.append(_penalise_presence)
    if sampling.logit_bias:
        steps.append(_bias)
    if row.index < sampling.min_tokens:
        steps.append(_hold_back_end)
    return steps


def _penalise_repetition(logits_V: Tensor, row: SamplingRow) -> None:
    seen = torch.from_numpy(np.unique(np.asarray(row.token_ids, dtype=np.int64))).to(logits_V.device)
    logit_M = logits_V[seen]
    penalty = row.sampling.repetition_penalty
    logits_V[seen] = torch.where(logit_M > 0, logit_M / penalty, logit_M * penalty)


def _penalise_presence(logits_V: Tensor, row: SamplingRow) -> None:
    output = np.asarray(row.token_ids[row.prompt_tokens :], dtype=np.int64)
    token, count = np.unique(output, return_counts=True)
    penalty = row.sampling.frequency_penalty * count + row.sampling.presence_penalty
    logits_V[torch.from_numpy(token).to(logits_V.device)] -= torch.from_numpy(penalty).to(logits_V)


def _bias(logits_V: Tensor, row: SamplingRow) -> None:
    bias = row.sampling.logit_bias
    tokens = torch.tensor(list(bias), device=logits_V.device)
    logits_V[tokens] += torch.tensor(list(bias.values()), dtype=logits_V.dtype, device=logits_V.device)


def _hold_back_end(logits_V: Tensor, row: SamplingRow) -> None:
    ends = {*row.sampling.stop_token_ids, *(() if row.sampling.ignore_eos else row.eos_ids)}
    logits_V[torch.tensor(sorted(ends), dtype=torch.int64, device=logits_V.device)] = _RULED_OUT


def _draw(logits_MV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return one token a row, int64 [M], by temperature, filters and draw."""
    device = logits_MV.device
    temperature_M1 = torch.tensor([[row.sampling.temperature] for row in rows], dtype=torch.float32, device=device)
    scaled_MV = (logits_MV - logits_MV.amax(dim=-1, keepdim=True)) / temperature_M1
    weight_MV = scaled_MV.exp_()
    _keep_top_k(weight_MV, [row.sampling.top_k for row in rows])
    _keep_top_p(weight_MV, [row.sampling.top_p for row in rows])
    _keep_min_p(weight_MV, [row.sampling.min_p for row in rows])
    sum_MV = weight_MV.cumsum(dim=-1, dtype=torch.float64)
    u_M = uniforms([row.sampling.seed for row in rows], [row.index for row in rows])
    target_M1 = torch.from_numpy(u_M).to(device)[:, None] * sum_MV[:, -1:]
    return torch.searchsorted(sum_MV, target_M1, right=True)[:, 0].clamp_(max=logits_MV.shape[1] - 1)


def _keep_top_k(weight_MV: Tensor, top_k: list[int]) -> None:
    """Zero the weights below each row's k-th."""
    vocabulary = weight_MV.shape[1]
    chosen = [m for m, k in enumerate(top_k) if 0 < k < vocabulary]
    if not chosen:
        return
    index_J = torch.tensor(chosen, device=weight_MV.device)
    k_J1 = torch.tensor([[top_k[m]] for m in chosen], device=weight_MV.device)
    weight_JV = weight_MV[index_J]
    largest_JK = weight_JV.topk(max(top_k[m] for m in chosen), dim=-1).values
    weight_MV[index_J] = weight_JV.masked_fill_(weight_JV < largest_JK.gather(1, k_J1 - 1), 0.0)


def _keep_top_p(weight_MV: Tensor, top_p: list[float]) -> None:
    """Zero the weights below the last of each row's nucleus."""
    chosen = [m for m, p in enumerate(top_p) if p < 1.0]
    if not chosen:
        return
    index_J = torch.tensor(chosen, device=weight_MV.device)
    p_J1 = torch.tensor([[top_p[m]] for m in chosen], dtype=torch.float64, device=weight_MV.device)
    weight_JV = weight_MV[index_J]
    wanted_J1 = p_J1 * weight_JV.sum(dim=-1, keepdim=True, dtype=torch.float64)
    last_J1 = _last_of_nucleus(weight_JV, wanted_J1)
    weight_MV[index_J] = weight_JV.masked_fill_(weight_JV < last_J1, 0.0)


def _last_of_nucleus(weight_JV: Tensor, wanted_J1: Tensor) -> Tensor:
    """Return the smallest weight that is needed to sum to `wanted_J1`, largest first."""
    vocabulary = weight_JV.shape[1]
    for looked_at in (min(_NUCLEUS_FIRST_TRY, vocabulary), vocabulary):
        largest_JK = weight_JV.topk(looked_at, dim=-1).values
        sum_JK = largest_JK.cumsum(dim=-1, dtype=torch.float64)
        if looked_at == vocabulary or bool((sum_JK[:, -1:] >= wanted_J1).all()):
            break
    last_J1 = torch.searchsorted(sum_JK, wanted_J1).clamp_(max=looked_at - 1)
    return largest_JK.gather(1, last_J1)


def _keep_min_p(weight_MV: Tensor, min_p: list[float]) -> None:
    """Zero the weights below min_p times the largest, which is 1."""
    if any(min_p):
        least_M1 = torch.tensor([[p] for p in min_p], dtype=weight_MV.dtype, device=weight_MV.device)
        weight_MV.masked_fill_(weight_MV < least_M1, 0.0)


def _log_probabilities(
    logits_NV: Tensor, tokens: list[int], reported: list[int], rows: Sequence[SamplingRow]
) -> dict[int, tuple[float, list[tuple[int, float]]]]:
    """Return, for each row to be reported, the chosen token's log-probability and the likeliest tokens'."""
    logp_JV = torch.log_softmax(logits_NV[torch.tensor(reported, device=logits_NV.device)], dim=-1)
    chosen_J = logp_JV[range(len(reported)), [tokens[n] for n in reported]].tolist()
    most = max(rows[n].sampling.logprobs or 0 for n in reported)
    top = logp_JV.topk(min(most, logp_JV.shape[1]), dim=-1)
    tops = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return {
        n: (logp, pairs[: rows[n].sampling.logprobs]) for n, logp, pairs in zip(reported, chosen_J, tops, strict=True)
    }
