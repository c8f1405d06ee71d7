"""The stages of a forward pass: what is computed between two points where it hands over.

Each stage ends with a dispatch or a combine, whose results the next one needs, or with a turn, where it needs nothing
but another micro-batch may go on. A layer with experts has three stages, in the order of DeepSeek's five-stage decode
(attention 0 | attention 1, shared expert, dispatch | experts, combine), one without has two.

Pure: the engine's model yields in this order with tensors (`engine.model.qwen3_moe`), a simulation walks it with times.
In which order two micro-batches take turns at these points is `policy.overlap_order`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Part", "Stage", "model_stages"]

Part = Literal[
    "embedding",
    "attention 0",
    "attention 1",
    "router",
    "shared expert",
    "experts",
    "experts 0",
    "experts 1",
    "mlp",
    "output",
]
"""Attention 0 is the norm, projections and rotation, and ends with K and V in their pages; attention 1 attends and
projects back. Experts 0 and 1 are the halves of their rows. Router and mlp include their norm; output is the last
norm and the logits."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is computed up to the next point of handing over.

    Args:
        layer: of the model; the number of layers for the output.
        parts: what is computed, in order. A shared expert is computed when the dispatch has been posted.
        then: what the stage ends with; "midway" is a turn amid experts, "end" the end of the pass.
    """

    layer: int
    parts: tuple[Part, ...]
    then: Literal["turn", "dispatch", "midway", "combine", "end"]

    @property
    def computes(self) -> str:
        """Return its parts in words."""
        return ", ".join(self.parts)


def model_stages(moe: Sequence[bool], *, shared: bool, cut_experts: bool = False) -> tuple[Stage, ...]:
    """Return a forward pass's stages, one for each time it hands over, and the last.

    Args:
        moe: for each layer whether it has experts.
        shared: layers with experts have a shared expert, too, that every token goes to.
        cut_experts: experts are computed in two halves, with a turn between them.
    """
    return tuple(_stages(moe, shared=shared, cut_experts=cut_experts))


def _stages(moe: Sequence[bool], *, shared: bool, cut_experts: bool) -> Iterator[Stage]:
    for layer, has_experts in enumerate(moe):
        yield Stage(layer, ("embedding", "attention 0") if layer == 0 else ("attention 0",), "turn")
        if has_experts:
            yield Stage(layer, ("attention 1", "router", *(("shared expert",) if shared else ())), "dispatch")
            if cut_experts:
                yield Stage(layer, ("experts 0",), "midway")
            yield Stage(layer, ("experts 1" if cut_experts else "experts",), "combine")
        else:
            yield Stage(layer, ("attention 1", "mlp"), "turn")
    yield Stage(len(moe), ("output",), "end")
