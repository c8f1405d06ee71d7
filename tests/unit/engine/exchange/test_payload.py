"""Forms in which rows travel to experts: as they are, and as float8 with scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane import _native
from fourlane.errors import SpecError

torch = pytest.importorskip("torch")

from one_process import OneProcess  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from fourlane.engine.exchange.local import LocalExchange  # noqa: E402
from fourlane.engine.exchange.payload import (  # noqa: E402
    AS_IS,
    FLOAT8,
    FLOAT8_BLOCK,
    pack_float8_in_torch,
    payload_of,
    unpack_float8_in_torch,
)
from fourlane.engine.model.config import resolve_model_path  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LEAST_SUBNORMAL = {torch.float32: 0.0, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


def rows(tokens: int, dim: int, *, seed: int = 0, spread: float = 3.0) -> Any:
    """Return rows whose elements and whose blocks differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, dim, generator=generator) * torch.exp(
        spread * torch.randn(tokens, dim, generator=generator)
    )


def every_kind_of_number() -> Any:
    """Return [511, 128] float32 of all exponents and both signs, NaN and infinities among them."""
    return (
        torch.arange(0, 2**32, 65537, dtype=torch.int64).to(torch.int32)[: 512 * 128].view(torch.float32).view(-1, 128)
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.int64], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_rows_as_they_are_come_back_bit_for_bit(dtype: Any, tokens: int) -> None:
    x_TD = (rows(tokens, 24) * 50).clamp(-400, 400).to(dtype)
    packed = AS_IS.pack(x_TD)
    assert packed.dtype == torch.uint8
    assert packed.shape == (tokens, AS_IS.row_bytes(24, dtype))
    again = AS_IS.unpack(packed, 24, dtype)
    assert again.dtype == dtype
    assert torch.equal(again.view(-1).view(torch.uint8), x_TD.view(-1).view(torch.uint8))


def test_rows_that_do_not_lie_side_by_side_are_packed_all_the_same() -> None:
    x_TD = rows(3, 200)[:, ::2]
    assert torch.equal(AS_IS.unpack(AS_IS.pack(x_TD), 100, torch.float32), x_TD)
    assert torch.equal(FLOAT8.pack(x_TD), FLOAT8.pack(x_TD.clone()))


def test_empty_tensors_with_strides_of_zero_are_packed() -> None:
    x_TD = torch.from_numpy(np.empty((0, 40), dtype=np.float32))
    for payload in (AS_IS, FLOAT8):
        packed = payload.pack(x_TD)
        assert packed.shape == (0, payload.row_bytes(40, torch.float32))
        assert payload.unpack(packed, 40, torch.float32).shape == (0, 40)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 5), dim=st.integers(1, 400), seed=st.integers(0, 1000))
