"""Turn a checkpoint's tensors into what the layers compute with, tensor by tensor.

Each tensor goes straight from the file's map to where it stays (packed for the native kernels, or
on the device), so that memory peaks at about one copy. Weights are held in one type; norms, biases
and routers, which are small, in the type of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from fourlane.engine.model.attention import NativeHeads, TorchHeads
from fourlane.engine.model.checkpoint import Checkpoint
from fourlane.engine.model.linear import NativeLinear, NativeRmsNorm, RmsNorm, TorchLinear
from fourlane.engine.model.moe import (
    DenseMlp,
    NativeMlp,
    NativeRouter,
    NativeSharedExpert,
    Router,
    SharedExpert,
    TorchExperts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fourlane.engine.model.config import ModelConfig
    from fourlane.engine.model.linear import Linear
    from fourlane.engine.model.moe import Mlp, MovableExperts

__all__ = ["Kernels", "WeightReader", "held_dtype"]

Kernels = Literal["native", "torch"]


def held_dtype(wanted: Literal["auto", "float32", "bfloat16"], stored: torch.dtype) -> torch.dtype:
    """Return the type to hold weights in; "auto" keeps the checkpoint's (float16 becomes float32)."""
    if wanted == "auto":
        return torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


@dataclass(slots=True)
class WeightReader:
    """Reads a checkpoint into layers; `bytes_held` counts what they keep.

    weights: the type weights are held in; activations: the type rows are computed in.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    device: torch.device
    weights: torch.dtype
    activations: torch.dtype
    kernels: Kernels
    bytes_held: int = 0

    def recipe(self) -> Callable[[], WeightReader]:
        """Return what opens the same checkpoint anew, to read it into the same types; keeps no file open."""
        folder, config = self.checkpoint.folder, self.config
        device, weights, activations, kernels = self.device, self.weights, self.activations, self.kernels
        return lambda: WeightReader(Checkpoint(folder, config), config, device, weights, activations, kernels)

    def vector(self, *names: str) -> Tensor:
        """Return small tensors, one after the other, in the activations' type."""
        parts = [self.checkpoint.tensor(name).to(self.activations) for name in names]
        return self._keep(torch.cat(parts).to(self.device))

    def norm(self, name: str) -> RmsNorm:
        """Return a normalisation over the model dim."""
        kind = NativeRmsNorm if self.kernels == "native" else RmsNorm
        return kind(self.vector(name), self.config.rms_eps)

    def heads(self, query_norm: str, key_norm: str) -> TorchHeads:
        """Return what norms (where the model does) and rotates a layer's heads and writes K and V into pages."""
        config = self.config
        norm_N = torch.empty(0, dtype=self.activations, device=self.device)
        if config.head_norms:
            norm_N = self.vector(*[query_norm] * config.heads, *[key_norm] * config.kv_heads)
        kind = NativeHeads if self.kernels == "native" else TorchHeads
        return kind(config.heads, config.kv_heads, config.rms_eps, norm_N.view(-1, config.head_dim))

    def matrix(self, name: str) -> Tensor:
        """Return a weight as it is, in the held type."""
        return self._keep(self.checkpoint.tensor(name).to(self.device, self.weights, copy=True))

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """Return projections of one input as one, outputs one after the other, with their biases on request."""
        weights = [self.checkpoint.tensor(f"{name}.weight") for name in names]
        bias_N = self.vector(*(f"{name}.bias" for name in names)) if bias else None
        return self._linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias_N)

    def output_head(self, embedding_VD: Tensor) -> Linear:
        """Return the projection to the vocabulary; `embedding_VD` again where the model ties them."""
        if not self.config.tie_embeddings:
            return self.linear("lm_head")
        if self.kernels == "torch":
            return TorchLinear(embedding_VD)
        return self._linear(embedding_VD, None)

    def router(self, name: str) -> Router:
        """Return the router of a layer."""
        score = self._linear(self.checkpoint.tensor(name), None, dtype=self.activations)
        kind = NativeRouter if self.kernels == "native" else Router
        return kind(score, top_k=self.config.top_k, renormalise=self.config.norm_topk_prob)

    def shared_expert(self, prefix: str) -> SharedExpert | None:
        """Return the expert of a layer that every token goes to; None: the model has none."""
        if not self.config.shared_expert_dim:
            return None
        mlp = self.mlp(f"{prefix}shared_expert.", self.config.shared_expert_dim)
        gate = self._linear(self.checkpoint.tensor(f"{prefix}shared_expert_gate.weight"), None, dtype=self.activations)
        kind = NativeSharedExpert if self.kernels == "native" else SharedExpert
        return kind(mlp, gate)

    def mlp(self, prefix: str, inner: int) -> Mlp:
        """Return a dense MLP of an inner size."""
        if self.kernels == "native":
            return NativeMlp(self._native_experts([prefix], inner))
        return DenseMlp(self.linear(f"{prefix}gate_proj", f"{prefix}up_proj"), self.linear(f"{prefix}down_proj"))

    def experts(self, layer: int, experts: Sequence[int]) -> MovableExperts:
        """Return the experts of this rank's slots in a layer, -1 being an empty slot; no other expert is touched."""
        prefixes = [f"model.layers.{layer}.mlp.experts.{expert}." if expert >= 0 else None for expert in experts]
        if self.kernels == "native":
            return self._native_experts(prefixes, self.config.expert_dim)
        return self._torch_experts(prefixes)

    def _torch_experts(self, prefixes: Sequence[str | None]) -> TorchExperts:
        model, inner = self.config.hidden_size, self.config.expert_dim
        kind = {"dtype": self.weights, "device": self.device}
        gate_up_SFD = torch.zeros(len(prefixes), 2 * inner, model, **kind)
        down_SDF = torch.zeros(len(prefixes), model, inner, **kind)
        for slot, prefix in enumerate(prefixes):
            if prefix is not None:
                gate_up_SFD[slot, :inner] = self.checkpoint.tensor(f"{prefix}gate_proj.weight")
                gate_up_SFD[slot, inner:] = self.checkpoint.tensor(f"{prefix}up_proj.weight")
                down_SDF[slot] = self.checkpoint.tensor(f"{prefix}down_proj.weight")
        return TorchExperts(self._keep(gate_up_SFD), self._keep(down_SDF))

    def _native_experts(self, prefixes: Sequence[str | None], inner: int) -> MovableExperts:
        from fourlane.engine.model.cpu_kernels import PackedExperts

        packed = PackedExperts(len(prefixes), self.config.hidden_size, inner, dtype=self.weights)
        for slot, prefix in enumerate(prefixes):
            if prefix is not None:
                names = (f"{prefix}{part}_proj.weight" for part in ("gate", "up", "down"))
                packed.load(slot, *(self.checkpoint.tensor(name) for name in names))
        self.bytes_held += packed.nbytes
        return packed

    def _linear(self, weight_ND: Tensor, bias_N: Tensor | None, *, dtype: torch.dtype | None = None) -> Linear:
        held = dtype or self.weights
        if self.kernels == "torch":
            return TorchLinear(self._keep(weight_ND.to(self.device, held, copy=True)), bias_N)
        from fourlane.engine.model.cpu_kernels import PackedLinear

        packed = PackedLinear.from_tensor(weight_ND, held)
        self.bytes_held += packed.nbytes
        return packed if bias_N is None else NativeLinear(packed, bias_N)

    def _keep(self, tensor: Tensor) -> Tensor:
        self.bytes_held += tensor.numel() * tensor.element_size()
        return tensor
