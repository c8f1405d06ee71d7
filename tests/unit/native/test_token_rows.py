"""Native norms, heads, choice of experts and row orders: equal to PyTorch, the same bits alone and in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane import _native

torch = pytest.importorskip("torch")

from fourlane.engine.exchange.rows import sort_by_slot, sort_in_torch, weighted_sum_in_torch  # noqa: E402
from fourlane.engine.model.attention import NativeHeads, Rope, TorchHeads  # noqa: E402
from fourlane.engine.model.linear import NativeRmsNorm, RmsNorm  # noqa: E402
from fourlane.engine.model.moe import NativeRouter, Router  # noqa: E402

ISAS = _native.instruction_sets()
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 9), columns=st.integers(1, 300))
def test_the_norm_equals_torch(tokens: int, columns: int) -> None:
    x_TD, weight_D = random(tokens, columns), random(columns, seed=1)
    torch.testing.assert_close(NativeRmsNorm(weight_D, 1e-6)(x_TD), RmsNorm(weight_D, 1e-6)(x_TD), **CLOSE)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [1, 15, 16, 33, 256])
def test_a_normed_row_is_right_and_has_the_same_bits_alone(isa: str, columns: int) -> None:
    x, weight = random(7, columns).numpy(), random(columns, seed=1).numpy()
    batch, alone = np.empty_like(x), np.empty_like(x)
    _native.rms_norm(x, weight, 1e-5, batch, isa)
    for row in range(7):
        _native.rms_norm(x[row : row + 1], weight, 1e-5, alone[row : row + 1], isa)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(batch, expected, rtol=2e-6, atol=1e-7)
    assert np.array_equal(batch, alone)


def place(
    kind: type[TorchHeads],
    shape: tuple[int, int, int],
    qkv_TN: Any,
    positions: list[int],
    slots: list[int],
    *,
    normed: bool = True,
) -> tuple[Any, Any]:
    """Return the heads and the pages; pages begin as -1."""
    heads, kv_heads, head_dim = shape
    pages = torch.full((2, 4, 8, kv_heads, head_dim), -1.0)
    angles = Rope.of(10000.0, head_dim, torch.device("cpu")).at(torch.tensor(positions), torch.float32)
    norm_Hd = random(heads + kv_heads if normed else 0, head_dim, seed=2)
    slot_T = torch.tensor(slots, dtype=torch.int64)
    return kind(heads, kv_heads, 1e-6, norm_Hd)(qkv_TN.clone(), angles, slot_T, pages), pages


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([2, 16, 24, 32, 128])),
    slots=st.lists(st.integers(0, 31), max_size=9, unique=True),
    normed=st.booleans(),
)
def test_heads_and_pages_equal_torch(shape: tuple[int, int, int], slots: list[int], *, normed: bool) -> None:
    qkv_TN = random(len(slots), (shape[0] + 2 * shape[1]) * shape[2])
    positions = list(range(len(slots)))
    found = place(NativeHeads, shape, qkv_TN, positions, slots, normed=normed)
    references = place(TorchHeads, shape, qkv_TN, positions, slots, normed=normed)
    for native, reference in zip(found, references, strict=True):
        torch.testing.assert_close(native, reference, rtol=2e-6, atol=2e-6)
    for token, slot in enumerate(slots):
        alone = place(NativeHeads, shape, qkv_TN[token : token + 1], [token], [slot], normed=normed)
        assert torch.equal(alone[0][0], found[0][token])


def test_a_place_outside_the_pages_is_refused_and_nothing_is_written() -> None:
    for slots in ([0, 32], [-1, 0]):
        with pytest.raises(ValueError, match="slots"):
            place(NativeHeads, (2, 1, 16), random(2, 64), [0, 1], slots)
    with pytest.raises(ValueError, match="qkv"):
        place(NativeHeads, (2, 1, 16), random(2, 80), [0, 1], [0, 1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [1, 15, 16, 33])
def test_gated_rows_are_added_by_the_sigmoid_of_their_gates_whatever_these_are(isa: str, columns: int) -> None:
    y, before = random(7, columns).numpy(), random(7, columns, seed=1).numpy()
    gates = np.array([0, 1.5, -1.5, 20, -20, 1000, -1000], dtype=np.float32)
    out = before.copy()
    _native.add_gated(y, gates, out, isa)
    wide = 1 / (1 + np.exp(-np.clip(gates.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(out, before + y * wide[:, None], rtol=2e-6, atol=1e-6)
    assert np.array_equal(out[6], before[6])
    with pytest.raises(ValueError, match="a gate for each row"):
        _native.add_gated(y, gates[:6], out, isa)


class Given:
    """A score that is the input itself."""

    def __call__(self, x_TD: Any) -> Any:
        return x_TD


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 9), experts=st.integers(1, 140), renormalise=st.booleans(), data=st.data())
def test_the_choice_of_experts_equals_torch(
    tokens: int, experts: int, *, renormalise: bool, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(experts, 9)))
    logits_TE = random(tokens, experts, seed=3) * 3
    topk_TK, weights_TK = NativeRouter(Given(), top_k, renormalise)(logits_TE)
    expected_topk_TK, expected_weights_TK = Router(Given(), top_k, renormalise)(logits_TE)
    assert torch.equal(topk_TK, expected_topk_TK)
    torch.testing.assert_close(weights_TK, expected_weights_TK, **CLOSE)
    for token in range(tokens):
        alone = NativeRouter(Given(), top_k, renormalise)(logits_TE[token : token + 1])
        assert torch.equal(alone[0][0], topk_TK[token])
        assert torch.equal(alone[1][0], weights_TK[token])


@pytest.mark.parametrize("isa", ISAS)
def test_equal_logits_choose_the_lower_expert_and_nan_chooses_none_twice(isa: str) -> None:
    renormalise = True
    logits = np.array([[1, 2, 2, 0, 2], [np.nan, np.nan, 1, np.nan, 5]], np.float32)
    experts, weights = np.full((2, 3), -1), np.empty((2, 3), np.float32)
    _native.choose_experts(logits, renormalise, experts, weights, isa)
    assert experts[0].tolist() == [1, 2, 4]
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)
    assert len(set(experts[1])) == 3
    assert all(0 <= expert < 5 for expert in experts[1])


@st.composite
def choices(draw: st.DrawFn) -> tuple[Any, Any, int]:
    """Return (topk, slot of each expert, slots); some slots are empty."""
    experts, spare = draw(st.integers(1, 12)), draw(st.integers(0, 3))
    slots = draw(st.permutations(range(experts + spare)))[:experts]
    top_k = draw(st.integers(1, min(experts, 4)))
    row = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    rows = draw(st.lists(row, max_size=20))
    topk_TK = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), top_k)
    return topk_TK, torch.tensor(slots), experts + spare


@given(choice=choices())
def test_the_order_by_slot_equals_torch(choice: tuple[Any, Any, int]) -> None:
    topk_TK, slot_of_E, slots = choice
    found, expected = sort_by_slot(topk_TK, slot_of_E, slots), sort_in_torch(topk_TK, slot_of_E)
    assert torch.equal(found.order_R, expected.order_R)
    assert torch.equal(found.rows_R, expected.rows_R)
    assert torch.equal(found.count_E, expected.count_E)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(choice=choices(), columns=st.integers(1, 70))
def test_the_weighted_sum_equals_torch_and_itself_alone(isa: str, choice: tuple[Any, Any, int], columns: int) -> None:
    topk_TK, slot_of_E, _ = choice
    tokens, top_k = topk_TK.shape
    order_R = sort_in_torch(topk_TK, slot_of_E).order_R
    y_RD, weights_TK = random(tokens * top_k, columns), random(tokens, top_k, seed=4)
    x = np.full((tokens, columns), np.nan, np.float32)
    _native.weighted_sum(y_RD.numpy(), order_R.numpy(), weights_TK.numpy(), x, isa)
    expected_TD = weighted_sum_in_torch(y_RD, order_R, weights_TK)
    torch.testing.assert_close(torch.from_numpy(x), expected_TD, **CLOSE)
    for token in range(tokens):
        rows = y_RD[torch.argsort(order_R)[token * top_k : (token + 1) * top_k]].numpy()
        alone = np.empty((1, columns), np.float32)
        _native.weighted_sum(rows, np.arange(top_k), weights_TK[token : token + 1].numpy(), alone, isa)
        assert np.array_equal(alone[0], x[token])


def test_orders_and_experts_out_of_range_are_refused() -> None:
    order, rows, counts = (np.empty(n, np.int64) for n in (2, 2, 3))
    slot_of = np.array([0, 1, 2])
    for experts, slots in (([[0, 3]], 3), ([[-1, 0]], 3), ([[0, 1]], 2)):
        with pytest.raises(ValueError, match="no such"):
            _native.sort_by_slot(np.array(experts), slot_of, slots, order, rows, counts)
    with pytest.raises(ValueError, match="each pair"):
        _native.sort_by_slot(np.array([[0, 1, 2]]), slot_of, 3, order, rows, counts)
    renormalise = True
    y, weights, out = np.zeros((2, 4), np.float32), np.zeros((1, 2), np.float32), np.zeros((1, 4), np.float32)
    for bad in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="order"):
            _native.weighted_sum(y, np.array(bad), weights, out)
    with pytest.raises(ValueError, match="experts"):
        _native.choose_experts(y, renormalise, np.empty((2, 5), np.int64), np.zeros((2, 5), np.float32))
