"""Attention over a paged KV cache: rotary embedding, per-head norms, the backends, one layer's block.

In PyTorch sequences that bring one token (decode) are computed together, padded to the longest, and
sequences that bring more (a prefill chunk) one by one. On CPU one native call does both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fourlane.engine.batch import StepBatch
    from fourlane.engine.model.linear import Linear

__all__ = [
    "Angles",
    "Attend",
    "Attention",
    "AttentionBackend",
    "NativeAttention",
    "NativeHeads",
    "Rope",
    "TorchAttention",
    "TorchHeads",
]


class Attend(Protocol):
    """One step's attention: which rows see which pages is settled."""

    def __call__(self, q_THd: Tensor, kv_QBShd: Tensor) -> Tensor:
        """Attend causally from the step's rows to one layer's pages.

        Args:
            q_THd: queries [tokens, heads, head dim], rotated.
            kv_QBShd: [2 (K, V), blocks, block_size, kv heads, head dim]; the step's own K and V
                are in it already.

        Returns:
            [tokens, heads * head dim].
        """
        ...


class AttentionBackend(Protocol):
    """A way to compute attention."""

    def prepare(self, batch: StepBatch, block_size: int) -> Attend:
        """Settle what all layers of a step share."""
        ...


@dataclass(frozen=True)
class Angles:
    """Rotations of a step's rows, [tokens, 1, head dim] each; `sin_T1d` is negative in the first half."""

    cos_T1d: Tensor
    sin_T1d: Tensor

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cos and sin [tokens, head dim] for the native kernels."""
        return self.cos_T1d[:, 0].numpy(), self.sin_T1d[:, 0].numpy()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding, halves rotated as Hugging Face does.

    inverse_frequency_d: [head dim / 2] float32.
    """

    inverse_frequency_d: Tensor

    @staticmethod
    def of(theta: float, head_dim: int, device: torch.device) -> Rope:
        """Return the embedding of a base and a head dim."""
        exponent_d = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return Rope((1.0 / theta**exponent_d).to(device))

    def at(self, position_T: Tensor, dtype: torch.dtype) -> Angles:
        """Return the angles of positions, for `rotate`."""
        angle_Td = position_T.to(torch.float32)[:, None] * self.inverse_frequency_d
        cos_Td, sin_Td = angle_Td.cos(), angle_Td.sin()
        cos_T1d = torch.cat((cos_Td, cos_Td), dim=-1).unsqueeze(1)
        sin_T1d = torch.cat((-sin_Td, sin_Td), dim=-1).unsqueeze(1)
        return Angles(cos_T1d.to(dtype), sin_T1d.to(dtype))