def test_the_native_float8_is_that_of_torch_bit_for_bit(tokens: int, dim: int, seed: int) -> None:
    x_TD = rows(tokens, dim, seed=seed)
    packed = FLOAT8.pack(x_TD)
    assert packed.shape == (tokens, FLOAT8.row_bytes(dim, torch.float32))
    assert torch.equal(packed, pack_float8_in_torch(x_TD))
    found = FLOAT8.unpack(packed, dim, torch.float32)
    assert torch.equal(found, unpack_float8_in_torch(packed, dim, torch.float32))


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_every_kind_of_number_is_packed_alike_by_every_instruction_set(isa: str) -> None:
    for x_TD in (every_kind_of_number(), every_kind_of_number().t().contiguous()):
        packed = np.empty((x_TD.shape[0], FLOAT8.row_bytes(x_TD.shape[1], torch.float32)), dtype=np.uint8)
        _native.pack_float8(x_TD.numpy(), packed, isa)
        expected = pack_float8_in_torch(x_TD)
        assert np.array_equal(packed, expected.numpy())
        found = np.empty(x_TD.shape, dtype=np.float32)
        _native.unpack_float8(packed, found, isa)
        want = unpack_float8_in_torch(expected, x_TD.shape[1], torch.float32)
        assert np.array_equal(found, want.numpy(), equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(DTYPES), dim=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_an_element_is_off_by_a_sixteenth_of_itself_or_a_trace_of_its_blocks_greatest(
    dtype: Any, dim: int, seed: int
) -> None:
    x_TD = rows(3, dim, seed=seed).clamp(-6e4, 6e4).to(dtype)
    found = FLOAT8.unpack(FLOAT8.pack(x_TD), dim, dtype)
    assert found.dtype == dtype
    error, wide = (found.double() - x_TD.double()).abs(), x_TD.double().abs()
    for first in range(0, dim, FLOAT8_BLOCK):
        block = slice(first, first + FLOAT8_BLOCK)
        greatest = wide[:, block].amax(dim=1, keepdim=True)
        allowed = torch.maximum(wide[:, block] / 16, greatest * 2.0**-18) + LEAST_SUBNORMAL[dtype] / 2
        assert (error[:, block] <= allowed).all()


def test_the_bound_is_as_tight_as_the_format_allows() -> None:
    # 17/16 lies half way between two codes when its block's greatest is a power of two times 448
    x_TD = torch.tensor([[448.0, 17.0, -17.0, 0.0, -0.0]])
    found = FLOAT8.unpack(FLOAT8.pack(x_TD), 5, torch.float32)
    assert found.tolist() == [[448.0, 16.0, -16.0, 0.0, -0.0]]
    assert found.signbit().tolist() == x_TD.signbit().tolist()


def test_blocks_of_zeros_are_exact_and_tiny_numbers_do_not_divide_by_zero() -> None:
    x_TD = torch.zeros(2, 256)
    x_TD[1, 5] = 1e-44
    found = FLOAT8.unpack(FLOAT8.pack(x_TD), 256, torch.float32)
    assert torch.equal(found[0], x_TD[0])
    assert found.isfinite().all()
    assert (found - x_TD).abs().max() < 1e-40


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_arrives_as_nan_and_leaves_its_neighbours_alone(bad: float) -> None:
    x_TD = rows(2, 130)
    clean = FLOAT8.unpack(FLOAT8.pack(x_TD.clone()), 130, torch.float32)
    place = int(x_TD[0, :128].abs().argmin())  # not the one the scale follows from
    x_TD[0, place] = bad
    found = FLOAT8.unpack(FLOAT8.pack(x_TD), 130, torch.float32)
    assert found[0, place].isnan()
    found[0, place] = clean[0, place]
    assert torch.equal(found, clean)


def test_pytorch_makes_nan_of_infinities_too_though_its_own_cast_does_not() -> None:
    x_TD = rows(1, 128)
    x_TD[0, :2] = torch.tensor([float("inf"), float("-inf")])
    assert torch.equal(pack_float8_in_torch(x_TD), FLOAT8.pack(x_TD))
    assert pack_float8_in_torch(x_TD)[0, :2].tolist() == [0x7F, 0xFF]


def test_pytorch_divides_as_the_core_does_where_that_decides_between_two_codes() -> None:
    x_TD = torch.zeros(1, 128)
    x_TD[0, :2] = torch.tensor([3.9375, 0.59765625])  # 0.59765625 * (448 / 3.9375): 68, or a little more
    assert torch.equal(pack_float8_in_torch(x_TD), FLOAT8.pack(x_TD))


def test_the_greatest_of_all_numbers_does_not_become_infinite() -> None:
    x_TD = torch.full((1, 128), torch.finfo(torch.float32).max)
    assert FLOAT8.unpack(FLOAT8.pack(x_TD), 128, torch.float32).isfinite().all()


def test_a_row_has_the_same_bytes_alone_and_among_others() -> None:
    x_TD = rows(9, 300)
    assert torch.equal(FLOAT8.pack(x_TD), torch.cat([FLOAT8.pack(row[None]) for row in x_TD]))


def test_float8_takes_little_more_than_a_quarter_of_float32() -> None:
    assert FLOAT8.row_bytes(7168, torch.bfloat16) == 7168 + 56 * 4
    assert FLOAT8.row_bytes(7168, torch.float32) / AS_IS.row_bytes(7168, torch.float32) < 0.26


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused_with_what_to_do(dtype: Any) -> None:
    with pytest.raises(SpecError, match=r'exchange\.dispatch.*set it to "activations"'):
        FLOAT8.pack(torch.ones(2, 8).to(dtype))


def test_a_deployments_words_name_the_forms() -> None:
    assert payload_of("activations") is AS_IS
    assert payload_of("float8") is FLOAT8


def test_the_bundled_models_logits_hardly_move_under_float8() -> None:
    folder = resolve_model_path("bundled")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ["The dog is a domestic animal which has been kept by people.", "water: a clear liquid", "In the beginning"]
    model = OneProcess.load(folder)
    plain, rounded = model.exchange, LocalExchange(model.placement, payload=FLOAT8)
    divergence, same = [], []
    for text in texts:
        token_ids = tokenizer.encode(text).ids
        model.exchange = plain
        expected = model.logits(token_ids, chunks=[64]).log_softmax(-1)
        model.exchange = rounded
        found = model.logits(token_ids, chunks=[64]).log_softmax(-1)
        divergence.append((expected.exp() * (expected - found)).sum(-1))
        same.append(expected.argmax(-1) == found.argmax(-1))
    assert 0 < torch.cat(divergence).mean() < 0.05
    assert torch.cat(same).float().mean() >= 0.75
