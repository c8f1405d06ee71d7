"""One rank whose forward passes are measured: what `measured_passes` plans, this does. Imports torch.

Not for starting ranks or making sense of what they say.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.joining import STEP_S, join
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.measured_passes import ALONE, Passes, PassPlan, RankTrace, Way
from fourlane.engine.measured_steps import BLOCK, decoding_step, filled_pages, prompts_step
from fourlane.engine.micro_batches import StepRunner
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.overlap import Overlapping
from fourlane.engine.rank_config import RankConfig
from fourlane.engine.stage_trace import StageTrace
from fourlane.errors import SpecError
from fourlane.policy.overlap_order import ORDERS
from fourlane.policy.placement import EMPTY, Placement, linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.exchange.contract import Pending, Received
    from fourlane.engine.scheduler import Step

__all__ = ["run_rank"]

_FEWEST, _MOST = 3, 500
"""Passes of a step, whatever they take."""
_LEARNING = 3
"""How many times longer passes run of which the rule decides each: it has to see some of either kind."""
_CPU = torch.device("cpu")


def run_rank(plan: dict[str, Any], rank: int, say: Callable[[object], None]) -> None:
    """Meet the others, run every pass of the plan, and say how long each took."""
    torch.set_num_threads(1)
    read = msgspec.convert(plan, PassPlan)
    with torch.no_grad(), ExitStack() as stack:
        measured = _Rank(read, rank, stack)
        for tokens, way in read.steps():
            say(measured.measure(tokens, way))
        if read.trace:
            say(measured.traces())


class _Alone(LocalExchange):
    """An exchange by which no row leaves its rank: experts of other ranks are computed by those in their places here.

    Args:
        placement: of the group, each expert in one slot.
        rank: in it.
    """

    def __init__(self, placement: Placement, rank: int) -> None:
        held_LP = placement.slot_of_LP.reshape(placement.layers, placement.ranks, -1)[:, rank] >= 0
        self._experts = int(held_LP[0].sum())
        table_LP = np.where(held_LP, held_LP.cumsum(axis=1) - 1, EMPTY).astype(np.int32)
        self._own = Placement(table_LP, experts=self._experts, ranks=1)
        super().__init__(self._own)

    def dispatch(
        self,
        x_TD: Tensor,
        topk_TK: Tensor,
        weights_TK: Tensor,
        placement: Placement,
        *,
        layer: int,
        decode_rows: Tensor | None = None,
    ) -> Pending[Received]:
        """Keep the rows, by slot."""
        del placement
        return super().dispatch(
            x_TD, topk_TK % self._experts, weights_TK, self._own, layer=layer, decode_rows=decode_rows
        )


@dataclass(frozen=True, slots=True)
class _Coming:
    """What takes the scheduler's place before the rule: the next step is like the last."""

    tokens: tuple[int, int]

    def expected_after(self, step: Step) -> tuple[int, int]:
        """Return the prefill and decode tokens of the step after one."""
        del step
        return self.tokens


def _rank_config(plan: PassPlan, rank: int) -> RankConfig:
    return RankConfig(
        role="prefill" if plan.phase == "prefill" else "decode",
        rank=rank,
        ranks=plan.seats.ranks,
        group_size=plan.seats.ranks,
        group_rank=rank,
        model_path=plan.model,
        control_endpoint="ipc://",
        secret_file="",
        run_dir=plan.seats.folder,
    )


