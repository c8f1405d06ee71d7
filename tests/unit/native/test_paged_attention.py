"""Native paged attention: right to float64 and PyTorch, the same bits in any batch and chunk, never out of bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane import _native

ISAS = _native.instruction_sets()


@dataclass(frozen=True)
class Case:
    """Sequences with queries, in pages that lie in no order."""

    q: np.ndarray
    pages: np.ndarray
    blocks: np.ndarray
    query_start: np.ndarray
    context: np.ndarray

    def run(self, isa: str = "") -> np.ndarray:
        tokens, heads, head_dim = self.q.shape
        out = np.full((tokens, heads * head_dim), np.nan, np.float32)
        _native.paged_attention(
            self.q, self.pages, self.blocks, self.query_start, self.context, head_dim**-0.5, out, isa
        )
        return out

    def sequence(self, s: int, *, first: int, queries: int) -> Case:
        """Return one sequence alone, in a step that brings some of its tokens."""
        begin = self.query_start[s] + first
        queries_before = self.query_start[s + 1] - self.query_start[s] - first - queries
        return replace(
            self,
            q=self.q[begin : begin + queries],
            blocks=self.blocks[s : s + 1],
            query_start=np.array([0, queries]),
            context=self.context[s : s + 1] - queries_before,
        )


def make_case(
    lengths: list[tuple[int, int]], *, heads: int, kv_heads: int, head_dim: int, block_size: int, seed: int = 0
) -> Case:
    """Return sequences of (queries, context); what no sequence owns is NaN."""
    generator = np.random.default_rng(seed)
    used = [-(-context // block_size) for _, context in lengths]
    total = sum(used) + 2
    pages = np.full((2, total, block_size, kv_heads, head_dim), np.nan, np.float32)
    order = generator.permutation(total)
    blocks = np.full((len(lengths), max(used, default=0) + 1), 2**31 - 1, np.int32)
    for s, (count, (_, context)) in enumerate(zip(used, lengths, strict=True)):
        blocks[s, :count], order = order[:count], order[count:]
        for place, block in enumerate(blocks[s, :count]):
            filled = min(block_size, context - place * block_size)
            pages[:, block, :filled] = generator.standard_normal((2, filled, kv_heads, head_dim))
    query_start = np.cumsum([0, *(queries for queries, _ in lengths)])
    wide = generator.standard_normal((query_start[-1], heads + 2 * kv_heads, head_dim), dtype=np.float32)
    context = np.array([context for _, context in lengths], dtype=np.int64)
    return Case(wide[:, :heads], pages, blocks, query_start, context)


def expected(case: Case) -> np.ndarray:
    """Return the definition, in float64."""
    tokens, heads, head_dim = case.q.shape
    kv_heads = case.pages.shape[3]
    out = np.empty((tokens, heads, head_dim))
    for s, context in enumerate(case.context):
        held = case.pages[:, case.blocks[s, : -(-context // case.pages.shape[2])]].astype(np.float64)
        k, v = held.reshape(2, -1, kv_heads, head_dim)[:, :context]
        first, end = case.query_start[s : s + 2]
        for token in range(first, end):
            seen = context - (end - 1 - token)
            for head in range(heads):
                kv_head = head * kv_heads // heads
                score = k[:seen, kv_head] @ case.q[token, head] / head_dim**0.5
                weight = np.exp(score - score.max())
                out[token, head] = weight / weight.sum() @ v[:seen, kv_head]
    return out.reshape(tokens, heads * head_dim)


RAGGED = [(1, 1), (5, 5), (1, 63), (1, 64), (1, 65), (0, 9), (70, 200), (3, 130), (128, 128)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    contexts = draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    lengths = [(draw(st.one_of(st.just(1), st.integers(0, context))), context) for context in contexts]
    kv_heads = draw(st.integers(1, 3))
    return make_case(
        lengths,
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 24, 32, 64, 128, 5])),
        block_size=draw(st.integers(1, 32)),
        seed=draw(st.integers(0, 9)),
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_attention_agrees_with_float64(isa: str, case: Case) -> None:
    np.testing.assert_allclose(case.run(isa), expected(case), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(case=cases(), data=st.data())
def test_a_token_gives_the_same_bits_alone_and_in_any_batch_and_chunk(
    isa: str, case: Case, data: st.DataObject
) -> None:
    batch = case.run(isa)
    for s, (first, end) in enumerate(zip(case.query_start[:-1], case.query_start[1:], strict=True)):
        if end > first:
            begin = data.draw(st.integers(0, end - first - 1))
            queries = data.draw(st.integers(1, end - first - begin))
            part = case.sequence(s, first=begin, queries=queries).run(isa)
            assert np.array_equal(part, batch[first + begin : first + begin + queries])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 2, 32), (4, 4, 64), (8, 1, 128), (7, 1, 24)])
def test_ragged_batches_agree_with_float64_and_with_each_token_alone(
    isa: str, heads: int, kv_heads: int, head_dim: int
) -> None:
    case = make_case(RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=16)
    found = case.run(isa)
    np.testing.assert_allclose(found, expected(case), rtol=1e-5, atol=2e-6)
    for s, (first, end) in enumerate(zip(case.query_start[:-1], case.query_start[1:], strict=True)):
        alone = [case.sequence(s, first=t, queries=1).run(isa) for t in range(end - first)]
        assert np.array_equal(found[first:end], np.concatenate([found[:0], *alone]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 128])
def test_attention_agrees_with_torch(isa: str, head_dim: int) -> None:
    torch = pytest.importorskip("torch")
    case = make_case([(40, 100)], heads=4, kv_heads=2, head_dim=head_dim, block_size=8)
    held = torch.from_numpy(case.pages[:, case.blocks[0, :-1]]).flatten(1, 2)[:, :100].transpose(1, 2)
    seen = torch.ones(40, 100, dtype=torch.bool).tril(60)
    found = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(case.q).transpose(0, 1)[None], *held[:, None], attn_mask=seen, enable_gqa=True
    )
    np.testing.assert_allclose(case.run(isa), found[0].transpose(0, 1).flatten(1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_far_apart_scores_neither_overflow_nor_lose_the_greatest(isa: str) -> None:
    case = make_case([(1, 200), (150, 200)], heads=4, kv_heads=2, head_dim=16, block_size=16)
    case = replace(case, q=case.q * np.float32(300))
    np.testing.assert_allclose(case.run(isa), expected(case), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_in_gives_nothing_out(isa: str) -> None:
    assert make_case([], heads=4, kv_heads=2, head_dim=16, block_size=4).run(isa).shape == (0, 64)
    assert make_case([(0, 5)], heads=4, kv_heads=2, head_dim=16, block_size=4).run(isa).shape == (0, 64)


def two_sequences() -> Case:
    return make_case([(2, 5), (1, 9)], heads=4, kv_heads=2, head_dim=16, block_size=4)


@pytest.mark.parametrize("block", [-1, 7, 2**31 - 1])
def test_a_page_that_does_not_exist_is_refused(block: int) -> None:
    case = two_sequences()
    case.blocks[1, 2] = block
    with pytest.raises(ValueError, match="no such page"):
        case.run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": np.array([5, 17])}, "width"),
        ({"context": np.array([5, 2**62])}, "width"),
        ({"context": np.array([1, 9])}, "at least as many"),
        ({"context": np.array([-5, 9])}, "at least as many"),
        ({"context": np.array([5])}, "a row for each"),
        ({"query_start": np.array([0, 3])}, r"sequences \+ 1"),
        ({"query_start": np.array([0, 2, 4])}, "begin at 0 and end"),
        ({"query_start": np.array([1, 2, 3])}, "begin at 0 and end"),
        ({"query_start": np.array([0, 4, 3])}, "at least as many"),
        ({"q": np.zeros((3, 4, 8), np.float32)}, "belong together"),
        ({"q": np.zeros((3, 3, 16), np.float32)}, "belong together"),
        ({"q": np.zeros((3, 4, 32), np.float32)[:, :, ::2]}, "contiguous"),
        ({"q": np.zeros((3, 8, 16), np.float32)[:, ::2]}, "contiguous"),
        ({"pages": np.zeros((3, 8, 4, 2, 16), np.float32)}, "pages"),
        ({"pages": np.zeros((2, 8, 0, 2, 16), np.float32)}, "at least 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(two_sequences(), **change).run()


def test_other_types_and_layouts_are_refused() -> None:
    case = two_sequences()
    for change in (
        {"q": case.q.astype(np.float64)},
        {"pages": case.pages[..., ::2]},
        {"blocks": case.blocks.astype(np.int64)},
        {"query_start": case.query_start.astype(np.int32)},
    ):
        with pytest.raises(TypeError):
            replace(case, **change).run()
    with pytest.raises(ValueError, match="out is not"):
        _native.paged_attention(
            case.q, case.pages, case.blocks, case.query_start, case.context, 0.25, np.empty((3, 63), np.float32)
        )
