"""Muon for the matrices, AdamW for embedding, routers and norms, over flat buffers.

Source: Muon, K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with batched
Newton-Schulz iterations over stacks of equally shaped matrices (768 expert matrices at once).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tools.train_bundled_model.model import ModelConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Peak learning rates and the other constants of the two optimisers."""

    muon: float = 0.02
    adam: float = 3e-3
    router: float = 1e-3
    muon_momentum: float = 0.95
    muon_decay: float = 0.05
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_epsilon: float = 1e-10


class Optimizer:
    """Update float32 master weights from a flat gradient."""

    def __init__(self, config: ModelConfig, master: Tensor, rates: Rates) -> None:
        self.config = config
        self.rates = rates
        self.master = master
        self.momentum = torch.zeros_like(master)  # Muon's momentum; Adam's first moment
        self.second = torch.zeros_like(master)  # Adam's second moment
        self.steps = 0

    def state(self) -> dict[str, object]:
        """Return what `load` needs to go on."""
        return {"master": self.master, "momentum": self.momentum, "second": self.second, "steps": self.steps}

    def load(self, state: dict[str, object]) -> None:
        """Take over a state that `state` returned."""
        for name in ("master", "momentum", "second"):
            getattr(self, name).copy_(state[name])
        self.steps = state["steps"]

    @torch.no_grad()
    def step(self, gradient: Tensor, scale: float) -> None:
        """Apply one update with the learning rates times `scale`; `gradient` is float32 and is used up."""
        self.steps += 1
        beta = self.rates.muon_momentum
        masters, gradients, momenta, seconds = (
            self.config.views(t) for t in (self.master, gradient, self.momentum, self.second)
        )
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name, grad in gradients.items():
            if not name.endswith(("qkv", "attention_out", "gate_up", "down")):
                rate = scale * (self.rates.router if name.endswith("router") else self.rates.adam)
                self._adam(masters[name], grad, momenta[name], seconds[name], rate)
                continue
            momentum = momenta[name].lerp_(grad, 1 - beta)
            nesterov = grad.lerp_(momentum, beta)
            pieces = zip(self._matrices(name, nesterov), self._matrices(name, masters[name]), strict=True)
            for update, weight in pieces:
                stacks.setdefault(tuple(update.shape[-2:]), []).append((update, weight))
        for (rows, columns), pairs in stacks.items():
            updates = orthogonalize(torch.cat([u for u, _ in pairs]))
            rate = self.rates.muon * scale * max(1.0, rows / columns) ** 0.5
            for update, (_, weight) in zip(updates.split([len(u) for u, _ in pairs]), pairs, strict=True):
                weight.mul_(1 - self.rates.muon * scale * self.rates.muon_decay).add_(update, alpha=-rate)

    def _matrices(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Cut a parameter into the matrices that act as one map each: stacks of [count, rows, columns] views."""
        c = self.config
        if name.endswith("qkv"):
            return [t[None] for t in tensor.split([c.heads * c.head_dim] + 2 * [c.kv_heads * c.head_dim])]
        if name.endswith("gate_up"):
            return list(tensor.split(c.expert_dim, 1))
        return [tensor if tensor.ndim == 3 else tensor[None]]

    def _adam(self, weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, rate: float) -> None:
        beta1, beta2 = self.rates.adam_betas
        first.lerp_(grad, 1 - beta1)
        second.lerp_(grad.square(), 1 - beta2)
        first_hat = first / (1 - beta1**self.steps)
        second_hat = second / (1 - beta2**self.steps)
        weight.sub_(first_hat / second_hat.sqrt_().add_(self.rates.adam_epsilon), alpha=rate)


def orthogonalize(update: Tensor, *, iterations: int = 5) -> Tensor:
    """Push all singular values of a stack of matrices, shape [count, rows, columns], towards one."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = update.shape[-2] > update.shape[-1]
    x = update.to(torch.bfloat16)
    x = (x.transpose(1, 2) if is_tall else x).contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return (x.transpose(1, 2) if is_tall else x).float()
