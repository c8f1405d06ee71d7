"""Compute a model's layers on CPU so that a row's result does not depend on the batch.

Weights are packed once, when the model loads; float32 or bfloat16 storage, float32 arithmetic either
way, so bfloat16 checkpoints lose nothing and cost half the memory traffic. Each element is summed in
one fixed order: the same row gives the same bits alone and in any batch, on any rank. Between
machines with and without fused multiply-add the last bits may differ.

One thread computes a call, without the GIL. Not for GPUs and not for training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "PANEL_COLUMNS",
    "PackedExperts",
    "PackedLinear",
    "PagedAttention",
    "add_gated",
    "choose_experts",
    "place_heads",
    "rms_norm",
]

PANEL_COLUMNS = 32
_STORED = (torch.float32, torch.bfloat16)


class PackedLinear:
    """A bias-free linear layer, y = W x.

    Args:
        out_features: N.
        in_features: K.
        dtype: what the weight is stored in, torch.float32 or torch.bfloat16.
    """

    def __init__(self, out_features: int, in_features: int, *, dtype: torch.dtype) -> None:
        self.out_features = out_features
        self.in_features = in_features
        self.dtype = dtype
        self._weight = _empty_panels(1, _panels(out_features), in_features, dtype)

    @classmethod
    def from_tensor(cls, weight_ND: Tensor, dtype: torch.dtype | None = None) -> PackedLinear:
        """Pack a weight [out features, in features], stored as `dtype` (None: as it comes)."""
        packed = cls(*weight_ND.shape, dtype=dtype or weight_ND.dtype)
        packed.load(weight_ND)
        return packed

    @property
    def nbytes(self) -> int:
        """Return the bytes the packed weight takes."""
        return self._weight.nbytes

    def load(self, weight_ND: Tensor, *, first_row: int = 0) -> None:
        """Pack rows first_row, first_row + 1, ... of the weight, for instance q, k and v one after another.

        Args:
            weight_ND: [rows, in features].
            first_row: a multiple of 32; the rows up to the next multiple of 32 are set too.
        """
        if first_row % PANEL_COLUMNS or first_row + weight_ND.shape[0] > self.out_features:
            raise ValueError(
                f"first_row: expected a multiple of {PANEL_COLUMNS} from which {weight_ND.shape[0]} rows fit within "
                f"{self.out_features}, got {first_row}"
            )
        _pack(weight_ND, self._weight, self.dtype, slot=0, first=first_row // PANEL_COLUMNS, step=1)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return W x for each row: float32 [tokens, out features].

        Args:
            x_TD: float32 [tokens, in features], on CPU; copied only if it is not contiguous.
        """
        y_TN = _rows(x_TD.shape[0], self.out_features)
        _native.linear(_array(x_TD), self._weight, y_TN)
        return torch.from_numpy(y_TN)


