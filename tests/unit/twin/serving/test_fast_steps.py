"""Step times off the grid are those of the model."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_doubles import PlainSteps

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.twin import Assumptions
from fourlane.twin.exchange.table import IdealExchange
from fourlane.twin.expert_balance import ForcedBalance
from fourlane.twin.kernel_times import RooflineTimes
from fourlane.twin.serving.fast_steps import FastSteps, load_of
from fourlane.twin.step_model import StepModel, step_figures

MODEL = PlainSteps(fixed=0.01, token=1e-4, pair=1e-9, position=1e-8)


@given(st.floats(1, 300), st.floats(0, 1e4), st.floats(0, 1))
def test_what_is_straight_is_exact(rows: float, each: float, share: float) -> None:
    steps = FastSteps(MODEL, 8, "decode")
    whole = MODEL.step(load_of((rows, each, share, 0.0), 8, "decode")).seconds
    assert steps.seconds(rows, rows * each, rows * share) == pytest.approx(whole, rel=1e-9)


@given(st.integers(1, 8192), st.integers(0, 5), st.floats(0.001, 1))
def test_prefill_is_read_off_the_same_grid(tokens: int, logits: int, share: float) -> None:
    steps = FastSteps(MODEL, 8, "prefill")
    whole = MODEL.step(load_of((tokens, (tokens + 1) / 2, share, logits), 8, "prefill")).seconds
    pairs = tokens * (tokens + 1) / 2
    assert steps.seconds(tokens, pairs, tokens * share, logits=logits) == pytest.approx(whole, rel=1e-9)


def test_points_are_asked_for_once() -> None:
    model = PlainSteps(fixed=0.01, position=1e-8)
    steps = FastSteps(model, 8, "decode")
    for context in range(100_000, 130_000, 10):
        steps.seconds(64, context, 50.0)
    assert len(model.asked) <= 8


def test_the_nearest_point_is_one_that_was_asked_for() -> None:
    steps = FastSteps(MODEL, 8, "decode")
    steps.seconds(70.0, 123_456.0, 33.0)
    assert steps.nearest(70.0, 123_456.0, 33.0) in steps._points


@pytest.mark.parametrize(("phase", "ranks"), [("prefill", 32), ("decode", 144)])
def test_a_grid_errs_by_less_than_a_hundredth_where_the_model_does_not_bend(phase: str, ranks: int) -> None:
    """Where two streams cease to hide the exchange a step's time bends, and a few steps err by more."""
    deepseek, assumptions = load_architecture("deepseek-v3"), Assumptions()
    model = StepModel(
        architecture=deepseek,
        phase=phase,  # type: ignore[arg-type]
        kernels=RooflineTimes(deepseek, "h800", assumptions),
        exchange=IdealExchange(dispatch_bytes=7408.0, combine_bytes=14336.0, copies=8.0, rate=40e9),
        balance=ForcedBalance(held_experts=288 // ranks, top_k=deepseek.top_k),
        figures=step_figures(phase, "h800", assumptions),  # type: ignore[arg-type]
    )
    steps, draw = FastSteps(model, ranks, phase), random.Random(3)  # type: ignore[arg-type]
    errors = []
    for _ in range(90):
        most = 8192 if phase == "prefill" else 256
        rows = min(most, round(2 ** draw.uniform(0, 13.5 if phase == "prefill" else 8)))
        each = draw.uniform(100, 20_000)
        share = draw.uniform(1 / ranks, 1)
        exact = model.step(load_of((rows, each, share, 1.0), ranks, phase)).seconds  # type: ignore[arg-type]
        errors.append(abs(steps.seconds(rows, rows * each, rows * share, logits=1) / exact - 1))
    assert np.mean(errors) < 0.003
    assert np.quantile(errors, 0.93) < 0.01
    assert max(errors) < 0.03
