"""A small Qwen3-MoE for training: the architecture of the bundled model, written for fast backward passes.

Shapes follow the project's legend (T tokens, D model dim, F expert hidden dim, L layers, E experts, K top-k), with B
windows of S tokens, T = B * S, and R rows: the pairs of a token and one of its experts, in expert order. All weights
live in one flat buffer, so that data-parallel training reduces a single tensor. `export.py` gives them their Hugging
Face names.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (the name every reader of torch code knows)
from torch import Tensor

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

IGNORED = -100
_LONGEST_PLAIN_ATTENTION = 512
_ROW_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The dimensions of the model."""

    layers: int = 8
    dim: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 32
    top_k: int = 4
    expert_dim: int = 64
    vocabulary: int = 4096
    context: int = 1024
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, in the order of the flat buffer."""
        c = self
        qkv = (c.heads + 2 * c.kv_heads) * c.head_dim
        per_layer = {
            "qkv": (qkv, c.dim),
            "attention_out": (c.dim, c.heads * c.head_dim),
            "gate_up": (c.experts, 2 * c.expert_dim, c.dim),
            "down": (c.experts, c.dim, c.expert_dim),
            "router": (c.experts, c.dim),
            "input_norm": (c.dim,),
            "post_attention_norm": (c.dim,),
            "q_norm": (c.head_dim,),
            "k_norm": (c.head_dim,),
        }
        shapes = {f"{i}.{name}": shape for i in range(c.layers) for name, shape in per_layer.items()}
        return {"embedding": (c.vocabulary, c.dim), "final_norm": (c.dim,), **shapes}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut a flat buffer into the parameters, without copying."""
        shapes = self.shapes()
        parts = flat.split([math.prod(s) for s in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def parameter_count(self) -> int:
        """Count the parameters."""
        return sum(math.prod(s) for s in self.shapes().values())


def initial_parameters(config: ModelConfig, *, seed: int) -> Tensor:
    """Draw the initial weights, float32 in one flat buffer: norms 1, the rest normal with deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.empty(config.parameter_count()).normal_(0.0, 0.02, generator=generator)
    for name, view in config.views(flat).items():
        if name.endswith("norm"):
            view.fill_(1.0)
        elif name.endswith(("attention_out", "down")):
            view.div_(math.sqrt(2 * config.layers))
    return flat


class _GatherRows(torch.autograd.Function):
    """Copy each token's row to its K places in expert order; the gradient gathers and adds them back."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient_RD: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return _add_places(gradient_RD, place_TK), None, None


class _AddRows(torch.autograd.Function):
    """Add the K rows of each token; the gradient copies the token's row to each of them."""

    @staticmethod
    def forward(ctx: FunctionCtx, y_RD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        return _add_places(y_RD, place_TK)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient_TD: Tensor) -> tuple[Tensor, None, None]:
        (token_R,) = ctx.saved_tensors
        return gradient_TD.index_select(0, token_R), None, None


def _add_places(rows_RD: Tensor, place_TK: Tensor) -> Tensor:
    first, *others = place_TK.unbind(1)
    total_TD = rows_RD.index_select(0, first)
    for place_T in others:
        total_TD += rows_RD.index_select(0, place_T)
    return total_TD


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `x @ weight.T`, in chunks of tokens, with the gradients computed on the way forward."""

    CHUNK = 512

    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        gradient_TD = torch.empty_like(x_TD)
        gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        valid_T = target_T != IGNORED
        count = valid_T.sum().clamp(min=1)
        loss = x_TD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(x_TD), _LinearCrossEntropy.CHUNK):
            part = slice(start, start + _LinearCrossEntropy.CHUNK)
            x, valid = x_TD[part], valid_T[part, None]
            target = target_T[part, None].clamp(min=0)
            p_TV = torch.softmax(x @ weight_VD.t(), -1, dtype=torch.float32)
            loss -= (p_TV.gather(1, target).clamp(min=1e-30).log() * valid).sum()
            p_TV.scatter_add_(1, target, p_TV.new_full((1, 1), -1.0).expand_as(target))
            d_TV = p_TV.mul_(valid / count).to(x.dtype)
            torch.mm(d_TV, weight_VD, out=gradient_TD[part])
            gradient_VD += d_TV.t() @ x
        ctx.save_for_backward(gradient_TD, gradient_VD.to(weight_VD.dtype))
        return loss / count

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient_TD, gradient_VD = ctx.saved_tensors
        return gradient_TD * gradient, gradient_VD * gradient, None


@dataclasses.dataclass
class RouterStatistics:
    """What the routers did in one forward pass."""

    chosen: list[Tensor]  # a layer each, [tokens, top_k]
    balance: Tensor
    z: Tensor


class Model:
    """The forward pass over parameters given by name; holds no weights of its own but the rotary tables."""

    def __init__(self, config: ModelConfig, parameters: dict[str, Tensor]) -> None:
        self.config = config
        self.parameters = parameters
        device = parameters["embedding"].device
        half = config.head_dim // 2
        frequency = config.rope_theta ** -(torch.arange(half, device=device, dtype=torch.float64) / half)
        angle_SR = torch.arange(config.context, device=device)[:, None] * frequency
        dtype = parameters["embedding"].dtype
        self.cos_SR = angle_SR.cos().to(dtype)
        self.sin_SR = angle_SR.sin().to(dtype)

    def hidden(self, token_BS: Tensor, statistics: RouterStatistics | None = None) -> Tensor:
        """Return the normed output of the last layer, shape [tokens, dim]."""
        c, p = self.config, self.parameters
        batch, length = token_BS.shape
        residual_TD = F.embedding(token_BS.reshape(-1), p["embedding"]).float()
        for i in range(c.layers):
            x_TD = self._norm(residual_TD, p[f"{i}.input_norm"])
            residual_TD = residual_TD + self._attention(i, x_TD, batch, length)
            x_TD = self._norm(residual_TD, p[f"{i}.post_attention_norm"])
            residual_TD = residual_TD + self._experts(i, x_TD, statistics)
        return self._norm(residual_TD, p["final_norm"])

    def loss(self, token_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, RouterStatistics]:
        """Return the mean cross-entropy of the targets and what the routers did."""
        zero = torch.zeros((), device=token_BS.device)
        statistics = RouterStatistics([], zero, zero)
        hidden_TD = self.hidden(token_BS, statistics)
        loss = _LinearCrossEntropy.apply(hidden_TD, self.parameters["embedding"], target_BS.reshape(-1))
        return loss, statistics

    def logits(self, token_BS: Tensor) -> Tensor:
        """Return the logits, shape [windows, length, vocabulary]."""
        return (self.hidden(token_BS) @ self.parameters["embedding"].t()).unflatten(0, token_BS.shape)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = F.rms_norm(x, (x.shape[-1],), eps=self.config.norm_epsilon)
        return normed.to(weight.dtype) * weight

    def _attention(self, layer: int, x_TD: Tensor, batch: int, length: int) -> Tensor:
        c, p = self.config, self.parameters
        rows = (x_TD @ p[f"{layer}.qkv"].t()).view(batch, length, c.heads + 2 * c.kv_heads, c.head_dim)
        qk, v = rows.split([c.heads + c.kv_heads, c.kv_heads], 2)
        weight = torch.cat([
            p[f"{layer}.q_norm"].expand(c.heads, -1), p[f"{layer}.k_norm"].expand(c.kv_heads, -1)
        ])  # fmt: skip
        qk = F.rms_norm(qk, (c.head_dim,), eps=c.norm_epsilon) * weight
        cos, sin = self.cos_SR[:length, None], self.sin_SR[:length, None]
        first, second = qk.chunk(2, -1)
        qk = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        q, k = qk.transpose(1, 2).split([c.heads, c.kv_heads], 1)
        repeats = c.heads // c.kv_heads
        k, v = (t.repeat_interleave(repeats, 1) for t in (k, v.transpose(1, 2)))
        if length <= _LONGEST_PLAIN_ATTENTION and x_TD.device.type == "cpu":
            out = _plain_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(batch * length, -1) @ p[f"{layer}.attention_out"].t()

    def _experts(self, layer: int, x_TD: Tensor, statistics: RouterStatistics | None) -> Tensor:
        c, p = self.config, self.parameters
        logits_TE = (x_TD @ p[f"{layer}.router"].t()).float()
        p_TE = torch.softmax(logits_TE, -1)
        weight_TK, expert_TK = p_TE.topk(c.top_k)
        weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        load_E, ends_E, place_TK, token_R = _places(expert_TK, c.experts)
        x_RD = _GatherRows.apply(x_TD, token_R, place_TK)
        gate_RF, up_RF = F.grouped_mm(x_RD, p[f"{layer}.gate_up"].transpose(1, 2), offs=ends_E).chunk(2, -1)
        weight_R = x_TD.new_zeros(len(token_R)).index_copy(0, place_TK.view(-1), weight_TK.view(-1).to(x_TD.dtype))
        h_RF = F.silu(gate_RF) * up_RF * weight_R[:, None]
        y_RD = F.grouped_mm(h_RF, p[f"{layer}.down"].transpose(1, 2), offs=ends_E)
        if statistics is not None:
            share_E = load_E / expert_TK.numel()
            statistics.chosen.append(expert_TK)
            statistics.balance = statistics.balance + c.experts * (share_E * p_TE.mean(0)).sum() / c.layers
            statistics.z = statistics.z + logits_TE.logsumexp(-1).square().mean() / c.layers
        return _AddRows.apply(y_RD, token_R, place_TK)


def _places(expert_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the (token, choice) pairs by expert, each expert's rows padded to a multiple of 64.

    oneDNN compiles a kernel for each new shape; without the padding almost every product would have a new one. A
    padding row copies token 0 and gets weight 0, so that neither its value nor its gradient reaches anything.

    Returns:
        Tokens per expert [experts], end of each expert's rows [experts], the row of each choice [tokens, top_k] and
        the token of each row [rows].
    """
    expert_R = expert_TK.view(-1)
    order_R = expert_R.argsort(stable=True)
    load_E = torch.bincount(expert_R, minlength=experts)
    padded_E = (load_E + _ROW_MULTIPLE - 1) // _ROW_MULTIPLE * _ROW_MULTIPLE
    ends_E = padded_E.cumsum(0)
    shift_E = (ends_E - padded_E) - (load_E.cumsum(0) - load_E)
    sorted_place_R = torch.arange(len(order_R), device=order_R.device) + shift_E[expert_R[order_R]]
    place_R = torch.empty_like(order_R)
    place_R[order_R] = sorted_place_R
    token_R = order_R.new_zeros(int(ends_E[-1]))
    token_R[sorted_place_R] = order_R // expert_TK.shape[1]
    return load_E, ends_E.to(torch.int32), place_R.view_as(expert_TK), token_R


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with an explicit score matrix: on a CPU and short windows faster than the fused kernel."""
    batch, heads, length, dim = q.shape
    mask_SS = q.new_full((length, length), -1e9).triu(1)
    q, k, v = (t.reshape(batch * heads, length, dim) for t in (q * dim**-0.5, k, v))
    p = torch.softmax(torch.baddbmm(mask_SS, q, k.transpose(1, 2)), -1)
    return torch.bmm(p, v).view(batch, heads, length, dim)
