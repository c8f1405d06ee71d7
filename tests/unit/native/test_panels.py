"""The packed kernels: right to float64, and the same bits in any batch, for every instruction set here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fourlane import _native

SHAPES = [(256, 128), (70, 45), (33, 5), (31, 96), (1, 1)]
ISAS = _native.instruction_sets()
KINDS = list(itertools.product(ISAS, ["float32", "bfloat16"]))
KINDS_AND_SHAPES = [(*kind, shape) for kind in KINDS for shape in SHAPES]


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Cut float32 to bfloat16 (towards zero), as uint16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    """Return stored weights as float64."""
    if bits.dtype == np.uint16:
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float64)


def random_weight(generator: np.random.Generator, shape: tuple[int, ...], stored: str) -> np.ndarray:
    values = (generator.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
    return bfloat16_bits(values) if stored == "bfloat16" else values


def packed(weight_SNK: np.ndarray, *, panels: int | None = None, first: int = 0, step: int = 1) -> np.ndarray:
    slots, columns, depth = weight_SNK.shape
    storage = np.zeros((slots, panels or -(-columns // 32), depth, 32), weight_SNK.dtype)
    for slot in range(slots):
        _native.pack_panels(weight_SNK[slot], storage, slot, first, step)
    return storage


def packed_pair(gate_SFD: np.ndarray, up_SFD: np.ndarray) -> np.ndarray:
    panels = 2 * -(-gate_SFD.shape[1] // 32)
    return packed(gate_SFD, panels=panels, step=2) + packed(up_SFD, panels=panels, first=1, step=2)


def linear(x: np.ndarray, weight: np.ndarray, columns: int, isa: str) -> np.ndarray:
    out = np.full((x.shape[0], columns), np.nan, np.float32)
    _native.linear(x, weight, out, isa)
    return out


def expert_ffn(x: np.ndarray, offsets: list[int], gate_up: np.ndarray, down: np.ndarray, isa: str) -> np.ndarray:
    out = np.full_like(x, np.nan)
    _native.expert_ffn(x, offsets, gate_up, down, out, isa)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_panels_hold_each_weight_once_and_zeros_elsewhere() -> None:
    weight = np.arange(1, 41 * 3 + 1, dtype=np.float32).reshape(1, 41, 3)
    panels = packed(weight)
    assert panels.shape == (1, 2, 3, 32)
    assert np.array_equal(panels.transpose(0, 1, 3, 2).reshape(64, 3)[:41], weight[0])
    assert not panels[0, 1, :, 9:].any()
    pairs = packed(weight.astype(np.uint16))[0, 0]
    assert pairs[2, 0] == weight[0, 0, 2]
    assert pairs[2, 1] == weight[0, 16, 2]


@pytest.mark.parametrize(("isa", "stored", "shape"), KINDS_AND_SHAPES)
def test_linear_agrees_with_float64(isa: str, stored: str, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    depth, columns = shape
    weight = random_weight(generator, (1, columns, depth), stored)
    x = generator.standard_normal((29, depth), dtype=np.float32)
    np.testing.assert_allclose(linear(x, packed(weight), columns, isa), x @ widened(weight[0]).T, atol=1e-5)


@pytest.mark.parametrize(("isa", "stored", "shape"), KINDS_AND_SHAPES)
def test_expert_ffn_agrees_with_float64(isa: str, stored: str, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(2)
    model, hidden = shape
    gate, up = (random_weight(generator, (4, hidden, model), stored) for _ in range(2))
    down = random_weight(generator, (4, model, hidden), stored)
    offsets = [0, 7, 7, 120, 133]
    x = generator.standard_normal((133, model), dtype=np.float32)
    found = expert_ffn(x, offsets, packed_pair(gate, up), packed(down), isa)
    for slot, (begin, end) in enumerate(itertools.pairwise(offsets)):
        rows = x[begin:end].astype(np.float64)
        expected = (silu(rows @ widened(gate[slot]).T) * (rows @ widened(up[slot]).T)) @ widened(down[slot]).T
        np.testing.assert_allclose(found[begin:end], expected, atol=1e-5)


@pytest.mark.parametrize(("isa", "stored"), KINDS)
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(isa: str, stored: str) -> None:
    generator = np.random.default_rng(3)
    model, hidden, most = 70, 45, 230
    gate_up = packed_pair(*(random_weight(generator, (2, hidden, model), stored) for _ in range(2)))
    down = packed(random_weight(generator, (2, model, hidden), stored))
    x = generator.standard_normal((most, model), dtype=np.float32)
    alone = np.concatenate([expert_ffn(row[None], [0, 0, 1], gate_up, down, isa) for row in x])
    dense = np.concatenate([linear(row[None], gate_up[:1], 128, isa) for row in x])
    for rows in (*range(2, 40), 95, 96, 97, 193, most):
        after = rows // 3
        offsets = [0, after, after + rows] if after + rows <= most else [0, 0, rows]
        begin = offsets[1]
        batch = expert_ffn(x[: offsets[2]], offsets, gate_up, down, isa)
        assert np.array_equal(batch[begin:], alone[begin : offsets[2]])
        assert np.array_equal(linear(x[:rows], gate_up[:1], 128, isa), dense[:rows])


@pytest.mark.parametrize("isa", ISAS)
def test_silu_is_accurate_over_its_whole_range(isa: str) -> None:
    values = np.concatenate([np.linspace(-86, 86, 4001), np.geomspace(1e-18, 1e4, 200)]).astype(np.float32)[:, None]
    gate_up = packed_pair(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32))
    found = expert_ffn(values, [0, len(values)], gate_up, packed(np.ones((1, 1, 1), np.float32)), isa)
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, silu(wide) * wide, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_values_beyond_range_and_nan_come_through(isa: str) -> None:
    gate_up = packed_pair(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32))
    down = packed(np.ones((1, 1, 1), np.float32))
    x = np.array([[-1e30], [1e15], [np.nan], [np.inf]], np.float32)
    found = expert_ffn(x, [0, 4], gate_up, down, isa)[:, 0]
    assert found[0] == 0
    assert found[1] == pytest.approx(1e30)
    assert np.isnan(found[2])
    assert found[3] == np.inf


@pytest.mark.parametrize("isa", ISAS)
def test_no_rows_are_fine(isa: str) -> None:
    weight = np.ones((1, 32, 8), np.float32)
    assert linear(np.empty((0, 8), np.float32), packed(weight), 32, isa).shape == (0, 32)
    gate_up = packed_pair(weight, weight)
    down = packed(np.ones((1, 8, 32), np.float32))
    assert expert_ffn(np.empty((0, 8), np.float32), [0, 0], gate_up, down, isa).shape == (0, 8)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    weight = packed(np.ones((1, 32, 8), np.float32))
    x, out = np.ones((3, 8), np.float32), np.empty((3, 32), np.float32)
    with pytest.raises(ValueError, match="x is not"):
        _native.linear(np.ones((3, 9), np.float32), weight, out)
    with pytest.raises(ValueError, match="out is not"):
        _native.linear(x, weight, np.empty((3, 33), np.float32))
    with pytest.raises(ValueError, match="instruction set"):
        _native.linear(x, weight, out, "mmx")
    with pytest.raises(TypeError):
        _native.linear(x.astype(np.float64), weight, out)
    with pytest.raises(TypeError):
        _native.linear(x[:, ::2], weight, out)
    down = packed(np.ones((1, 8, 32), np.float32))
    pair = packed_pair(np.ones((1, 32, 8), np.float32), np.ones((1, 32, 8), np.float32))
    for offsets in ([0, 2], [1, 3], [0, 1, 3], [0]):
        with pytest.raises(ValueError, match="offsets"):
            _native.expert_ffn(x, offsets, pair, down, np.empty_like(x))
    with pytest.raises(ValueError, match="belong together"):
        _native.expert_ffn(x, [0, 3], weight, down, np.empty_like(x))


def test_packing_outside_the_storage_is_refused() -> None:
    storage = np.zeros((2, 2, 8, 32), np.float32)
    weight = np.ones((40, 8), np.float32)
    for slot, first, step in ((2, 0, 1), (-1, 0, 1), (0, 1, 1), (0, 0, 2), (0, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match="pack"):
            _native.pack_panels(weight, storage, slot, first, step)
    with pytest.raises(ValueError, match="depth"):
        _native.pack_panels(weight[:, :7].copy(), storage, 0, 0, 1)