def rotate(x_THd: Tensor, angles: Angles) -> Tensor:
    """Rotate each head's halves."""
    return torch.addcmul(x_THd * angles.cos_T1d, x_THd.roll(x_THd.shape[-1] // 2, dims=-1), angles.sin_T1d)


@dataclass(frozen=True, slots=True)
class TorchHeads:
    """What happens to a layer's heads between projection and attention: per-head norms, rotation, the cache.

    `norm_Hd`: norm weights of every query head, then every key head, [heads + kv heads, head dim]; [0, head dim] for
    a model without such norms.
    """

    heads: int
    kv_heads: int
    eps: float
    norm_Hd: Tensor

    def __call__(self, qkv_TN: Tensor, angles: Angles, slot_T: Tensor, kv_QBShd: Tensor) -> Tensor:
        """Norm and rotate query and key heads where they are, and write K and V into their pages.

        Args:
            qkv_TN: query, key and value heads of each row, one after the other; overwritten.
            angles: of the rows' positions.
            slot_T: where K and V go, block * block_size + offset.
            kv_QBShd: one layer's pages.

        Returns:
            The same heads, [tokens, heads + 2 * kv heads, head dim].
        """
        qkv_THd = self._heads_of(qkv_TN)
        qk_THd, v_THd = qkv_THd.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        normed_THd = qk_THd
        if self.norm_Hd.shape[0]:
            normed_THd = F.rms_norm(qk_THd, self.norm_Hd.shape[1:], None, self.eps) * self.norm_Hd
        qk_THd.copy_(rotate(normed_THd, angles))
        k_cache, v_cache = kv_QBShd.flatten(1, 2).unbind(0)
        k_cache.index_copy_(0, slot_T, qk_THd[:, self.heads :])
        v_cache.index_copy_(0, slot_T, v_THd)
        return qkv_THd

    def _heads_of(self, qkv_TN: Tensor) -> Tensor:
        return qkv_TN.view(-1, self.heads + 2 * self.kv_heads, self.norm_Hd.shape[1])


@dataclass(frozen=True, slots=True)
class NativeHeads(TorchHeads):
    """The same on CPU in one pass, in float32."""

    def __call__(self, qkv_TN: Tensor, angles: Angles, slot_T: Tensor, kv_QBShd: Tensor) -> Tensor:
        """Norm, rotate and write as `TorchHeads` does."""
        from fourlane.engine.model.cpu_kernels import place_heads

        place_heads(qkv_TN, self.norm_Hd, self.eps, angles.arrays, slot_T, kv_QBShd)
        return self._heads_of(qkv_TN)


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention in two parts, between which another stream may go on.

    `qkv` gives query, key and value heads in one matmul.
    """

    layer: int
    qkv: Linear
    heads: TorchHeads
    out: Linear

    def project(self, x_TD: Tensor, angles: Angles, batch: StepBatch, kv_QBShd: Tensor) -> Tensor:
        """Do part 0: write K and V of the rows into their pages, tell `batch.on_kv`, and return the queries.

        Args:
            x_TD: rows, normed.
            angles: of the rows' positions.
            batch: says where K and V go.
            kv_QBShd: the layer's pages.

        Returns:
            [tokens, heads, head dim], for `attend`.
        """
        qkv_THd = self.heads(self.qkv(x_TD), angles, batch.slot_T, kv_QBShd)
        queries, keys = self.heads.heads, self.heads.heads + self.heads.kv_heads
        if batch.on_kv is not None and x_TD.shape[0]:
            batch.on_kv(self.layer, qkv_THd[:, queries:keys].contiguous(), qkv_THd[:, keys:].contiguous())
        return qkv_THd[:, :queries]

    def attend(self, q_THd: Tensor, kv_QBShd: Tensor, attend: Attend) -> Tensor:
        """Do part 1: attend to the pages and project, [tokens, model dim]."""
        return self.out(attend(q_THd, kv_QBShd))


class NativeAttention:
    """Paged attention on CPU in one native call a layer (`cpu_kernels.PagedAttention`)."""

    def prepare(self, batch: StepBatch, block_size: int) -> Attend:
        """Hand the step's layout over as it is."""
        del block_size  # the kernel reads it from the cache's shape
        from fourlane.engine.model.cpu_kernels import PagedAttention

        return PagedAttention(batch.block_table_SB, batch.query_start_S1, batch.context_S)


class TorchAttention:
    """Paged attention by gathering pages and `scaled_dot_product_attention`."""

    def prepare(self, batch: StepBatch, block_size: int) -> Attend:
        """Split the step into decode rows and prefill chunks."""
        starts = batch.query_start_S1
        lengths = [end - start for start, end in itertools.pairwise(starts)]
        decode = [s for s, length in enumerate(lengths) if length == 1]
        chunks = [_Chunk.of(batch, s, block_size) for s, length in enumerate(lengths) if length > 1]
        return _TorchAttend(_Decode.of(batch, decode, block_size) if decode else None, chunks)


@dataclass(frozen=True, slots=True)
class _TorchAttend:
    decode: _Decode | None
    chunks: list[_Chunk]

    def __call__(self, q_THd: Tensor, kv_QBShd: Tensor) -> Tensor:
        out_THd = q_THd.new_empty(q_THd.shape)
        if self.decode is not None:
            out_THd[self.decode.row_S] = self.decode(q_THd, kv_QBShd)
        for chunk in self.chunks:
            out_THd[chunk.rows] = chunk(q_THd, kv_QBShd)
        return out_THd.flatten(1)


@dataclass(frozen=True, slots=True)
class _Decode:
    """Sequences of one row each, padded to the longest; the query heads of a KV head count as rows."""

    row_S: Tensor
    blocks_SB: Tensor
    seen_S11C: Tensor

    @staticmethod
    def of(batch: StepBatch, sequences: list[int], block_size: int) -> _Decode:
        device = batch.block_table_SB.device
        context_S = torch.tensor([batch.context_S[s] for s in sequences], device=device)
        blocks = -(-max(batch.context_S[s] for s in sequences) // block_size)
        every = len(sequences) == len(batch.context_S)
        table_SB = batch.block_table_SB if every else batch.block_table_SB[torch.tensor(sequences, device=device)]
        return _Decode(
            torch.tensor([batch.query_start_S1[s] for s in sequences], device=device),
            table_SB[:, :blocks].to(torch.int64),
            (torch.arange(blocks * block_size, device=device) < context_S[:, None])[:, None, None, :],
        )

    def __call__(self, q_THd: Tensor, kv_QBShd: Tensor) -> Tensor:
        kv_heads, head_dim = kv_QBShd.shape[-2:]
        q_ShGd = q_THd[self.row_S].view(self.row_S.shape[0], kv_heads, -1, head_dim)
        k_ShCd, v_ShCd = (_gather(pages, self.blocks_SB).transpose(1, 2) for pages in kv_QBShd.unbind(0))
        out_ShGd = F.scaled_dot_product_attention(q_ShGd, k_ShCd, v_ShCd, attn_mask=self.seen_S11C)
        return out_ShGd.reshape(self.row_S.shape[0], -1, head_dim)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive rows of one sequence, seeing everything up to themselves."""

    rows: slice
    blocks_1B: Tensor
    context: int
    seen_TC: Tensor | None

    @staticmethod
    def of(batch: StepBatch, sequence: int, block_size: int) -> _Chunk:
        first, end = batch.query_start_S1[sequence : sequence + 2]
        context = batch.context_S[sequence]
        device = batch.block_table_SB.device
        seen_TC = None
        if context > end - first:
            seen_TC = torch.ones(end - first, context, dtype=torch.bool, device=device)
            seen_TC = seen_TC.tril_(context - (end - first))
        blocks_1B = batch.block_table_SB[sequence : sequence + 1, : -(-context // block_size)].to(torch.int64)
        return _Chunk(slice(first, end), blocks_1B, context, seen_TC)

    def __call__(self, q_THd: Tensor, kv_QBShd: Tensor) -> Tensor:
        q_HTd = q_THd[self.rows].transpose(0, 1)
        k_hCd, v_hCd = (
            _gather(pages, self.blocks_1B)[0, : self.context].transpose(0, 1) for pages in kv_QBShd.unbind(0)
        )
        out_1HTd = F.scaled_dot_product_attention(
            q_HTd[None],
            k_hCd[None],
            v_hCd[None],
            attn_mask=self.seen_TC,
            is_causal=self.seen_TC is None,
            enable_gqa=True,
        )
        return out_1HTd[0].transpose(0, 1)


def _gather(pages_BShd: Tensor, blocks_SB: Tensor) -> Tensor:
    """Return each sequence's pages end to end, [sequences, tokens, kv heads, head dim]."""
    pages = pages_BShd.index_select(0, blocks_SB.flatten())  # many times faster than indexing on CPU
    return pages.view(blocks_SB.shape[0], -1, *pages_BShd.shape[2:])
