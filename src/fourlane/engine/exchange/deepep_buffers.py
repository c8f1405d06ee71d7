"""The kernels of DeepEP behind one face: V1 (`Buffer`: normal and low latency) and V2 (`ElasticBuffer`).

For DeepEP an expert is a physical slot, so that replicas, which the counts of the batch have chosen
between already, are experts like any other. What each kernel sums itself, and in which order, is said
where it is called. Not for steps, counts and agreement: that is `deepep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.rows import join_ranges
from fourlane.engine.exchange.scaled_rows import from_scaled, to_scaled
from fourlane.engine.exchange.sparse_rows import fold_rows, pick_rows, sort_held
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from fourlane.engine.exchange.payload import Payload

__all__ = ["LOW_LATENCY_DIMS", "Batch", "Buffers", "ElasticBuffers", "Form", "LegacyBuffers", "Moved"]

LOW_LATENCY_DIMS = frozenset({2048, 2560, 4096, 5120, 6144, 7168, 8192})
"""Model dims that all versions of the low-latency kernels are compiled for. Source: csrc/kernels/launch.cuh."""
_LOW_LATENCY_TOP_K = 9  # kNumMaxTopK of csrc/kernels/internode_ll.cu
_ELASTIC_DIM = 256  # the dim is a multiple of it; a static assertion of impls/combine.cuh
_SCALED_DIM = 128  # elements a scale, and no dim but multiples of it
_FEWEST_TOKENS = 128  # of an elastic buffer


@dataclass(frozen=True, slots=True)
class Form:
    """What is the same in all dispatches of a group: the shape of a row, and how it travels.

    group: over which the library meets.
    slots: physical slots of all ranks.
    timeout_s: how long the library may wait for a peer, where it takes that from us.
    """

    group: ProcessGroup
    ranks: int
    slots: int
    dim: int
    top_k: int
    payload: Payload
    timeout_s: float

    @property
    def scaled(self) -> bool:
        """Tell whether rows travel as float8 with scales."""
        return self.payload is not AS_IS


@dataclass(frozen=True, slots=True)
class Batch:
    """One layer's tokens with all that the counts have told.

    slot_TK: the physical slot of each (token, k) pair, int64.
    count_GS: int64 [ranks, slots a rank], the rows each rank sends to each slot of this rank.
    most_tokens: of any rank of the group.
    rank: this one.
    """

    x_TD: Tensor
    slot_TK: Tensor
    weights_TK: Tensor
    count_GS: np.ndarray
    most_tokens: int
    rank: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of a dispatch.

    x_RD: rows by local slot.
    sent, returned: rows that leave this rank for others, now and when they are combined.
    handle: for `combine`.
    """

    x_RD: Tensor
    sent: int
    returned: int
    handle: Any


class Buffers(Protocol):
    """DeepEP's buffers of one rank; all ranks call the same methods in the same order."""

    def dispatch(self, batch: Batch) -> Moved:
        """Bring rows to their slots."""
        ...

    def combine(self, y_RD: Tensor, moved: Moved) -> Tensor:
        """Bring outputs back and sum them, weighted; return [tokens, dim]."""
        ...


