"""The torch face of the CPU kernels."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fourlane.engine.model.cpu_kernels import PackedExperts, PackedLinear  # noqa: E402 (after the skip)

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_linear_equals_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(75, 64).to(dtype), torch.randn(19, 64)
    torch.testing.assert_close(PackedLinear.from_tensor(weight)(x), x @ weight.float().T, atol=1e-5, rtol=1e-5)


def test_a_float32_weight_can_be_stored_as_bfloat16_and_back() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 24), torch.randn(3, 24)
    rounded = weight.to(torch.bfloat16)
    as_bfloat16 = PackedLinear.from_tensor(weight, torch.bfloat16)
    as_float32 = PackedLinear.from_tensor(rounded, torch.float32)
    assert torch.equal(as_bfloat16(x), as_float32(x))
    assert as_bfloat16.nbytes * 2 == as_float32.nbytes


def test_several_weights_share_one_packed_linear() -> None:
    torch.manual_seed(0)
    q, k, v, x = torch.randn(64, 48), torch.randn(32, 48), torch.randn(32, 48), torch.randn(5, 48)
    packed = PackedLinear(128, 48, dtype=torch.float32)
    packed.load(q)
    packed.load(k, first_row=64)
    packed.load(v, first_row=96)
    assert torch.equal(packed(x), PackedLinear.from_tensor(torch.cat([q, k, v]))(x))
    with pytest.raises(ValueError, match="first_row"):
        packed.load(k, first_row=112)
    with pytest.raises(ValueError, match="first_row"):
        packed.load(q, first_row=96)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_experts_equal_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up, down = (torch.randn(3, *shape).to(dtype) / 8 for shape in ((40, 64), (40, 64), (64, 40)))
    experts = PackedExperts.from_tensors(gate, up, down)
    x, offsets = torch.randn(10, 64), [0, 4, 4, 10]
    found = experts(x, offsets)
    for slot in (0, 2):
        rows = slice(offsets[slot], offsets[slot + 1])
        hidden = torch.nn.functional.silu(x[rows] @ gate[slot].float().T) * (x[rows] @ up[slot].float().T)
        torch.testing.assert_close(found[rows], hidden @ down[slot].float().T, atol=1e-5, rtol=1e-5)


def test_a_slot_never_loaded_gives_zeros() -> None:
    experts = PackedExperts(2, 8, 8, dtype=torch.bfloat16)
    experts.load(0, torch.ones(8, 8), torch.ones(8, 8), torch.ones(8, 8))
    found = experts(torch.ones(2, 8), [0, 1, 2])
    assert found[0].min() > 0
    assert not found[1].any()


def test_a_transposed_view_is_taken_and_its_grad_ignored() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 32, requires_grad=True), torch.randn(32, 6, requires_grad=True)
    packed = PackedLinear.from_tensor(weight)
    torch.testing.assert_close(packed(x.T), (x.T @ weight.T).detach(), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float32 or torch\.bfloat16"):
        PackedLinear.from_tensor(torch.ones(4, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="expert weights"):
        PackedExperts(1, 8, 16, dtype=torch.float32).load(0, torch.ones(8, 16), torch.ones(16, 8), torch.ones(8, 16))
