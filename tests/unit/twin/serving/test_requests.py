"""Requests of a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.gateway.load import Arrivals, Lengths, plan_requests
from fourlane.spec.twin import Workload
from fourlane.twin.serving.requests import request_load

if TYPE_CHECKING:
    from pathlib import Path

MOONCAKE = """{"timestamp": 1000, "input_length": 1500, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 1300, "output_length": 0, "hash_ids": [0, 1, 9]}
{"timestamp": 1200, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
"""


def test_drawn_requests_are_those_that_bench_serve_sends() -> None:
    workload = Workload(rate=3.0, requests=25, input_len="5..90", output_len="lognormal:20/80", burstiness=2.0)
    ours = request_load(workload, block_size=16, seed=7).requests
    theirs = plan_requests(
        Arrivals(rate=3.0, burstiness=2.0),
        requests=25,
        input_lengths=Lengths.parse("5..90", name="x"),
        output_lengths=Lengths.parse("lognormal:20/80", name="x"),
        vocabulary=range(300, 400),
        seed=7,
    )
    assert [(each.due_s, each.prompt_tokens, each.output_tokens) for each in ours] == [
        (each.due_s, len(each.prompt), each.max_tokens) for each in theirs
    ]


def test_prompts_of_a_trace_share_the_pages_their_hash_ids_share(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    load = request_load(Workload(trace=str(path), speed=2.0), block_size=64, seed=0)
    early, middle, late = load.requests
    assert [early.due_s, middle.due_s, late.due_s] == pytest.approx([0.0, 0.1, 0.25])
    assert [sum(load.names.pages[run] for run in each.runs) for each in load.requests] == [23, 9, 20]
    assert early.runs[:2] == late.runs[:2]
    assert early.runs[2] != late.runs[2]
    assert not set(middle.runs) & set(early.runs)
    assert late.output_tokens == 1


def test_a_load_without_times_is_refused() -> None:
    with pytest.raises(SpecError, match=r"workload: expected a trace, or either a rate"):
        request_load(Workload(), block_size=16, seed=0)
