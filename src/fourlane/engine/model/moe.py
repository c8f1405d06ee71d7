"""The mixture of experts of one layer: router, routed experts, shared expert, and the dense MLP of layers without.

Where tokens go between router and experts is the exchange's business (`engine.exchange`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from fourlane.engine.model.linear import Linear

__all__ = [
    "DenseMlp",
    "Experts",
    "Mlp",
    "MovableExperts",
    "NativeMlp",
    "NativeRouter",
    "NativeSharedExpert",
    "Router",
    "SharedExpert",
    "TorchExperts",
    "cut_rows",
]

_LEAST_HALF = 0.4
"""A slot whose end leaves a smaller half is computed in both, which reads its weights twice."""


@dataclass(frozen=True, slots=True)
class Router:
    """Choose each token's experts.

    `score` gives a logit an expert, [tokens, experts]. On CPU it is a native kernel, so that a
    token's experts do not depend on what else is in the batch.
    """

    score: Linear
    top_k: int
    renormalise: bool

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return experts [tokens, K] int64, likeliest first, and their weights [tokens, K] float32."""
        p_TE = torch.softmax(self.score(x_TD), dim=-1, dtype=torch.float32)
        weights_TK, topk_TK = torch.topk(p_TE, self.top_k, dim=-1)
        if self.renormalise:
            weights_TK /= weights_TK.sum(dim=-1, keepdim=True)
        return topk_TK, weights_TK


@dataclass(frozen=True, slots=True)
class NativeRouter(Router):
    """The same on CPU in one pass; of equally likely experts the lower comes first."""

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return experts [tokens, K] int64, likeliest first, and their weights [tokens, K] float32."""
        from fourlane.engine.model.cpu_kernels import choose_experts

        return choose_experts(self.score(x_TD), self.top_k, renormalise=self.renormalise)


def cut_rows(x_RD: Tensor, offset_S1: Sequence[int]) -> tuple[tuple[Tensor, list[int]], tuple[Tensor, list[int]]]:
    """Cut the rows of a rank's slots in two, at a slot's end if one is near the middle.

    Args:
        x_RD: rows in the order of slots.
        offset_S1: slot s owns rows offset[s] to offset[s+1].

    Returns:
        The rows and the offsets of either half.
    """
    rows = offset_S1[-1]
    middle = min(offset_S1, key=lambda offset: abs(2 * offset - rows))
    if min(middle, rows - middle) < _LEAST_HALF * rows:
        middle = rows // 2
    first = [min(offset, middle) for offset in offset_S1]
    second = [max(offset, middle) - middle for offset in offset_S1]
    return (x_RD[:middle], first), (x_RD[middle:], second)


class Experts(Protocol):
    """The routed experts a rank holds in one layer, by local slot."""

    def __call__(self, x_RD: Tensor, offset_S1: Sequence[int], /) -> Tensor:
        """Return outputs [rows, model dim]; slot s computes rows offset[s] to offset[s+1]."""
        ...


class MovableExperts(Experts, Protocol):
    """Experts whose weights can go to other ranks as bytes. One that computes is never written to."""

    def empty_like(self) -> Self:
        """Return as many slots of the same kind, none of them loaded."""
        ...

    def slot_bytes(self, slot: int) -> list[np.ndarray]:
        """Return a slot's weights in host memory, uint8; the same number and sizes for every slot."""
        ...

    def settle_slot(self, slot: int, parts: Sequence[np.ndarray], /) -> None:
        """Take over as a slot's weights what was written to what `slot_bytes` gave for it."""
        ...

    def copy_slot(self, slot: int, source: Self, source_slot: int, /) -> None:
        """Set a slot to another one of the same kind."""
        ...


