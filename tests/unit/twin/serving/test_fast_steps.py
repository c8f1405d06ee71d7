"""Step times off the grid are those of the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_doubles import PlainSteps

from fourlane.twin.serving.fast_steps import FastSteps, load_of

MODEL = PlainSteps(fixed=0.01, token=1e-4, pair=1e-9, position=1e-8)


@given(st.floats(0, 300), st.floats(0, 1e6), st.floats(0, 300))
def test_what_is_straight_is_exact(rows: float, context: float, mean: float) -> None:
    steps = FastSteps(MODEL, ranks=8)
    whole = MODEL.step(load_of((0.0, 0.0, rows, context, rows, mean), 8)).seconds
    assert steps.decode(rows, context, mean) == pytest.approx(whole, rel=1e-9)


def test_points_are_asked_for_once() -> None:
    model = PlainSteps(fixed=0.01, position=1e-8)
    steps = FastSteps(model, ranks=8)
    for context in range(100_000, 140_000, 10):
        steps.decode(64, context, 50.0)
    assert len(model.asked) <= 8


@given(st.integers(1, 8192), st.integers(0, 5), st.floats(0.01, 8192))
def test_prefill_is_read_off_the_same_grid(tokens: int, logits: int, mean: float) -> None:
    steps = FastSteps(MODEL, ranks=8)
    pairs = tokens * (tokens + 1) / 2
    whole = MODEL.step(load_of((tokens, pairs, 0.0, 0.0, logits, mean), 8)).seconds
    assert steps.prefill(tokens, pairs, logits=logits, mean=mean) == pytest.approx(whole, rel=1e-9)
