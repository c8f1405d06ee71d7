"""Two micro-batches take turns in the published orders, and what travels is hidden as the pictures say."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from order_pictures import pictures

from fourlane.policy.overlap_order import (
    DECODE_ORDER,
    EXPERTS_ORDER,
    ORDERS,
    PREFILL_ORDER,
    Interval,
    Stretch,
    order_for,
    timeline,
)

if TYPE_CHECKING:
    from fourlane.policy.overlap_order import OverlapOrder


def passes(
    attention_0: float, attention_1: float, experts: float, travels: float, *, layers: int, cut: bool = False
) -> list[Stretch]:
    """A pass over layers with experts, whose dispatches and combines take equally long."""
    halves = [Stretch(experts / 2, "midway"), Stretch(experts / 2, "combine", travels)]
    layer = [
        Stretch(attention_0, "turn"),
        Stretch(attention_1, "dispatch", travels),
        *(halves if cut else [Stretch(experts, "combine", travels)]),
    ]
    return [*layer * layers, Stretch(0.0, "end")]


def length(stretches: list[Stretch], order: OverlapOrder) -> float:
    return max(interval.end_s for interval in timeline([stretches, stretches], order))


def computed(intervals: list[Interval]) -> list[tuple[int, int]]:
    return [(interval.stream, interval.index) for interval in intervals if not interval.travels]


def test_prefill_takes_turns_where_something_travels() -> None:
    assert list(islice(PREFILL_ORDER.turns(), 6)) == [0, 1, 0, 1, 0, 1]
    told = computed(timeline([passes(1, 1, 1, 1, layers=2)] * 2, PREFILL_ORDER))
    # numbered as in the picture: both halves of attention in one go, then the other stream's turn
    layer = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]
    assert told == [*layer, *((stream, index + 3) for stream, index in layer), (0, 6), (1, 6)]


def test_decode_takes_turns_after_each_half_of_attention_too() -> None:
    told = computed(timeline([passes(1, 1, 1, 1, layers=2)] * 2, DECODE_ORDER))
    # first: attention 0 and 1 | second: attention 0 | first: experts | second: attention 1 | first: next attention 0
    assert told[:8] == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (0, 3), (1, 2), (0, 4)]


def test_gpus_take_the_published_orders_and_cpus_cut_what_takes_longest() -> None:
    for ratio in (0.5, 9.0):
        published = [order_for(phase, gpu=True, experts_to_attention=ratio) for phase in ("prefill", "decode")]
        assert published == [PREFILL_ORDER, DECODE_ORDER]
    for phase in ("prefill", "decode"):
        assert order_for(phase, gpu=False, experts_to_attention=1.2) is PREFILL_ORDER
        assert order_for(phase, gpu=False, experts_to_attention=4.8) is EXPERTS_ORDER


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 2.8, 3.2, 5.0, 9.0])
def test_the_order_taken_on_cpus_is_the_shorter_one_where_transfers_are_as_long_as_computing(ratio: float) -> None:
    attention, experts = 1 / (1 + ratio), ratio / (1 + ratio)
    took = {
        order: length(passes(attention / 2, attention / 2, experts, 0.5, layers=40, cut=order.cut_experts), order)
        for order in (PREFILL_ORDER, EXPERTS_ORDER)
    }
    chosen = order_for("decode", gpu=False, experts_to_attention=ratio)
    assert took[chosen] <= 1.01 * min(took.values())


@pytest.mark.parametrize("name", ORDERS)
def test_the_docs_show_what_an_order_gives(name: str) -> None:
    text = (Path(__file__).parents[3] / "docs/design/two-streams.md").read_text()
    after = text[text.index(f"**`{name}`**") :]
    shown = after.split("```text\n", 1)[1].split("\n```", 1)[0]
    assert shown == pictures()[name]


def test_prefill_hides_everything_where_stages_are_as_long_as_transfers() -> None:
    # attention = dispatch = experts = combine = 1: a layer of both takes as long as its computing
    layers = 50
    assert length(passes(0.5, 0.5, 1, 1, layers=layers), PREFILL_ORDER) == pytest.approx(4 * layers + 1)


def test_decode_hides_transfers_under_halves_of_attention() -> None:
    # attention is twice as long as a transfer, experts are short: prefill's order is the slower one
    long_attention = passes(1, 1, 0.5, 1, layers=50)
    assert length(long_attention, DECODE_ORDER) == pytest.approx(50 * 5, rel=0.01)
    assert length(long_attention, PREFILL_ORDER) > 1.15 * length(long_attention, DECODE_ORDER)


def test_halves_of_experts_hide_transfers_where_there_is_next_to_no_attention() -> None:
    # experts of both take 4 a layer and so does what travels: hidden but for attention and what is first and last
    few, cut = (passes(0.05, 0.05, 2, 1, layers=50, cut=cut) for cut in (False, True))
    assert length(cut, EXPERTS_ORDER) == pytest.approx(50 * 4.2, rel=0.02)
    assert length(few, PREFILL_ORDER) > 1.4 * length(cut, EXPERTS_ORDER)
    assert length(few, DECODE_ORDER) > 1.8 * length(cut, EXPERTS_ORDER)


def test_halves_of_experts_are_taken_in_the_order_of_the_picture() -> None:
    told = computed(timeline([passes(1, 1, 1, 1, layers=3, cut=True)] * 2, EXPERTS_ORDER))
    assert told[:8] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (0, 4)]
    # second: experts 0 | first: attention | second: experts 1 | first: experts 0 | second: attention | first: experts 1
    layer = [(1, 2), (0, 4), (0, 5), (1, 3), (0, 6), (1, 4), (1, 5), (0, 7)]
    assert told[6:22] == [*layer, *((stream, index + 4) for stream, index in layer)]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@given(
    times=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    layers=st.integers(1, 6),
    ends_dense=st.booleans(),
)
def test_an_order_is_sound_whatever_stages_take(
    order: OverlapOrder, times: list[float], layers: int, *, ends_dense: bool
) -> None:
    stretches = passes(*times, layers=layers, cut=order.cut_experts)
    if ends_dense:  # a last layer without experts: its attention, and no more
        stretches[-1:] = [Stretch(times[0], "turn"), Stretch(times[1], "end")]
    intervals = timeline([stretches, stretches], order)
    for travels in (False, True):  # one thing at a time on each resource
        used = sorted((i.begin_s, i.end_s) for i in intervals if i.travels == travels)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(used))
    begins = {(i.stream, i.index, i.travels): i.begin_s for i in intervals}
    ends = {(i.stream, i.index, i.travels): i.end_s for i in intervals}
    for index, stretch in enumerate(stretches):
        assert begins[0, index, False] < begins[1, index, False], "the first is ahead at every layer"
        for stream in range(2):
            before = ends.get((stream, index - 1, True), 0.0)
            assert begins[stream, index, False] >= before, "nothing is computed before what it needs has come"
            assert ((stream, index, True) in begins) == (stretch.then in ("dispatch", "combine"))
    serial = 2 * sum(stretch.computes_s + stretch.travels_s for stretch in stretches)
    computing = 2 * sum(stretch.computes_s for stretch in stretches)
    assert computing <= max(ends.values()) + 1e-6 <= serial + 2e-6