class PackedExperts:
    """The experts a rank holds in one layer: y = down(silu(gate x) * up x).

    Args:
        slots: experts held (S).
        model_dim: D.
        hidden_dim: F.
        dtype: what weights are stored in, torch.float32 or torch.bfloat16.
    """

    def __init__(self, slots: int, model_dim: int, hidden_dim: int, *, dtype: torch.dtype) -> None:
        self.slots = slots
        self.model_dim = model_dim
        self.hidden_dim = hidden_dim
        self.dtype = dtype
        self._gate_up = _empty_panels(slots, 2 * _panels(hidden_dim), model_dim, dtype)
        self._down = _empty_panels(slots, _panels(model_dim), hidden_dim, dtype)

    @classmethod
    def from_tensors(
        cls, gate_SFD: Tensor, up_SFD: Tensor, down_SDF: Tensor, dtype: torch.dtype | None = None
    ) -> PackedExperts:
        """Pack all experts at once, stored as `dtype` (None: as they come)."""
        slots, hidden_dim, model_dim = gate_SFD.shape
        packed = cls(slots, model_dim, hidden_dim, dtype=dtype or gate_SFD.dtype)
        for slot in range(slots):
            packed.load(slot, gate_SFD[slot], up_SFD[slot], down_SDF[slot])
        return packed

    @property
    def nbytes(self) -> int:
        """Return the bytes the packed weights take."""
        return self._gate_up.nbytes + self._down.nbytes

    def load(self, slot: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Pack one expert into a slot; slots never loaded hold zeros."""
        shapes = (tuple(gate_FD.shape), tuple(up_FD.shape), tuple(down_DF.shape))
        hidden, model = (self.hidden_dim, self.model_dim), (self.model_dim, self.hidden_dim)
        if shapes != (hidden, hidden, model):
            raise ValueError(f"expert weights: expected {hidden}, {hidden} and {model}, got {shapes}")
        _pack(gate_FD, self._gate_up, self.dtype, slot=slot, first=0, step=2)
        _pack(up_FD, self._gate_up, self.dtype, slot=slot, first=1, step=2)
        _pack(down_DF, self._down, self.dtype, slot=slot, first=0, step=1)

    def empty_like(self) -> PackedExperts:
        """Return as many slots of the same kind; none is loaded."""
        return PackedExperts(self.slots, self.model_dim, self.hidden_dim, dtype=self.dtype)

    def slot_bytes(self, slot: int) -> list[np.ndarray]:
        """Return a slot's packed weights as they lie, uint8, to be read and written."""
        return [panels[slot].reshape(-1).view(np.uint8) for panels in (self._gate_up, self._down)]

    def settle_slot(self, slot: int, parts: Sequence[np.ndarray]) -> None:
        """Take over what was written to what `slot_bytes` gave: nothing to do, it is the slot's own memory."""

    def copy_slot(self, slot: int, source: PackedExperts, source_slot: int) -> None:
        """Set a slot to another one of the same kind; the GIL is released."""
        for mine, other in zip(self.slot_bytes(slot), source.slot_bytes(source_slot), strict=True):
            np.copyto(mine, other)

    def __call__(self, x_RD: Tensor, offset_S1: Sequence[int]) -> Tensor:
        """Return each row through its slot's expert: float32 [rows, model dim].

        Args:
            x_RD: float32 [rows, model dim], on CPU; copied only if it is not contiguous.
            offset_S1: slot s owns rows offset_S1[s] to offset_S1[s+1].
        """
        y_RD = _rows(x_RD.shape[0], self.model_dim)
        _native.expert_ffn(_array(x_RD), offset_S1, self._gate_up, self._down, y_RD)
        return torch.from_numpy(y_RD)


class PagedAttention:
    """Causal attention of sequences' last tokens over their pages, keys taken in order of position.

    A token's result has the same bits however its sequence was cut into chunks.

    Args:
        block_table_SB: int32 [sequences, most blocks], on CPU.
        query_start_S1: sequence s owns queries query_start[s] to query_start[s+1].
        context_S: tokens of each sequence in its pages, its queries' own included.
    """

    def __init__(self, block_table_SB: Tensor, query_start_S1: Sequence[int], context_S: Sequence[int]) -> None:
        self._block_table = block_table_SB.contiguous().numpy()
        self._query_start = np.array(query_start_S1, dtype=np.int64)
        self._context = np.array(context_S, dtype=np.int64)

    def __call__(self, q_THd: Tensor, kv_QBShd: Tensor) -> Tensor:
        """Return softmax(q k / sqrt(head dim)) v: float32 [tokens, heads * head dim].

        Args:
            q_THd: float32 [tokens, heads, head dim], on CPU; each token's heads contiguous.
            kv_QBShd: one layer's pages, float32 [2 (K, V), blocks, block_size, kv heads, head dim], contiguous.
        """
        tokens, heads, head_dim = q_THd.shape
        out_TD = _rows(tokens, heads * head_dim)
        _native.paged_attention(
            q_THd.numpy(),
            kv_QBShd.numpy(),
            self._block_table,
            self._query_start,
            self._context,
            head_dim**-0.5,
            out_TD,
        )
        return torch.from_numpy(out_TD)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight: float32 [tokens, model dim].

    Args:
        x_TD: float32, on CPU; copied only if it is not contiguous.
        weight_D: float32.
    """
    y_TD = _rows(*x_TD.shape)
    _native.rms_norm(_array(x_TD), weight_D.numpy(), eps, y_TD)
    return torch.from_numpy(y_TD)


def place_heads(
    qkv_TN: Tensor,
    norm_Hd: Tensor,
    eps: float,
    cos_sin: tuple[np.ndarray, np.ndarray],
    slot_T: Tensor,
    kv_QBShd: Tensor,
) -> None:
    """Norm and rotate the query and key heads of each row where they are; write keys and values into their pages.

    Args:
        qkv_TN: float32 [tokens, (heads + 2 * kv heads) * head dim], contiguous: query, key and value heads.
        norm_Hd: float32 [heads + kv heads, head dim], the norms' weights; [0, head dim]: heads are rotated only.
        eps: of the norms.
        cos_sin: float32 [tokens, head dim] each; sin is negative in the first half.
        slot_T: int64, block * block_size + offset of each token.
        kv_QBShd: one layer's pages, float32 [2 (K, V), blocks, block_size, kv heads, head dim], contiguous.
    """
    _native.place_heads(qkv_TN.numpy(), norm_Hd.numpy(), *cos_sin, eps, slot_T.numpy(), kv_QBShd.numpy())


def add_gated(x_TD: Tensor, y_TD: Tensor, gate_T1: Tensor) -> None:
    """Add y * sigmoid(gate) to x in place; the GIL is released.

    Args:
        x_TD: float32 [tokens, model dim], on CPU, contiguous.
        y_TD: float32 of the same shape.
        gate_T1: float32 [tokens, 1].
    """
    _native.add_gated(_array(y_TD), _array(gate_T1)[:, 0], x_TD.numpy())


def choose_experts(logits_TE: Tensor, top_k: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Return the experts of greatest logits [tokens, K] int64, greatest first, and their softmax float32.

    The softmax is over all experts, or with `renormalise` over the chosen ones. Of equal logits the
    lower expert comes first.
    """
    topk_TK = np.empty((logits_TE.shape[0], top_k), dtype=np.int64)
    weights_TK = _rows(*topk_TK.shape)
    _native.choose_experts(_array(logits_TE), renormalise, topk_TK, weights_TK)
    return torch.from_numpy(topk_TK), torch.from_numpy(weights_TK)


def _rows(rows: int, columns: int) -> np.ndarray:
    """Return float32 memory for results; making an array and a tensor of it is cheaper than the reverse."""
    return np.empty((rows, columns), dtype=np.float32)


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory, copied only if it is not contiguous; its grad is ignored."""
    return np.ascontiguousarray((tensor.detach() if tensor.requires_grad else tensor).numpy())


def _panels(columns: int) -> int:
    return -(-columns // PANEL_COLUMNS)


def _empty_panels(slots: int, panels: int, depth: int, dtype: torch.dtype) -> np.ndarray:
    """Return zeroed storage [slots, panels, depth, 32], bfloat16 seen as uint16."""
    if dtype not in _STORED:
        raise ValueError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    stored = torch.uint16 if dtype == torch.bfloat16 else dtype
    storage = torch.empty((slots, panels, depth, PANEL_COLUMNS), dtype=stored).numpy()
    _native.advise_huge_pages(storage)
    storage.fill(0)
    return storage


def _pack(weight: Tensor, storage: np.ndarray, dtype: torch.dtype, *, slot: int, first: int, step: int) -> None:
    plain = weight.detach().to(device="cpu", dtype=dtype).contiguous()
    seen = plain.view(torch.uint16) if dtype == torch.bfloat16 else plain
    _native.pack_panels(seen.numpy(), storage, slot, first, step)
