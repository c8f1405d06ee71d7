"""How full the fullest rank is: by placement, replicas, splitting and the size of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture import Architecture, GroupedQueryAttention
from fourlane.spec.expert_files import LoadArrays, write_loads
from fourlane.spec.twin import Experts
from fourlane.twin.expert_balance import TOKENS, expert_balance, physical_slots

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Architecture(
    name="small",
    layers=5,
    dense_layers=1,
    hidden=512,
    vocabulary=1000,
    attention=GroupedQueryAttention(heads=8, kv_heads=2, head_width=64),
    experts=64,
    top_k=4,
    expert_inner=256,
    dense_inner=1024,
    source="made up",
)


def test_balanced_placement_beats_experts_in_order() -> None:
    placed = expert_balance(SMALL, 16, 0, Experts(lean=0.0, split=False)).at(4096)
    in_order = expert_balance(SMALL, 16, 0, Experts(lean=0.0, split=False, placement="linear")).at(4096)
    assert 1.0 <= placed.max_over_mean < 0.8 * in_order.max_over_mean


def test_replicas_and_splitting_bring_batches_that_lean_near_one() -> None:
    without = expert_balance(SMALL, 16, 0, Experts(lean=0.3, split=False)).at(1024).max_over_mean
    evenly = expert_balance(SMALL, 16, 16, Experts(lean=0.3, split=False)).at(1024).max_over_mean
    split = expert_balance(SMALL, 16, 16, Experts(lean=0.3)).at(1024).max_over_mean
    assert split < evenly < without
    assert split < 1.06


def test_small_batches_are_less_even_and_touch_fewer_experts() -> None:
    curve = expert_balance(SMALL, 16, 0, Experts())
    shares = [curve.at(tokens) for tokens in (1, 16, 256)]
    assert shares[0].max_over_mean > shares[1].max_over_mean > shares[2].max_over_mean
    assert shares[0].active_experts <= shares[1].active_experts <= shares[2].active_experts <= curve.held_experts == 4


def test_between_drawn_batches_the_curve_is_between_their_values() -> None:
    curve = expert_balance(SMALL, 8, 8, Experts())
    low, high = curve.at(TOKENS[3]), curve.at(TOKENS[4])
    between = curve.at((TOKENS[3] * TOKENS[4]) ** 0.5)
    assert between.max_over_mean == pytest.approx((low.max_over_mean + high.max_over_mean) / 2)
    assert curve.at(10 * TOKENS[-1]) == curve.at(TOKENS[-1])
    assert curve.at(0.0) == curve.at(TOKENS[0])


def test_power_law_skew_shows_in_order_and_uniform_popularity_hardly() -> None:
    uniform = expert_balance(SMALL, 16, 0, Experts(popularity="uniform", lean=0.0, placement="linear")).at(8192)
    power_law = expert_balance(SMALL, 16, 0, Experts(popularity="zipf:1.2", lean=0.0, placement="linear")).at(8192)
    assert uniform.max_over_mean < 1.03
    assert power_law.max_over_mean > 2


def test_forced_balance_gives_every_rank_the_same() -> None:
    curve = expert_balance(SMALL, 16, 16, Experts(forced=True))
    assert (curve.at(3).max_over_mean, curve.at(3).received_max_over_mean) == (1.0, 1.0)
    assert curve.held_experts == 5
    assert curve.at(0.5).active_experts == 2


def test_the_same_seed_gives_the_same_curve_and_another_one_another() -> None:
    first = expert_balance(SMALL, 8, 0, Experts(lean=0.2), seed=3)
    expert_balance.__globals__["_balance"].cache_clear()
    assert expert_balance(SMALL, 8, 0, Experts(lean=0.2), seed=3) == first
    assert expert_balance(SMALL, 8, 0, Experts(lean=0.2), seed=4) != first


def test_prefill_and_decode_have_popularities_of_their_own() -> None:
    experts = Experts(placement="linear")
    assert expert_balance(SMALL, 8, 0, experts, phase="prefill") != expert_balance(SMALL, 8, 0, experts)


def test_recorded_loads_of_the_live_engine_are_read_by_phase(tmp_path: Path) -> None:
    hot = np.ones((1, 4, 64), dtype=np.int64)
    hot[:, :, 0] = 40
    even = np.ones((1, 4, 64), dtype=np.int64)
    write_loads(tmp_path / "loads.json", {"prefill": LoadArrays(even), "decode": LoadArrays(hot)})
    experts = Experts(popularity=str(tmp_path / "loads.json"), placement="linear", lean=0.0)
    decode = expert_balance(SMALL, 16, 0, experts, phase="decode")
    assert decode.at(8192).max_over_mean > 3
    assert expert_balance(SMALL, 16, 0, experts, phase="prefill").at(8192).max_over_mean < 1.03
    assert "popularity of decode recorded in loads.json" in decode.source


def test_loads_of_another_model_are_refused(tmp_path: Path) -> None:
    write_loads(tmp_path / "loads.json", {"decode": LoadArrays(np.ones((1, 4, 32), dtype=np.int64))})
    with pytest.raises(SpecError, match=r"loads\.json: expected loads of 64 experts a layer, got 32"):
        expert_balance(SMALL, 16, 0, Experts(popularity=str(tmp_path / "loads.json")))


@pytest.mark.parametrize("popularity", ["zipf:much", "zipf:-1", "lognormall"])
def test_an_unknown_popularity_is_refused_with_what_is_known(popularity: str) -> None:
    with pytest.raises(SpecError, match=r"experts\.popularity: expected .*zipf:1\.2"):
        expert_balance(SMALL, 16, 0, Experts(popularity=popularity))


def test_more_replicas_than_ranks_can_hold_are_refused() -> None:
    with pytest.raises(SpecError, match="expected at most 192 on 4 ranks"):
        expert_balance(SMALL, 4, 200, Experts())


def test_slots_are_rounded_up_so_that_ranks_hold_equally_many() -> None:
    assert physical_slots(256, 32, 144) == 288
    assert physical_slots(256, 0, 144) == 288
    assert physical_slots(256, 32, 32) == 288


def test_groups_kept_in_their_nodes_cost_balance_and_only_where_groups_divide_by_nodes() -> None:
    grouped = Architecture(
        **{name: getattr(SMALL, name) for name in SMALL.__struct_fields__ if name != "groups"}, groups=4
    )

    def fullest(placement: str, nodes: int) -> float:
        experts = Experts(lean=0.0, split=False, placement=placement)  # type: ignore[arg-type]
        return expert_balance(grouped, 16, 16, experts, nodes=nodes).at(4096).max_over_mean

    assert fullest("hierarchical", 4) > 1.02 * fullest("balanced", 4)
    assert fullest("hierarchical", 8) == fullest("balanced", 8)
    assert fullest("hierarchical", 1) == fullest("balanced", 1)
