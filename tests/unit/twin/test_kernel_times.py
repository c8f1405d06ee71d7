"""Times of parts by the roofline: what bounds them, and how they grow."""

import msgspec
import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.twin import Assumptions
from fourlane.twin.kernel_times import RooflineTimes, weights_type
from fourlane.twin.times import RankLoad

DEEPSEEK = load_architecture("deepseek-v3")
QWEN = load_architecture("qwen3-30b-a3b")


def decode(rows: float, context: float, *, experts: float = 2) -> RankLoad:
    """Return a rank that decodes."""
    return RankLoad(0, 0, rows, rows * context, rows, rows * 8, experts, experts)


def prefill(tokens: float) -> RankLoad:
    """Return a rank that computes one prompt."""
    return RankLoad(tokens, tokens**2 / 2, 0, 0, 1, tokens * 8, 9, 9)


@pytest.mark.parametrize("experts", [32, 4])
def test_few_rows_are_bound_by_reading_the_experts_that_have_any(experts: int) -> None:
    taken = [
        RooflineTimes(DEEPSEEK, "h100").part("experts", decode(8, 0, experts=held)) for held in (experts, experts / 2)
    ]
    assert taken[0].bound == "memory"
    reading_s = (
        experts
        / 2
        * DEEPSEEK.expert_parameters
        / (3.35e12 * efficiencies("h100").memory * efficiencies("h100").sustained)
    )
    assert taken[0].seconds - taken[1].seconds == pytest.approx(reading_s, rel=0.05)


def test_many_rows_are_bound_by_computing() -> None:
    times = RooflineTimes(DEEPSEEK, "h800")
    found = times.part("experts", prefill(16384))
    assert found.bound == "compute"
    flops = 2 * 16384 * 8 * DEEPSEEK.expert_parameters
    reached = flops / found.seconds / 1979e12
    assert 0.35 < reached < efficiencies("h800").grouped * efficiencies("h800").sustained


@pytest.mark.parametrize("part", ["attention 0", "attention 1", "router", "shared expert", "experts", "output"])
def test_more_rows_never_take_less(part: str) -> None:
    for times in (RooflineTimes(DEEPSEEK, "h800"), RooflineTimes(QWEN, "b200")):
        taken = [times.part(part, decode(rows, 2048)).seconds for rows in (1, 8, 64, 512)]  # type: ignore[arg-type]
        assert taken == sorted(taken)


def test_grouped_queries_in_decode_are_bound_by_reading_their_cache() -> None:
    times = RooflineTimes(QWEN, "h800")
    found = times.part("attention 1", decode(256, 8192))
    assert found.bound == "memory"
    cache = 256 * 8192 * QWEN.attention.kv_width * 2
    assert found.seconds > cache / 3.35e12


def test_a_part_says_on_what_its_figures_were_fitted_or_where_they_were_read() -> None:
    known = efficiencies("h800")
    figures = msgspec.structs.replace(known, fitted=known.fitted | {"grouped": ("a row",)})
    told = RooflineTimes(DEEPSEEK, "h800", figures=figures).part("experts", prefill(4096)).source
    assert "roofline of h800, fp8 weights" in told
    assert "(fitted: a row)" in told
    dense = RooflineTimes(DEEPSEEK, "h800").part("shared expert", prefill(4096)).source
    assert "dense at 0.57 of peak (DeepGEMM README, 2025-02" in dense


def test_weights_take_a_type_the_gpu_multiplies_in() -> None:
    plain = Assumptions()
    assert weights_type(DEEPSEEK, "h800", plain) == "fp8"
    assert weights_type(DEEPSEEK, "ascend-910c", plain) == "int8"
    assert weights_type(DEEPSEEK, "a100", plain) == "bf16"
    assert weights_type(QWEN, "h800", plain) == "bf16"
    assert weights_type(load_architecture("bundled"), "h100", Assumptions(weights="fp8")) == "fp8"
    with pytest.raises(SpecError, match='weights: expected bf16 on a100, got "fp8"'):
        weights_type(DEEPSEEK, "a100", Assumptions(weights="fp8"))


def test_drafted_rows_read_the_cache_once() -> None:
    alone = RooflineTimes(QWEN, "h800").part("attention 1", decode(128, 8192))
    drafted = RankLoad(0, 0, 256, 128 * 8192, 256, 0, 0, 0)
    both = RooflineTimes(QWEN, "h800", Assumptions(mtp_tokens=1)).part("attention 1", drafted)
    assert alone.seconds < both.seconds < 1.2 * alone.seconds