@dataclass(frozen=True, slots=True)
class TorchExperts:
    """Experts in PyTorch: one grouped matmul on CUDA in bfloat16, else expert by expert.

    gate_up_SFD: [slots, 2 * inner, model dim], gate rows first.
    down_SDF: [slots, model dim, inner].
    """

    gate_up_SFD: Tensor
    down_SDF: Tensor

    def empty_like(self) -> TorchExperts:
        """Return as many slots of the same kind; what is in them is undefined until it is set."""
        return TorchExperts(torch.empty_like(self.gate_up_SFD), torch.empty_like(self.down_SDF))

    def slot_bytes(self, slot: int) -> list[np.ndarray]:
        """Return a slot's weights as bytes: on a host the memory itself, on a GPU a copy of it."""
        return [part.view(-1).view(torch.uint8).cpu().numpy() for part in self._parts(slot)]

    def settle_slot(self, slot: int, parts: Sequence[np.ndarray]) -> None:
        """Bring what was written to what `slot_bytes` gave to where it computes."""
        if self.gate_up_SFD.is_cuda:
            for part, written in zip(self._parts(slot), parts, strict=True):
                part.view(-1).view(torch.uint8).copy_(torch.from_numpy(written))

    def copy_slot(self, slot: int, source: TorchExperts, source_slot: int) -> None:
        """Set a slot to another one of the same kind."""
        for part, other in zip(self._parts(slot), source._parts(source_slot), strict=True):
            part.copy_(other)

    def _parts(self, slot: int) -> tuple[Tensor, Tensor]:
        return self.gate_up_SFD[slot], self.down_SDF[slot]

    def __call__(self, x_RD: Tensor, offset_S1: Sequence[int]) -> Tensor:
        """Return outputs in the order of the rows."""
        if x_RD.is_cuda and x_RD.dtype == torch.bfloat16 and x_RD.shape[0]:
            return self._grouped(x_RD, offset_S1)
        y_RD = torch.empty_like(x_RD)
        for slot, (first, end) in enumerate(itertools.pairwise(offset_S1)):
            if end > first:
                h_RF = F.linear(x_RD[first:end], self.gate_up_SFD[slot].to(x_RD.dtype))
                y_RD[first:end] = F.linear(_gated(h_RF), self.down_SDF[slot].to(x_RD.dtype))
        return y_RD

    def _grouped(self, x_RD: Tensor, offset_S1: Sequence[int]) -> Tensor:
        end_S = torch.tensor(offset_S1[1:], dtype=torch.int32).to(x_RD.device, non_blocking=True)
        h_RF = F.grouped_mm(x_RD, self.gate_up_SFD.transpose(1, 2), offs=end_S)
        return F.grouped_mm(_gated(h_RF), self.down_SDF.transpose(1, 2), offs=end_S)


class Mlp(Protocol):
    """The MLP of a layer without experts, or of a shared expert."""

    def __call__(self, x_TD: Tensor, /) -> Tensor:
        """Return [tokens, model dim]."""
        ...


@dataclass(frozen=True, slots=True)
class NativeMlp:
    """A dense MLP as one native expert that every row goes to."""

    expert: Experts

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return down(silu(gate(x)) * up(x))."""
        return self.expert(x_TD, [0, x_TD.shape[0]])


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """A gated MLP; gate and up are one projection, gate first."""

    gate_up: Linear
    down: Linear

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return down(silu(gate(x)) * up(x))."""
        return self.down(_gated(self.gate_up(x_TD)))


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """The expert that every token goes to, on the rank where the token is.

    `gate` gives the logit of its weight, [tokens, 1].
    """

    mlp: Mlp
    gate: Linear

    def add_to(self, x_TD: Tensor, h_TD: Tensor) -> None:
        """Add its outputs for `h_TD`, weighted by the sigmoid of the gate, to `x_TD` in place."""
        x_TD.addcmul_(torch.sigmoid(self.gate(h_TD)), self.mlp(h_TD))


@dataclass(frozen=True, slots=True)
class NativeSharedExpert(SharedExpert):
    """The same on CPU, in float32."""

    def add_to(self, x_TD: Tensor, h_TD: Tensor) -> None:
        """Add as `SharedExpert` does; a token's result does not depend on what else is in the batch."""
        from fourlane.engine.model.cpu_kernels import add_gated

        add_gated(x_TD, self.mlp(h_TD), self.gate(h_TD))


def _gated(h_RF: Tensor) -> Tensor:
    gate_RF, up_RF = h_RF.chunk(2, dim=-1)
    return F.silu(gate_RF) * up_RF
