"""The simulated service does what the live code does, request by request, if steps take the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from live_code import live_times
from serving_doubles import PlainKv, PlainSteps, plain_assembly

from fourlane.gateway.load import Arrivals, Lengths, plan_requests
from fourlane.spec.deployment import Pool
from fourlane.spec.twin import TwinPool, Workload
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.serving.result_values import RequestTimes

BLOCK = 16


STEPS: dict[str, Any] = {
    "prefill": PlainSteps(fixed=0.01, token=2e-4, pair=1e-8),
    "decode": PlainSteps(fixed=0.008, token=1e-4, position=1e-7),
}


@dataclass(frozen=True)
class Case:
    """A load, and ranks in groups of three."""

    rate: float
    input_len: str
    output_len: str
    prefill_blocks: int = 400
    decode_blocks: int = 400
    units: int = 1
    shared_prefix: int = 0
    requests: int = 120

    def live(self) -> tuple[NDArray[Any], ...]:
        """Return first tokens, ends and evictions by the live code."""
        drawn = plan_requests(
            Arrivals(rate=self.rate),
            requests=self.requests,
            input_lengths=Lengths.parse(self.input_len, name="x"),
            output_lengths=Lengths.parse(self.output_len, name="x"),
            vocabulary=range(300, 4000),
            seed=5,
        )
        requests = []
        for each in drawn:
            shared = min(self.shared_prefix, len(each.prompt))
            requests.append(msgspec.structs.replace(each, prompt=[1] * shared + list(each.prompt)[shared:]))
        times = live_times(
            requests,
            prefill=Pool(ranks=3 * self.units, expert_parallel=3, chunk_tokens=256),
            decode=Pool(ranks=3 * self.units, expert_parallel=3, max_running=16),
            blocks={"prefill": self.prefill_blocks, "decode": self.decode_blocks},
            steps=STEPS,
            block_size=BLOCK,
        )
        return tuple(np.array(each) for each in zip(*times, strict=True))

    def simulated(self) -> RequestTimes:
        """Return what the simulated service makes of them."""
        workload = Workload(
            rate=self.rate,
            requests=self.requests,
            input_len=self.input_len,
            output_len=self.output_len,
            shared_prefix=self.shared_prefix,
        )
        assembly = plain_assembly(
            workload=workload,
            prefill=TwinPool(units=self.units, ranks=3, chunk_tokens=256),
            decode=TwinPool(units=self.units, ranks=3, max_running=16),
            prefill_steps=STEPS["prefill"],
            decode_steps=STEPS["decode"],
            kv=PlainKv(math.inf, math.inf),
            prefill_blocks=self.prefill_blocks,
            blocks=self.decode_blocks,
            block_size=BLOCK,
            seed=5,
        )
        return simulate(assembly).requests


@pytest.mark.parametrize(
    "case",
    [
        Case(4.0, "30..600", "1..40"),
        Case(25.0, "30..600", "20..120"),
        Case(40.0, "30..600", "20..120", units=2),
        Case(30.0, "200..600", "1..40", shared_prefix=150, units=2),
    ],
    ids=["hardly busy", "busy", "in two groups", "with prompts that begin alike"],
)
def test_tokens_come_when_the_live_code_gives_them(case: Case) -> None:
    first, last, evictions = case.live()
    simulated = case.simulated()
    assert not evictions.any()
    assert simulated.first_token == pytest.approx(first, rel=1e-9)
    assert simulated.ended == pytest.approx(last, rel=1e-9)


def test_short_of_pages_it_evicts_and_waits_like_the_live_code() -> None:
    """Tokens of one step come in the live gateway one rank after another, and it looks for room between them.

    So a request may find room a step sooner or later, and then all goes another way: only the whole can agree.
    """
    case = Case(25.0, "30..300", "60..200", prefill_blocks=60, decode_blocks=70)
    first, last, evictions = case.live()
    simulated = case.simulated()
    assert evictions.sum() > 20
    assert simulated.evictions.sum() == pytest.approx(evictions.sum(), rel=0.25)
    assert simulated.ttft.mean() == pytest.approx((first - simulated.sent).mean(), rel=0.05)
    assert simulated.e2e.mean() == pytest.approx((last - simulated.sent).mean(), rel=0.05)