class LegacyBuffers:
    """V1: low-latency kernels while every rank has few tokens, normal kernels otherwise.

    All ranks know from the counts how many tokens each has, so they choose alike. Both use one buffer,
    which is cleaned before the low-latency kernels follow the normal ones, as DeepEP asks.
    """

    def __init__(self, library: ModuleType, form: Form, low_latency_tokens: int) -> None:
        """Open the buffer, together with all ranks of the group.

        Args:
            library: deep_ep.
            form: of all dispatches.
            low_latency_tokens: the most tokens of any rank for which the low-latency kernels are taken; 0: never.

        Raises:
            SpecError: DeepEP has no kernels for this many ranks, or for rows like these.
        """
        _check_scaled(form)
        fits = form.dim in LOW_LATENCY_DIMS and form.top_k <= _LOW_LATENCY_TOP_K
        self._form = form
        self._most = low_latency_tokens if fits else 0
        self._slot_type: torch.dtype = getattr(library, "topk_idx_t", torch.int64)
        self._dirty = False
        try:
            configs = [
                read(form.ranks) for read in (library.Buffer.get_dispatch_config, library.Buffer.get_combine_config)
            ]
        except AssertionError as error:
            raise SpecError(
                f"exchange.implementation: DeepEP V1 has no kernels for {form.ranks} ranks ({error})"
            ) from error
        row = 2 * form.dim
        nvlink = max(config.get_nvl_buffer_size_hint(row, form.ranks) for config in configs)
        rdma = max(config.get_rdma_buffer_size_hint(row, form.ranks) for config in configs)
        pairs = library.Buffer.num_sms // 2
        if self._most:
            few = library.Buffer.get_low_latency_rdma_size_hint(self._most, form.dim, form.ranks, form.slots)
            rdma, pairs = max(rdma, few), max(pairs, form.slots // form.ranks)
        self._buffer: Any = library.Buffer(
            form.group,
            nvlink,
            rdma,
            low_latency_mode=self._most > 0,
            num_qps_per_rank=pairs,
            explicitly_destroy=True,
        )

    def dispatch(self, batch: Batch) -> Moved:
        """Bring rows to their slots by the kernels that suit the fullest rank."""
        if self._most and batch.most_tokens <= self._most:
            return self._dispatch_few(batch)
        return self._dispatch_many(batch)

    def combine(self, y_RD: Tensor, moved: Moved) -> Tensor:
        """Bring outputs back by the same kernels."""
        if isinstance(moved.handle, _Few):
            return self._combine_few(y_RD, moved.handle)
        return self._combine_many(y_RD, moved.handle)

    def _dispatch_many(self, batch: Batch) -> Moved:
        """Send each token once to every rank that has one of its slots; it is multiplied there."""
        self._dirty = True
        slot_TK = batch.slot_TK.to(self._slot_type)
        per_rank, per_rdma_rank, per_slot, in_rank_TG, _ = self._buffer.get_dispatch_layout(slot_TK, self._form.slots)
        x, held_NK, weights_NK, count_S, handle, _ = self._buffer.dispatch(
            _outgoing(batch.x_TD, self._form),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank,
            is_token_in_rank=in_rank_TG,
            num_tokens_per_expert=per_slot,
            topk_idx=slot_TK,
            topk_weights=batch.weights_TK.float(),
        )
        expected = batch.count_GS.sum(axis=0).tolist()
        assert count_S == expected, f"DeepEP brought {count_S} rows to the slots, the counts say {expected}"
        held = sort_held(held_NK, len(expected), sum(expected))
        x_ND = _incoming(x, self._form)
        sent_G = per_rank.tolist()
        return Moved(
            x_RD=pick_rows(x_ND, held.rows_R),
            sent=sum(sent_G) - sent_G[batch.rank],
            returned=x_ND.shape[0] - sent_G[batch.rank],
            handle=_Many(handle, held.place_NK, weights_NK),
        )

    def _combine_many(self, y_RD: Tensor, many: _Many) -> Tensor:
        """Sum a token's outputs here, weighted, in the order of K; DeepEP adds the sums of the ranks."""
        self._dirty = True
        sum_ND = fold_rows(y_RD, many.place_NK, many.weights_NK)
        x_TD, _, _ = self._buffer.combine(sum_ND, many.handle)
        return x_TD

    def _dispatch_few(self, batch: Batch) -> Moved:
        """Send a row for every (token, slot) pair; rows of a slot stand in any order of ranks."""
        self._clean()
        form, slot_TK = self._form, batch.slot_TK.to(self._slot_type)
        x, _, handle, _, _ = self._buffer.low_latency_dispatch(
            batch.x_TD, slot_TK, self._most, form.slots, use_fp8=form.scaled
        )
        sent_G = torch.bincount(batch.slot_TK.reshape(-1) // batch.count_GS.shape[1], minlength=form.ranks).tolist()
        return self._pick_few(x, batch, _Few(handle, slot_TK, batch.weights_TK.float(), _few_rows(batch, x)), sent_G)

    def _pick_few(self, x: Any, batch: Batch, few: _Few, sent_G: list[int]) -> Moved:
        parts = x if isinstance(x, tuple) else (x,)
        picked = tuple(part.flatten(0, 1).index_select(0, few.rows_R) for part in parts)
        return Moved(
            x_RD=_incoming(picked if isinstance(x, tuple) else picked[0], self._form),
            sent=sum(sent_G) - sent_G[batch.rank],
            returned=int(batch.count_GS.sum() - batch.count_GS[batch.rank].sum()),
            handle=few,
        )

    def _combine_few(self, y_RD: Tensor, few: _Few) -> Tensor:
        """Return rows to where they stood; DeepEP sums a token's, weighted, in the order of K in float32."""
        self._clean()
        form = self._form
        most = self._most * form.ranks
        y_SMD = y_RD.new_zeros((form.slots // form.ranks, most, form.dim))
        y_SMD.flatten(0, 1).index_copy_(0, few.rows_R, y_RD)
        x_TD, _, _ = self._buffer.low_latency_combine(y_SMD, few.slot_TK, few.weights_TK, few.handle)
        return x_TD

    def _clean(self) -> None:
        if self._dirty:
            self._buffer.clean_low_latency_buffer(self._most, self._form.dim, self._form.slots)
            self._dirty = False


class ElasticBuffers:
    """V2: rows by slot, every (token, slot) row added at its token's rank in the order of K.

    `deterministic` has rows of a slot stand by rank, then token; without `allow_multiple_reduction` no
    rank adds rows of others, so which rank computed what leaves no trace. The buffer holds a number of
    tokens a rank; when any rank has more, all ranks know it from the counts and open a larger one.
    """

    def __init__(self, library: ModuleType, form: Form) -> None:
        """Take the class of V2 that the library has; the buffer is opened by the first dispatch.

        Raises:
            SpecError: DeepEP has no kernels for rows like these.
        """
        _check_scaled(form)
        if form.dim % _ELASTIC_DIM:
            raise SpecError(
                f"exchange.implementation: DeepEP V2 moves rows of a multiple of {_ELASTIC_DIM} elements, "
                f'the model has {form.dim}; take "torch_all_to_all"'
            )
        self._form = form
        self._open: Any = getattr(library, "ElasticBuffer", None) or library.EPBuffer
        self._slot_type: torch.dtype = getattr(library, "topk_idx_t", torch.int64)
        self._tokens = 0
        self._buffer: Any = None
        self._left: dict[int, list[Any]] = {}
        """Buffers that rows may have to be combined in, by identity, with how many dispatches those are."""

    def dispatch(self, batch: Batch) -> Moved:
        """Bring rows to their slots, one for each (token, slot) pair."""
        form = self._form
        buffer = self._buffer_for(batch.most_tokens)
        slot_TK = batch.slot_TK.to(self._slot_type)
        x, _, weight_R, handle, _ = buffer.dispatch(
            _outgoing(batch.x_TD, form),
            topk_idx=slot_TK,
            topk_weights=batch.weights_TK.float(),
            num_experts=form.slots,
            num_max_tokens_per_rank=self._tokens,
            do_expand=True,
        )
        x_RD = _incoming(x, form)
        expected = int(batch.count_GS.sum())
        assert x_RD.shape[0] == expected, f"DeepEP brought {x_RD.shape[0]} rows, the counts say {expected}"
        self._left[id(buffer)][1] += 1
        rank_TK = batch.slot_TK // batch.count_GS.shape[1]
        in_rank_TG = rank_TK.new_zeros((rank_TK.shape[0], form.ranks)).scatter_(1, rank_TK, 1)
        sent_G = in_rank_TG.sum(dim=0).tolist()
        return Moved(
            x_RD=x_RD,
            sent=sum(sent_G) - sent_G[batch.rank],
            returned=expected - int(batch.count_GS[batch.rank].sum()),
            handle=(buffer, handle, weight_R),
        )

    def combine(self, y_RD: Tensor, moved: Moved) -> Tensor:
        """Weight each row, rounded to bfloat16; DeepEP adds a token's in the order of K in float32."""
        buffer, handle, weight_R = moved.handle
        weighted_RD = (y_RD.float() * weight_R.unsqueeze(1)).to(y_RD.dtype)
        x_TD, _, _ = buffer.combine(weighted_RD, handle)
        self._left[id(buffer)][1] -= 1
        self._destroy_old()
        return x_TD

    def _buffer_for(self, most_tokens: int) -> Any:
        if most_tokens > self._tokens or self._buffer is None:
            self._tokens = max(_FEWEST_TOKENS, 1 << max(0, most_tokens - 1).bit_length())
            form = self._form
            self._buffer = self._open(
                form.group,
                num_max_tokens_per_rank=self._tokens,
                hidden=form.dim,
                num_topk=form.top_k,
                use_fp8_dispatch=form.scaled,
                deterministic=True,
                allow_multiple_reduction=False,
                num_cpu_timeout_secs=max(1, round(form.timeout_s)),
                num_gpu_timeout_secs=max(1, round(form.timeout_s)),
                explicitly_destroy=True,
            )
            self._left[id(self._buffer)] = [self._buffer, 0]
            self._destroy_old()
        return self._buffer

    def _destroy_old(self) -> None:
        for key, (buffer, left) in list(self._left.items()):
            if not left and buffer is not self._buffer:
                del self._left[key]
                buffer.destroy()


@dataclass(frozen=True, slots=True)
class _Many:
    """A dispatch by normal kernels: DeepEP's handle, and where the outputs of each received token stand."""

    handle: Any
    place_NK: Tensor
    weights_NK: Tensor


@dataclass(frozen=True, slots=True)
class _Few:
    """A dispatch by low-latency kernels: DeepEP's handle, and which of its rows hold something."""

    handle: Any
    slot_TK: Tensor
    weights_TK: Tensor
    rows_R: Tensor


def _few_rows(batch: Batch, x: Any) -> Tensor:
    first = x[0] if isinstance(x, tuple) else x
    count_S = batch.count_GS.sum(axis=0)
    firsts = first.shape[1] * torch.arange(len(count_S)).numpy()
    return join_ranges(firsts, count_S, first.device)


def _outgoing(x_TD: Tensor, form: Form) -> Any:
    return to_scaled(x_TD) if form.scaled else x_TD.contiguous()


def _incoming(x: Any, form: Form) -> Tensor:
    if not form.scaled:
        return x
    elements_RD, scale_RX = x
    return from_scaled(elements_RD, scale_RX, torch.bfloat16)


def _check_scaled(form: Form) -> None:
    if form.scaled and form.dim % _SCALED_DIM:
        raise SpecError(
            f'exchange.dispatch: DeepEP takes "float8" for rows of a multiple of {_SCALED_DIM} elements, '
            f'the model has {form.dim}; allowed here: "activations"'
        )
