"""What is reached of GPUs' peaks: of which there are figures, and whose stand for the others."""

import pytest

from fourlane.errors import SpecError
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.hardware import gpu_models


def test_every_gpu_of_the_catalog_reaches_shares_of_its_peaks_and_says_where_they_are_from() -> None:
    for gpu in gpu_models():
        reached = efficiencies(gpu)
        shares = (reached.dense, reached.grouped, reached.attention_prefill, reached.attention_decode)
        for share in (*shares, reached.memory, reached.sustained):
            assert 0.1 < share < 1.0
        for figure in ("dense", "memory", "sustained", "kernel", "reserve"):
            assert reached.source(figure)


def test_a_gpu_without_figures_of_its_own_takes_those_of_another_and_says_so() -> None:
    assert efficiencies("b200").dense == efficiencies("h100").dense
    assert efficiencies("b200").source("sustained") == efficiencies("b200").source("dense") == "assumed: as on h100"
    assert not efficiencies("b200").fitted


def test_figures_say_on_what_they_were_fitted_or_where_they_were_read() -> None:
    assert efficiencies("h800").source("sustained") == "fitted: prefill: DeepSeek profile"
    assert efficiencies("h800").source("attention_decode").startswith("FlashMLA README")


def test_a_gpu_that_is_not_in_the_catalog_is_refused() -> None:
    with pytest.raises(SpecError, match="hardware: expected one of"):
        efficiencies("h9000")
