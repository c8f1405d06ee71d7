"""Where KV lies in a cache, and the memory it lies in."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kv_lanes import GEOMETRY, make_kv

from fourlane.engine.kv_transfer.pages import Pages, SequencePages
from fourlane.engine.kv_transfer.reassembly import Coverage
from fourlane.engine.kv_transfer.storage import KvStorage, allocate_kv
from fourlane.errors import MemoryShortage, ProtocolError, TransferError


@given(
    blocks=st.permutations(range(GEOMETRY.blocks)),
    layer=st.integers(0, GEOMETRY.layers - 1),
    span=st.tuples(st.integers(0, 47), st.integers(1, 48)).filter(lambda span: span[0] + span[1] <= 48),
)
def test_the_views_of_tokens_are_what_indexing_the_tensor_gives(
    blocks: list[int], layer: int, span: tuple[int, int]
) -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    storage.tensor.copy_(torch.arange(storage.tensor.numel()).view(storage.tensor.shape))
    assert storage.buffer is not None
    first, tokens = span
    views = SequencePages(Pages(storage.buffer, GEOMETRY), blocks).views(layer, first, tokens)
    wanted = storage.tensor[layer][:, blocks].flatten(1, 2)[:, first : first + tokens]
    assert b"".join(views) == wanted.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_neighbouring_pages_make_one_run() -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    assert storage.buffer is not None
    pages = SequencePages(Pages(storage.buffer, GEOMETRY), [3, 4, 5, 1])
    size = GEOMETRY.block_bytes
    assert pages.runs(0, 0, 16) == [(3 * size, 6 * size), (size, 2 * size)]
    assert pages.runs(0, 0, 12) == [(3 * size, 6 * size)]
    layer = 2 * GEOMETRY.blocks * size
    assert pages.runs(1, 0, 12) == [(layer + 3 * size, layer + 6 * size)]


def test_memory_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="KV memory: expected"):
        Pages(memoryview(bytearray(10)), GEOMETRY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shared", [False, True])
def test_tensor_and_buffer_are_the_same_memory(dtype: str, *, shared: bool) -> None:
    geometry = replace(GEOMETRY, dtype=dtype)
    storage = allocate_kv(geometry, "cpu", shared=shared)
    assert storage.buffer is not None
    assert storage.tensor.shape == (3, 2, 12, 4, 2, 8)
    assert not storage.tensor.any()
    storage.tensor[-1, -1, -1, -1, -1, -1] = 1.0
    assert any(storage.buffer[-storage.tensor.element_size() :])
    assert not any(storage.buffer[: -storage.tensor.element_size()])
    storage.close()


def test_shared_memory_can_be_mapped_but_neither_shrunk_nor_grown() -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=True)
    assert storage.memfd is not None
    with mmap.mmap(storage.memfd, GEOMETRY.total_bytes) as other:
        storage.tensor.fill_(2.0)
        assert other[:4] == torch.tensor([2.0]).numpy().tobytes()
    for size in (0, GEOMETRY.total_bytes * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(storage.memfd, size)
    storage.close()


def test_too_large_a_cache_is_refused_with_its_size() -> None:
    huge = replace(GEOMETRY, blocks=1 << 50)
    for shared in (False, True):
        with pytest.raises(MemoryShortage, match=f"{huge.total_bytes} bytes on cpu cannot be allocated"):
            allocate_kv(huge, "cpu", shared=shared)


def test_kv_staged_for_a_device_settles_in_its_pages_and_nowhere_else() -> None:
    tensor = torch.full((3, 2, 12, 4, 2, 8), -1.0)
    storage = KvStorage(GEOMETRY, tensor, None, None)
    blocks = [7, 2, 9]
    landing = storage.landing(blocks)
    kv = make_kv(12)
    for layer in range(3):
        views = landing.pages.views(layer, 0, 12)
        source = memoryview(kv[layer].contiguous().view(-1).view(torch.uint8).numpy())
        for view in views:
            view[:], source = source[: len(view)], source[len(view) :]
    assert (tensor == -1).all()
    storage.settle(landing, blocks)
    assert torch.equal(tensor[:, :, blocks].flatten(2, 3), kv)
    others = [block for block in range(12) if block not in blocks]
    assert (tensor[:, :, others] == -1).all()


@given(data=st.data())
def test_coverage_is_complete_exactly_when_every_token_of_every_layer_has_landed(data: st.DataObject) -> None:
    layers, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    coverage = Coverage(layers, tokens)
    todo = {(layer, token) for layer in range(layers) for token in range(tokens)}
    for layer, first, count in data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=40)
    ):
        wanted = {(layer, token) for token in range(first, first + count)}
        if layer >= layers or count == 0 or first + count > tokens:
            with pytest.raises(ProtocolError):
                coverage.claim(layer, first, count)
        elif not wanted <= todo:
            with pytest.raises(TransferError, match="came twice"):
                coverage.claim(layer, first, count)
        else:
            coverage.claim(layer, first, count)
            coverage.land(layer, first, count)
            todo -= wanted
        assert coverage.complete == (not todo)
