"""What a twin must satisfy: alone, and on its cluster with its model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster, load_twin, twins
from fourlane.spec.twin import Fault as Failing
from fourlane.spec.twin import Twin
from fourlane.spec.twin_rules import placed_faults, twin_faults
from fourlane.units import Duration

GOOD: dict[str, Any] = {
    "model": "deepseek-v3",
    "cluster": "h800-ft",
    "prefill": {"units": 1, "ranks": 32},
    "decode": {"units": 1, "ranks": 64},
    "workload": {"rate": 10.0},
}


def twin_with(path: str, value: Any) -> Twin:
    """Return a good twin with one field changed."""
    data = msgspec.json.decode(msgspec.json.encode(GOOD))
    table, *rest = path.split(".")
    if rest:
        data.setdefault(table, {})[rest[0]] = value
    else:
        data[table] = value
    return msgspec.convert(data, Twin, dec_hook=lambda kind, text: kind.parse(text))


@pytest.mark.parametrize("name", twins())
def test_twins_of_the_catalog_break_no_rule(name: str) -> None:
    twin = load_twin(name)
    assert not list(twin_faults(twin))
    assert not list(placed_faults(twin, load_architecture(twin.model), load_cluster(twin.cluster)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prefill.units", 0, "prefill.units: expected at least 1, got 0"),
        ("decode.max_running", -1, "decode.max_running: expected at least 1, got -1"),
        ("prefill.kv_memory", "0B", "prefill.kv_memory: expected more than nothing, got 0B"),
        ("decode.redundant_experts", -2, "decode.redundant_experts: expected at least 0"),
        ("experts.lean", 3.0, "experts.lean: expected a coefficient of variation from 0 to 2, got 3"),
        ("experts.popularity", "", "experts.popularity: expected"),
        ("workload.rate", -1.0, "workload.rate: expected more than 0 requests a second, got -1"),
        ("workload.concurrency", 4, "workload.rate: expected a rate (open loop) or a concurrency"),
        ("workload.requests", 0, "workload.requests: expected at least 1"),
        ("workload.input_len", "long", "workload.input_len: expected a count of tokens"),
        ("workload.output_len", "9..3", "workload.output_len: expected a count of tokens"),
        ("workload.speed", 0.0, "workload.speed: expected more than 0 times as fast"),
        ("workload.burstiness", -1.0, "workload.burstiness: expected a coefficient of variation"),
        ("workload.trace", "trace.txt", "workload.trace: expected a .csv (Azure) or .jsonl (Mooncake) file"),
        ("workload.trace", "trace.csv", "workload.rate: expected none with a trace"),
        ("slo.share", 0.0, "slo.share: expected a share of requests above 0, up to 1, got 0"),
        ("slo.ttft", "0s", "slo.ttft: expected more than nothing"),
        ("assumptions.mtp_tokens", 99, "assumptions.mtp_tokens: expected 0 to 16 drafted tokens, got 99"),
        ("assumptions.mtp_acceptance", 1.5, "assumptions.mtp_acceptance: expected a share from 0 to 1"),
        ("assumptions.sm_share_prefill", 1.0, "assumptions.sm_share_prefill: expected a share of the processors"),
        ("block_size", 0, "block_size: expected at least 1"),
    ],
)
def test_a_broken_rule_is_told_with_place_and_what_is_allowed(path: str, value: Any, message: str) -> None:
    told = [f"{fault.place}: {fault.message}" for fault in twin_faults(twin_with(path, value))]
    assert any(line.startswith(message) for line in told), told


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("rank", "decode/64", 'expected ranks 0 to 63 of decode, got "decode/64"'),
        ("kv", "prefill/1", 'expected units 0 to 0 of prefill, got "prefill/1"'),
        ("rank", "gateway", 'expected a rank such as "decode/3"'),
    ],
)
def test_a_fault_of_something_that_is_not_there_is_refused(kind: Any, target: str, message: str) -> None:
    failing = Failing(at=Duration.parse("1s"), kind=kind, target=target)
    twin = msgspec.structs.replace(twin_with("seed", 0), faults=(failing,))
    assert [fault.place for fault in twin_faults(twin)] == ["faults[0].target"]
    assert message in next(twin_faults(twin)).message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prefill.units", 100, ": expected at most the 512 GPUs of h800-ft, got 3264: 100 x 32 (prefill) + 1 x 64"),
        ("decode.ranks", 60, "decode.ranks: expected whole servers of 8 GPUs beyond one (56 or 64), got 60"),
        ("prefill.redundant_experts", 9000, "prefill.redundant_experts: expected at most 7936"),
    ],
)
def test_a_twin_that_its_cluster_has_no_room_for_is_told_why(path: str, value: Any, message: str) -> None:
    faults = placed_faults(twin_with(path, value), load_architecture("deepseek-v3"), load_cluster("h800-ft"))
    told = [f"{fault.place}: {fault.message}" for fault in faults]
    assert len(told) == 1
    assert told[0].startswith(message)


def test_kv_cache_cannot_go_on_a_network_that_is_not_there() -> None:
    faults = placed_faults(twin_with("lanes.kv", "dcn"), load_architecture("deepseek-v3"), load_cluster("one-network"))
    assert "lanes.kv" in {fault.place for fault in faults}


def test_all_broken_rules_of_a_file_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        load_twin("deepseek-512", overrides=["workload.rate=-5", "slo.share=2", "decode.units=0"])
    assert len(caught.value.faults) == 3
