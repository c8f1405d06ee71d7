"""Lengths and arrivals: what is asked for in text and figures is what is drawn."""

from __future__ import annotations

import random
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.spec.request_load import Arrivals, Lengths


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers())
def test_uniform_lengths_stay_in_their_range(low: int, span: int, seed: int) -> None:
    lengths = Lengths.parse(f"{low}..{low + span}", name="--input-len")
    assert low <= lengths.draw(random.Random(seed)) <= low + span


def test_lognormal_lengths_have_the_median_and_p99_asked_for() -> None:
    lengths = Lengths.parse("lognormal:200/1500", name="--input-len")
    drawn = sorted(lengths.draw(random.Random(seed)) for seed in range(4000))
    assert drawn[2000] == pytest.approx(200, rel=0.1)
    assert drawn[3960] == pytest.approx(1500, rel=0.25)
    assert drawn[0] >= 1


@pytest.mark.parametrize("text", ["", "0", "-4", "8..4", "lognormal:9", "many", "1.5", "lognormal:0/5"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--output-len: expected a count of tokens"):
        Lengths.parse(text, name="--output-len")


@pytest.mark.parametrize(
    "given_arrivals",
    [{}, {"concurrency": 1, "rate": 1.0}, {"concurrency": 0}, {"rate": 0.0}, {"rate": -1.0},
     {"rate": float("nan")}, {"rate": 1.0, "burstiness": -1.0}],
)  # fmt: skip
def test_impossible_arrivals_are_refused(given_arrivals: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        Arrivals(**given_arrivals)  # type: ignore[arg-type]


@pytest.mark.parametrize("burstiness", [0.0, 1.0, 3.0])
def test_gaps_have_the_mean_and_variation_asked_for(burstiness: float) -> None:
    times = list(islice(Arrivals(rate=50.0, burstiness=burstiness).times(random.Random(1)), 20001))
    gaps = [after - before for before, after in pairwise(times) if before is not None]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert deviation / mean == pytest.approx(burstiness, rel=0.1, abs=1e-9)