class _Rank:
    """A rank with its model, its pages and its exchanges."""

    def __init__(self, plan: PassPlan, rank: int, stack: ExitStack) -> None:
        config = read_config(plan.model)
        longest = plan.context + 1
        if longest > config.max_positions:
            raise SpecError(f"--context: the model takes at most {config.max_positions} tokens, got {longest}")
        self._plan = plan
        self._vocabulary = config.vocab_size
        self._rng = np.random.default_rng(rank)
        self._placement = linear_placement(
            layers=len(config.moe_layers), experts=config.experts, ranks=plan.seats.ranks
        )
        most = max(plan.tokens)
        self._model = load_model(plan.model, device=_CPU, placement=self._placement, rank=rank, chunk_tokens=most)
        self._moe_layers = config.moe_layers
        self._runner = StepRunner(self._model, self._pages(most))
        self._steps = {tokens: self._step(tokens) for tokens in plan.tokens}
        self._joined = {
            name: join(name, plan.seats, rank, self._placement)
            for name in dict.fromkeys(way.implementation for way in plan.ways if way.implementation != ALONE)
        }
        self._exchanges = {
            name: stack.enter_context(closing(CommunicationThread(joined, device=_CPU, patience_s=STEP_S)))
            for name, joined in self._joined.items()
        }
        self._alone = _Alone(self._placement, rank)
        config = _rank_config(plan, rank)
        layers = len(self._moe_layers)
        self._rules = {name: Overlapping(config, self._runner, layers=layers) for name in self._joined}
        self._number = 0

    def measure(self, tokens: int, way: Way) -> Passes:
        """Run passes of one way, as many as all ranks agree on."""
        began = time.perf_counter()
        logits_NV = self._run(tokens, way)
        each_s = time.perf_counter() - began
        told = next(iter(self._joined.values())).tell_all_numbers(np.array([int(each_s * 1e6)], dtype=np.int64))
        seconds_to_run = self._plan.seconds * (_LEARNING if way.mode == "auto" else 1)
        passes = min(_MOST, max(_FEWEST, int(seconds_to_run * 1e6 / max(1, told.max()))))
        seconds, dual_passes = list[float](), 0
        rule = self._rules.get(way.implementation) if way.mode == "auto" else None
        for _ in range(passes):
            dual_passes += rule is not None and rule.decision.mode == "dual"
            began = time.perf_counter()
            logits_NV = self._run(tokens, way)
            seconds.append(time.perf_counter() - began)
        return Passes(
            seconds=seconds,
            chosen=logits_NV.argmax(dim=1).tolist(),
            dual_passes=dual_passes,
            predicted=None if rule is None else rule.decision.predicted,
        )

    def traces(self) -> list[RankTrace]:
        """Run a pass of the last way of each mode and return what was recorded."""
        found = []
        for way in {
            way.mode: way for way in self._plan.ways if way.implementation != ALONE and way.mode != "auto"
        }.values():
            exchange = self._exchanges[way.implementation]
            trace = StageTrace(self._model.stages(), self._moe_layers)
            runner = StepRunner(self._model, self._runner.kv_LQBShd, trace)
            self._run(self._plan.tokens[-1], way)  # so that all begin together
            exchange.trace = trace if way.mode == "dual" else None
            self._run(self._plan.tokens[-1], way, runner)
            exchange.trace = None
            found.append(msgspec.convert({"mode": way.mode, "spans": msgspec.to_builtins(trace.spans)}, RankTrace))
        return found

    def _run(self, tokens: int, way: Way, runner: StepRunner | None = None) -> Tensor:
        self._number += 1
        step = self._steps[tokens]
        if way.mode == "auto":
            return self._run_by_rule(tokens, way)
        exchange = self._alone if way.implementation == ALONE else self._exchanges[way.implementation]
        exchange.begin_step(self._number, more=True)
        order = ORDERS[self._plan.order] if way.mode == "dual" else None
        return (runner or self._runner).run(step, exchange, self._placement, order=order)

    def _run_by_rule(self, tokens: int, way: Way) -> Tensor:
        """Run a pass as a serving rank would: announced, timed and decided on with the others."""
        exchange, rule, step = self._exchanges[way.implementation], self._rules[way.implementation], self._steps[tokens]
        coming = (tokens, 0) if self._plan.phase == "prefill" else (0, tokens)
        exchange.begin_step(self._number, more=True, outlook=rule.outlook(_Coming(coming), step))
        logits_NV = rule.run(step, exchange, self._placement, on_kv=None)
        rule.end_step(exchange.agreement())
        return logits_NV

    def _pages(self, most: int) -> Tensor:
        """Return pages enough for any of the steps, filled with small random numbers."""
        context_pages = -(-self._plan.context // BLOCK)
        prompts = -(-most // self._plan.context)
        blocks = 1 + (context_pages + most if self._plan.phase == "decode" else prompts * context_pages)
        return filled_pages(self._model, blocks, _CPU)

    def _step(self, tokens: int) -> Step:
        context = self._plan.context
        if self._plan.phase == "prefill":
            return prompts_step(self._rng, self._vocabulary, tokens=tokens, longest=context)
        return decoding_step(self._rng, self._vocabulary, sequences=tokens, context=context)
