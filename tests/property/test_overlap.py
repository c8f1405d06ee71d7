"""The rule for one or two streams, on groups drawn at random: it never costs, and what it finds it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_overlap import Group, play

from fourlane.policy.overlap import OverlapRule

STEPS = 700


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw a group: any mix of computing, communication by processor and by link, noise, and luck with two streams."""
    seconds = st.floats(0, 3e-3)
    return Group(
        ranks=draw(st.integers(2, 5)),
        layers=draw(st.integers(1, 12)),
        computing_s=draw(st.floats(2e-4, 4e-3)),
        token_s=draw(st.floats(1e-6, 1e-4)),
        wire_cpu_s=draw(seconds),
        wire_token_s=draw(st.floats(0, 5e-5)),
        link_s=draw(seconds),
        link_token_s=draw(st.floats(0, 1e-4)),
        noise=draw(st.floats(0, 0.3)),
        hiccup=draw(st.floats(0, 0.01)),
        dual_penalty=draw(st.floats(0.9, 1.8)),
        rng=np.random.default_rng(draw(st.integers(0, 2**32))),
    )


@settings(max_examples=40, deadline=None)
@given(
    group=groups(),
    kinds=st.lists(
        st.tuples(st.lists(st.integers(1, 400), min_size=5, max_size=5), st.integers(1, STEPS // 3)),
        min_size=1,
        max_size=4,
    ),
)
def test_the_rule_never_costs_two_percent_trials_included(group: Group, kinds: list[tuple[list[int], int]]) -> None:
    spans = [tokens_G[: group.ranks] for tokens_G, span in kinds for _ in range(span)]
    run = play(group, [spans[step % len(spans)] for step in range(STEPS)])
    assert run.speed >= 0.98


@settings(max_examples=25, deadline=None)
@given(
    token_s=st.floats(2e-5, 1e-4),
    share=st.floats(0.4, 0.6),
    tokens=st.integers(96, 400),
    ranks=st.integers(2, 4),
    layers=st.integers(6, 24),
    noise=st.floats(0, 0.15),
)
def test_what_two_streams_gain_where_communication_is_about_half_is_found(
    token_s: float, share: float, tokens: int, ranks: int, layers: int, noise: float
) -> None:
    group = Group(
        ranks=ranks,
        layers=layers,
        computing_s=2e-4,
        token_s=token_s,
        link_token_s=token_s * share / (1 - share),
        noise=noise,
    )
    run = play(group, [[tokens] * ranks] * STEPS)
    assert run.speed >= 1.3
    assert run.decisions[-1].mode == "dual"


@settings(max_examples=25, deadline=None)
@given(group=groups(), min_tokens=st.integers(2, 64))
def test_steps_below_the_least_tokens_run_one_stream(group: Group, min_tokens: int) -> None:
    rule = OverlapRule(layers=group.layers, ranks=group.ranks, min_tokens=min_tokens)
    run = play(group, [[min_tokens - 1] * group.ranks] * 100, rule)
    assert {decision.mode for decision in run.decisions} == {"single"}
