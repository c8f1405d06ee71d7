"""A recorded trace on 16 prefill and 8 decode units: every request is answered, with work that grows with requests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fourlane.spec.load import load_twin
from fourlane.twin.assembly import assemble
from fourlane.twin.serving.simulation import Service

TRACE = Path(__file__).parents[2] / "../shared/data/traces/conversation_trace.jsonl"

pytestmark = pytest.mark.skipif(not TRACE.exists(), reason="needs Mooncake's trace in ../shared/data/traces")


def service_of(requests: int) -> Service:
    twin = load_twin("deepseek-h800")
    workload = msgspec.structs.replace(twin.workload, trace=str(TRACE), rate=None, requests=requests)
    return Service(assemble(msgspec.structs.replace(twin, workload=workload)))


def test_a_recorded_trace_is_answered_in_few_events_a_request_and_finds_its_prefixes() -> None:
    asked = {}
    for requests in (600, 1200):
        service = service_of(requests)
        results = service.run()
        assert results.requests.done.all()
        asked[requests] = service.clock.planned
        decoded = results.requests.output_tokens.sum() - requests
        # every request decodes alone for most of the time here: its steps would be an event each
        assert len(results.decode_leaps) < decoded / 20
    assert asked[1200] < 16 * 1200
    assert asked[1200] == pytest.approx(2 * asked[600], rel=0.1)
    # all prompts of the trace begin with the same 512 tokens, some go on alike
    assert 0.05 < results.cache_hits < 0.5
    assert results.ttft.p50 < 2.0
    assert 0.01 < results.tpot.p50 < 0.04
