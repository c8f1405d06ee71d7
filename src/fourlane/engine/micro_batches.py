"""Cut a scheduled step in two micro-batches, and run a step as one stream or as two.

The first micro-batch is the step's beginning, the second its end, cut where both have about as many
tokens: between two sequences, or inside a prefill chunk, whose second half then attends to the first.
Not for deciding whether two streams pay: that is `policy.overlap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from fourlane.engine.batches import build_batch
from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.contract import BatchExchange
from fourlane.engine.executor import run_dual_stream, run_single_stream
from fourlane.engine.scheduler import Scheduled, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

    from fourlane.engine.exchange.contract import GroupExchange, Pending
    from fourlane.engine.model.qwen3_moe import CausalLM
    from fourlane.engine.stage_trace import StageTrace
    from fourlane.policy.overlap_order import OverlapOrder
    from fourlane.policy.placement import Placement

    OnKv = Callable[[int, Tensor, Tensor], None]

__all__ = ["StepRunner", "split_step"]

_EVEN_ENOUGH = 0.48
"""A cut between two sequences will do if the smaller half has this share. Source: SGLang's default threshold."""


def split_step(step: Step) -> tuple[Step, Step]:
    """Cut a step in two with about as many tokens each; the odd one, or the only one, is the first's."""
    ends = list(accumulate(part.tokens for part in step.parts))
    total = ends[-1] if ends else 0
    half = -(-total // 2)
    nearest = min(ends, key=lambda end: abs(end - half), default=0)
    cut = nearest if min(nearest, total - nearest) >= _EVEN_ENOUGH * total else half
    first, second = (_between(step.parts, ends, *span) for span in ((0, cut), (cut, total)))
    return Step(first, more=step.more), Step(second, more=step.more)


def _between(parts: Sequence[Scheduled], ends: Sequence[int], first: int, end: int) -> list[Scheduled]:
    """Return what lies between two tokens of a step."""
    pieces = []
    for part, part_end in zip(parts, ends, strict=True):
        begin = part_end - part.tokens
        from_, to = max(first, begin), min(end, part_end)
        if from_ < to:
            pieces.append(Scheduled(part.sequence, to - from_, skip=from_ - begin, left=part_end - to))
    return pieces


@dataclass(frozen=True, slots=True)
class StepRunner:
    """Runs a rank's steps.

    Args:
        model: as the rank holds it.
        kv_LQBShd: its pages, [layers, 2 (K, V), blocks, block_size, kv heads, head dim].
        trace: records when what was computed; None: nothing does.
    """

    model: CausalLM
    kv_LQBShd: Tensor
    trace: StageTrace | None = None

    def run(
        self,
        step: Step,
        exchange: GroupExchange,
        placement: Placement,
        *,
        order: OverlapOrder | None = None,
        on_kv: Callable[[Step], OnKv] | None = None,
    ) -> Tensor:
        """Compute a step; every rank of the group does, in the same way.

        Args:
            step: what to compute; it may be empty.
            exchange: the group's, or the thread before it; one stream does not use the thread.
            placement: where the group's experts live.
            order: in which two micro-batches take turns; None: one stream.
            on_kv: gives for a step, or a half of it, what is told each layer's new K and V.

        Returns:
            Logits of `step.sampling`, float32 [sequences, vocabulary].

        Raises:
            PeerLost: an operation of the exchange could not complete.
        """
        if self.trace is not None:
            self.trace.begin_step(self.model.stages(cut_experts=order is not None and order.cut_experts))
        if order is None:
            direct = exchange.exchange if isinstance(exchange, CommunicationThread) else exchange
            return run_single_stream(self._forward(step, direct, placement, on_kv), trace=self.trace)
        first, second = (
            self._forward(half, exchange, placement, on_kv, cut_experts=order.cut_experts) for half in split_step(step)
        )
        return torch.cat(run_dual_stream(first, second, order, trace=self.trace))

    def _forward(
        self,
        step: Step,
        exchange: GroupExchange,
        placement: Placement,
        on_kv: Callable[[Step], OnKv] | None,
        *,
        cut_experts: bool = False,
    ) -> Generator[Pending[Any], Any, Tensor]:
        batch = build_batch(
            step,
            block_size=self.kv_LQBShd.shape[3],
            device=self.model.device,
            on_kv=None if on_kv is None else on_kv(step),
            cut_experts=cut_experts,
        )
        return self.model.forward(batch, self.kv_LQBShd, BatchExchange(exchange, batch.decode_row_N), placement)
