"""Dense projections and the norm.

On CPU projections are native (`cpu_kernels.PackedLinear`); in PyTorch they are the reference, and CUDA's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch.nn.functional as F  # noqa: N812 - the name everybody reads

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.engine.model.cpu_kernels import PackedLinear

__all__ = ["Linear", "NativeLinear", "NativeRmsNorm", "RmsNorm", "TorchLinear"]


class Linear(Protocol):
    """A projection: [rows, inputs] to [rows, outputs]."""

    def __call__(self, x_RD: Tensor, /) -> Tensor:
        """Multiply; rows may be 0."""
        ...


@dataclass(frozen=True, slots=True)
class TorchLinear:
    """A projection by `torch.nn.functional.linear`.

    weight_ND: [outputs, inputs], float32 or bfloat16; brought to the activations' type at each use.
    bias_N: [outputs], in the activations' type, or None.
    """

    weight_ND: Tensor
    bias_N: Tensor | None = None

    def __call__(self, x_RD: Tensor) -> Tensor:
        """Return x W^T + b."""
        return F.linear(x_RD, self.weight_ND.to(x_RD.dtype), self.bias_N)


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """A native projection with a bias, float32 [outputs]."""

    packed: PackedLinear
    bias_N: Tensor

    def __call__(self, x_RD: Tensor) -> Tensor:
        """Return W x + b for each row."""
        return self.packed(x_RD).add_(self.bias_N)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root-mean-square normalisation over the last dim. weight_D is in the activations' type."""

    weight_D: Tensor
    eps: float

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return x / rms(x) * weight."""
        return F.rms_norm(x_TD, self.weight_D.shape, self.weight_D, self.eps)


@dataclass(frozen=True, slots=True)
class NativeRmsNorm(RmsNorm):
    """The same on CPU in one pass, in float32."""

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return x / rms(x) * weight."""
        from fourlane.engine.model.cpu_kernels import rms_norm

        return rms_norm(x_TD, self.weight_D, self.eps)
