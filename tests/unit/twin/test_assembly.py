"""Finding what a twin names, and putting it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from fourlane.errors import SpecError
from fourlane.spec.load import load_twin
from fourlane.twin.assembly import assemble
from fourlane.twin.operating_point import operating_point, peak_point

if TYPE_CHECKING:
    from fourlane.spec.twin import Twin


def small(*overrides: str) -> Twin:
    """Return DeepSeek-V3 on two units of 32 GPUs."""
    given = ["prefill.units=1", "decode.units=1", "decode.ranks=32", "workload.rate=20"]
    return load_twin("deepseek-512", overrides=[*given, *overrides])


def test_an_assembly_has_everything_its_twin_names() -> None:
    assembly = assemble(small())
    assert assembly.architecture.name == "deepseek-v3"
    assert assembly.kv_token_bytes == 70_272
    assert assembly.decode.balance.held_experts == 9
    assert assembly.prefill.exchange.operation("dispatch", 1024, 1.0).seconds > 0
    assert assembly.decode.memory.kv_blocks > 1000
    assert set(assembly.sources) >= {"model", "hardware", "cluster", "lanes"}


def test_what_is_faster_on_paper_is_faster_in_the_point() -> None:
    plain = operating_point(assemble(small()))
    in_order = operating_point(assemble(small("experts.placement=linear", "experts.split=false")))
    drafted = operating_point(assemble(small("assumptions.mtp_tokens=1", "assumptions.mtp_acceptance=0.8")))
    assert plain.stable
    assert in_order.prefill.peak_tokens_s_gpu < 0.9 * plain.prefill.peak_tokens_s_gpu
    assert drafted.tpot.mean < plain.tpot.mean
    assert {"requests", "kv", "decode experts"} <= set(plain.sources)


def test_a_model_that_does_not_fit_is_told_by_how_many_gb_for_both_phases() -> None:
    with pytest.raises(SpecError) as caught:
        assemble(small("prefill.ranks=8", "decode.ranks=8"))
    told = caught.value.faults
    assert [fault.split(": ")[1] for fault in told] == ["prefill", "decode"]
    assert all("GB too little" in fault for fault in told)


def test_a_request_that_no_rank_can_hold_is_refused_with_the_gb_that_are_missing() -> None:
    with pytest.raises(SpecError, match=r"decode: the longest request has 2,000,001 tokens .* GB too little"):
        assemble(small("workload.input_len='1'", "workload.output_len='2000000'"))


def test_unknown_names_are_all_told_at_once_with_what_was_meant() -> None:
    twin = replace(small(), model="deepsek-v3", cluster="h800-ftt", hardware="h801")
    with pytest.raises(SpecError) as caught:
        assemble(twin)
    told = "\n".join(caught.value.faults)
    assert 'did you mean "deepseek-v3"' in told
    assert 'did you mean "h800-ft"' in told
    assert 'did you mean "h800"' in told


def test_hardware_without_published_figures_is_refused_with_a_way_out() -> None:
    with pytest.raises(SpecError, match=r"p800.*hardware profile of your own"):
        assemble(small("hardware=p800"))


def test_more_gpus_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(SpecError, match="expected at most the 512 GPUs of h800-ft, got 3232"):
        assemble(small("prefill.units=100"))


def test_a_second_assembly_shares_what_was_made_for_the_first() -> None:
    first, second = assemble(small()), assemble(small("workload.rate=30"))
    assert first.decode.balance is second.decode.balance
    assert first.architecture is second.architecture
    assert first.cluster is second.cluster


def test_the_greatest_rate_within_an_slo_is_below_that_without() -> None:
    within = peak_point(assemble(small("slo.ttft=1500ms")))
    without = peak_point(assemble(small("slo.ttft=", "slo.tpot=")))
    assert within.slo.met
    assert 0 < within.rate < without.rate
