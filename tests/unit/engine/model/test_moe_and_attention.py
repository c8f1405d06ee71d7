"""Kernels that do the same in two ways, and the router, against each other and plain formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.engine.batch import StepBatch
from fourlane.engine.model.attention import NativeAttention, Rope, TorchAttention, rotate
from fourlane.engine.model.cpu_kernels import PackedExperts, PackedLinear
from fourlane.engine.model.linear import NativeLinear, RmsNorm, TorchLinear
from fourlane.engine.model.moe import DenseMlp, NativeMlp, NativeSharedExpert, Router, SharedExpert, TorchExperts

if TYPE_CHECKING:
    from torch import Tensor

MODEL, INNER = 24, 40


def expert_weights(slots: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate, up = (torch.randn(slots, INNER, MODEL, generator=generator).to(dtype) for _ in range(2))
    return gate, up, torch.randn(slots, MODEL, INNER, generator=generator).to(dtype)


def offsets(rows_of_slots: list[int]) -> list[int]:
    return [0, *torch.tensor(rows_of_slots).cumsum(0).tolist()]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=6), stored=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_native_and_torch_experts_agree_and_no_slot_sees_anothers_rows(rows: list[int], stored: torch.dtype) -> None:
    gate, up, down = expert_weights(len(rows), stored)
    x_RD = torch.randn(sum(rows), MODEL, generator=torch.Generator().manual_seed(1))
    offset_S1 = offsets(rows)
    by_torch = TorchExperts(torch.cat((gate, up), dim=1), down)(x_RD, offset_S1)
    by_native = PackedExperts.from_tensors(gate, up, down)(x_RD, offset_S1)
    plain = torch.empty_like(x_RD)
    for slot in range(len(rows)):
        part = slice(offset_S1[slot], offset_S1[slot + 1])
        h = F.silu(x_RD[part] @ gate[slot].float().T) * (x_RD[part] @ up[slot].float().T)
        plain[part] = h @ down[slot].float().T
    torch.testing.assert_close(by_torch, plain, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(by_native, plain, atol=1e-3, rtol=1e-4)


def test_one_grouped_matmul_equals_expert_by_expert() -> None:
    rows = [3, 0, 5, 1]
    gate, up, down = expert_weights(len(rows), torch.float32)
    experts = TorchExperts(torch.cat((gate, up), dim=1), down)
    x_RD = torch.randn(sum(rows), MODEL, generator=torch.Generator().manual_seed(1))
    grouped = experts._grouped(x_RD, offsets(rows))
    torch.testing.assert_close(grouped, experts(x_RD, offsets(rows)), atol=1e-3, rtol=1e-4)


def test_a_dense_mlp_is_the_same_in_native_kernels_and_in_torch() -> None:
    gate, up, down = expert_weights(1, torch.bfloat16)
    x_TD = torch.randn(7, MODEL)
    in_torch = DenseMlp(TorchLinear(torch.cat((gate[0], up[0]))), TorchLinear(down[0]))(x_TD)
    native = NativeMlp(PackedExperts.from_tensors(gate, up, down))(x_TD)
    torch.testing.assert_close(native, in_torch, atol=1e-3, rtol=1e-4)


def test_a_shared_expert_is_weighted_by_its_gate_and_a_row_has_the_same_bits_alone() -> None:
    gate, up, down = expert_weights(1, torch.float32)
    score = PackedLinear.from_tensor(10 * torch.randn(1, MODEL, generator=torch.Generator().manual_seed(3)))
    mlp = NativeMlp(PackedExperts.from_tensors(gate, up, down))
    x_TD, h_TD = torch.randn(2, 9, MODEL, generator=torch.Generator().manual_seed(4))
    native, in_torch = x_TD.clone(), x_TD.clone()
    NativeSharedExpert(mlp, score).add_to(native, h_TD)
    SharedExpert(mlp, score).add_to(in_torch, h_TD)
    weight_T1 = torch.sigmoid(score(h_TD))
    assert weight_T1.min() < 1e-3
    assert weight_T1.max() > 0.999
    torch.testing.assert_close(native, x_TD + weight_T1 * mlp(h_TD), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(native, in_torch, atol=1e-5, rtol=1e-5)
    for row in range(9):
        alone = x_TD[row : row + 1].clone()
        NativeSharedExpert(mlp, score).add_to(alone, h_TD[row : row + 1])
        assert torch.equal(alone[0], native[row])


def test_a_bias_is_added_in_both_kinds_of_projection() -> None:
    weight_ND, bias_N, x_RD = torch.randn(33, MODEL), torch.randn(33), torch.randn(4, MODEL)
    expected = x_RD @ weight_ND.T + bias_N
    torch.testing.assert_close(TorchLinear(weight_ND, bias_N)(x_RD), expected)
    torch.testing.assert_close(NativeLinear(PackedLinear.from_tensor(weight_ND), bias_N)(x_RD), expected)


def test_rms_norm_is_its_formula() -> None:
    x_TD, weight_D = torch.randn(5, MODEL), torch.randn(MODEL)
    expected = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight_D
    torch.testing.assert_close(RmsNorm(weight_D, 1e-6)(x_TD), expected)


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_router_takes_the_likeliest_experts_of_all(*, renormalise: bool) -> None:
    weight_ED, x_TD = torch.randn(9, MODEL), torch.randn(6, MODEL)
    topk_TK, weights_TK = Router(PackedLinear.from_tensor(weight_ED), top_k=3, renormalise=renormalise)(x_TD)
    p_TE = torch.softmax(x_TD @ weight_ED.T, dim=-1)
    expected_TK, expected_topk_TK = p_TE.sort(dim=-1, descending=True)
    expected_TK = expected_TK[:, :3]
    if renormalise:
        expected_TK = expected_TK / expected_TK.sum(-1, keepdim=True)
    assert topk_TK.dtype == torch.int64
    assert torch.equal(topk_TK, expected_topk_TK[:, :3])
    torch.testing.assert_close(weights_TK, expected_TK)


def test_rotation_turns_halves_as_complex_numbers() -> None:
    x_THd, position_T = torch.randn(5, 2, 8), torch.tensor([0, 1, 17, 4000, 2])
    rotated = rotate(x_THd, Rope.of(10000.0, 8, torch.device("cpu")).at(position_T, torch.float32))
    frequency = 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones(5, 4, dtype=torch.float64), position_T.double()[:, None] * frequency)
    expected = torch.complex(x_THd[..., :4].double(), x_THd[..., 4:].double()) * turn[:, None]
    torch.testing.assert_close(rotated, torch.cat((expected.real, expected.imag), -1).float(), atol=1e-3, rtol=0)
    assert torch.equal(rotated[0], x_THd[0]), "position 0 is not turned"


def attention_by_formula(q_THd: Tensor, kv_QBShd: Tensor, batch: StepBatch) -> Tensor:
    out, heads, kv_heads = torch.empty_like(q_THd), q_THd.shape[1], kv_QBShd.shape[3]
    for s, context in enumerate(batch.context_S):
        first, end = batch.query_start_S1[s : s + 2]
        k, v = (pages[batch.block_table_SB[s].long()].flatten(0, 1)[:context] for pages in kv_QBShd)
        for row in range(first, end):
            seen = context - (end - first) + row - first + 1
            for head in range(heads):
                group = head // (heads // kv_heads)
                p = torch.softmax(k[:seen, group] @ q_THd[row, head] / q_THd.shape[2] ** 0.5, -1)
                out[row, head] = p @ v[:seen, group]
    return out.flatten(1)


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 13)), max_size=5),
    heads=st.sampled_from([(4, 4, 8), (6, 2, 16), (5, 1, 12)]),
    block_size=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_both_ways_to_attend_to_pages_are_the_formula(
    parts: list[tuple[int, int]], heads: tuple[int, int, int], block_size: int, seed: int
) -> None:
    query_heads, kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(seed)
    contexts = [new + old for new, old in parts]
    pages = [-(-context // block_size) for context in contexts]
    order = (torch.randperm(sum(pages) + 3, generator=generator)).int()
    table_SB = torch.zeros(len(parts), max(pages, default=0), dtype=torch.int32)
    for s, count in enumerate(pages):
        table_SB[s, :count] = order[sum(pages[:s]) : sum(pages[: s + 1])]
    starts = [0, *torch.tensor([new for new, _ in parts], dtype=torch.int64).cumsum(0).tolist()]
    kv_QBShd = torch.randn(2, len(order), block_size, kv_heads, head_dim, generator=generator)
    q_THd = torch.randn(starts[-1], query_heads, head_dim, generator=generator)
    nothing = torch.empty(0, dtype=torch.int64)
    batch = StepBatch(nothing, nothing, nothing, starts, contexts, table_SB, nothing)
    expected = attention_by_formula(q_THd, kv_QBShd, batch)
    for backend in (TorchAttention(), NativeAttention()):
        found = backend.prepare(batch, block_size)(q_THd, kv_QBShd)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
