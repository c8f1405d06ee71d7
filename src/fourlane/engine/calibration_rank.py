"""One rank whose passes are taken apart: what `calibration` plans, this does. Imports torch.

Not for starting ranks or making sense of what they say.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from fourlane.engine.batches import build_batch
from fourlane.engine.calibration import CalibrationPlan, CasePasses, StageName
from fourlane.engine.exchange.contract import BatchExchange
from fourlane.engine.exchange.joining import join
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.executor import run_single_stream
from fourlane.engine.measured_steps import BLOCK, decoding_step, filled_pages, prompts_step
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.scheduler import Step
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor

    from fourlane.engine.calibration import PassCase
    from fourlane.engine.exchange.group_exchange import SteppedExchange

__all__ = ["run_rank"]

_FEWEST, _MOST = 4, 600
"""Passes of a case in a round."""


def run_rank(plan: dict[str, Any], rank: int, say: Callable[[object], None]) -> None:
    """Meet the others, run every case of the plan, and say when each pass and stage began and ended."""
    read = msgspec.convert(plan, CalibrationPlan)
    torch.set_num_threads(read.threads)
    with torch.no_grad(), ExitStack() as stack:
        measured = _Rank(read, rank, stack)
        for case in read.turns():
            say(measured.measure(case))


class _Rank:
    """A rank with its model, its pages and its exchange."""

    def __init__(self, plan: CalibrationPlan, rank: int, stack: ExitStack) -> None:
        self._plan, self._rank = plan, rank
        self._device = torch.device(plan.device)
        config = read_config(Path(plan.model))
        first = linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=plan.seats.ranks)
        most = max(case.rows for case in plan.cases)
        self._placement = first
        self._model = load_model(plan.model, device=self._device, placement=first, rank=rank, chunk_tokens=most)
        self._exchange: LocalExchange | SteppedExchange
        if plan.seats.ranks == 1:
            self._exchange = LocalExchange(first)
        else:
            self._exchange = stack.enter_context(closing(join(plan.exchange, plan.seats, rank, first)))
        rng = np.random.default_rng(rank)
        self._steps = {case: self._step(case, rng) for case in plan.cases}
        blocks = 1 + max((max(part.sequence.blocks) for s in self._steps.values() for part in s.parts), default=0)
        self._pages = filled_pages(self._model, blocks, self._device)
        self._names = [
            StageName(layer=stage.layer, parts=stage.parts, then=stage.then) for stage in self._model.stages()
        ]
        self._number = 0

    def measure(self, case: PassCase) -> CasePasses:
        """Run passes of a case, as many as all ranks agree on, whole ones and ones taken apart in turn."""
        step = self._steps[case]
        self._whole(step)
        begin, end = self._whole(step)
        passes, stages = list[tuple[float, float]](), list[list[tuple[float, float]]]()
        for _ in range(self._agreed(end - begin)):
            begin, end = self._whole(step)
            passes.append((begin, end))
            stages.append(self._apart(step))
        return CasePasses(passes=passes, stages=stages, names=self._names)

    def _agreed(self, each_s: float) -> int:
        told = np.array([int(each_s * 1e6)], dtype=np.int64)
        if not isinstance(self._exchange, LocalExchange):
            told = self._exchange.tell_all_numbers(told)
        return min(_MOST, max(_FEWEST, int(self._plan.seconds * 1e6 / max(1, told.max()) / 2)))

    def _forward(self, step: Step) -> Generator[Any, Any, Tensor]:
        self._number += 1
        self._exchange.begin_step(self._number, more=True)
        batch = build_batch(step, block_size=BLOCK, device=self._device)
        exchange = BatchExchange(self._exchange, batch.decode_row_N)
        return self._model.forward(batch, self._pages, exchange, self._placement)

    def _whole(self, step: Step) -> tuple[float, float]:
        self._meet()
        begin = time.perf_counter()
        run_single_stream(self._forward(step))
        self._synchronize()
        return begin, time.perf_counter()

    def _apart(self, step: Step) -> list[tuple[float, float]]:
        """Run a pass, and return when each stage had what it waited for and when it had computed."""
        self._meet()
        begin = time.perf_counter()
        stages, noted = self._forward(step), list[tuple[float, float]]()
        awaited: object = None
        while True:
            try:
                pending = stages.send(awaited)
            except StopIteration:
                self._synchronize()
                noted.append((begin, time.perf_counter()))
                return noted
            self._synchronize()
            noted.append((begin, time.perf_counter()))
            awaited = pending.wait()
            self._synchronize()
            begin = time.perf_counter()

    def _meet(self) -> None:
        """Let all ranks begin a pass together."""
        if not isinstance(self._exchange, LocalExchange):
            self._exchange.tell_all_numbers(np.zeros(1, dtype=np.int64))

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _step(self, case: PassCase, rng: np.random.Generator) -> Step:
        if case.lone and self._rank:
            return Step([], more=True)
        vocabulary = self._model.config.vocab_size
        if case.phase == "prefill":
            return prompts_step(rng, vocabulary, tokens=case.rows, longest=case.context)
        return decoding_step(rng, vocabulary, sequences=case.rows, context=case.context)
