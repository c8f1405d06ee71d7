"""Pages in runs are counted as the engine and the gateway count single pages."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.engine.kv_cache import BlockPool
from fourlane.gateway.ranks import RankView
from fourlane.policy.prefix import prefix_hashes
from fourlane.spec.deployment import Pool
from fourlane.twin.serving.page_pool import PagePool
from fourlane.twin.serving.prompt_names import PromptNames
from fourlane.twin.serving.seen_prefixes import SeenPrefixes

BLOCK = 4
PIECE = 8
"""Tokens of a piece: two pages."""

prompts = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def tokens_of(pieces: list[int]) -> list[int]:
    return [piece * 100 + index for piece in pieces for index in range(PIECE)]


def runs_of(names: PromptNames, pieces: list[int]) -> tuple[int, ...]:
    return names.name((piece, (index + 1) * PIECE) for index, piece in enumerate(pieces))


@settings(max_examples=60)
@given(st.lists(st.tuples(prompts, st.booleans()), max_size=25))
def test_a_pool_of_runs_finds_and_frees_what_a_pool_of_pages_does(visits: list[tuple[list[int], bool]]) -> None:
    """As long as pages last; when they do not, runs give way as a whole and single pages one by one."""
    names = PromptNames(BLOCK)
    runs, pages = PagePool(200, names, prefix_cache=True), BlockPool(200, prefix_cache=True)
    open_visits: list[tuple[list[int], int, list[int]]] = []
    for pieces, stays in visits:
        hashes, mine = prefix_hashes(tokens_of(pieces), BLOCK), runs_of(names, pieces)
        blocks, held = pages.match(hashes), runs.match(mine)
        assert len(blocks) == sum(names.pages[run] for run in held)
        missing = len(hashes) - len(blocks)
        more = pages.take(missing)
        assert (more is not None) == runs.take(missing)
        if more is None:
            pages.release(blocks)
            runs.release(held, 0)
            continue
        nameless = missing
        for run in mine[len(held) :]:
            if runs.name(run):
                held.append(run)
                nameless -= names.pages[run]
        blocks += more
        for block, name in zip(blocks, hashes, strict=True):
            pages.name(block, name)
        open_visits.append((held, nameless, blocks))
        assert runs.free == pages.free_blocks
        if not stays:
            last_held, last_nameless, last_blocks = open_visits.pop(0)
            runs.release(last_held, last_nameless)
            pages.release(last_blocks)
        assert runs.free == pages.free_blocks


def test_the_oldest_runs_give_way() -> None:
    names = PromptNames(BLOCK)
    pool = PagePool(4, names, prefix_cache=True)
    first, second = runs_of(names, [1]), runs_of(names, [2])
    for run in (*first, *second):
        assert pool.take(2)
        assert pool.name(run)
    pool.release(first, 0)
    pool.release(second, 0)
    assert pool.free == 4
    assert pool.take(2)
    assert pool.match(first) == []
    assert pool.match(second) == list(second)
    assert pool.free == 0
    assert not pool.take(1)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), prompts), max_size=30), st.integers(1, 30), prompts)
def test_the_gateway_believes_of_runs_what_it_believes_of_pages(
    sent: list[tuple[int, list[int]]], pages: int, asked: list[int]
) -> None:
    names = PromptNames(BLOCK)
    seen = SeenPrefixes(3, pages, names)
    views = [RankView("prefill", index, Pool(), BLOCK) for index in range(3)]
    for view in views:
        type(view).total_pages.fget  # noqa: B018 - a property: as many pages as its rank said
        view.hello = type("Said", (), {"kv_blocks": pages})()  # type: ignore[assignment]
    for rank, pieces in sent:
        seen.remember(rank, runs_of(names, pieces))
        views[rank].remember_prefix(prefix_hashes(tokens_of(pieces), BLOCK))
    prompt = tokens_of(asked)
    hashes = prefix_hashes(prompt, BLOCK)
    live = [view.prefill_face(hashes, len(prompt), 0.0).cached_tokens for view in views]
    simulated = seen.tokens(runs_of(names, asked), len(prompt)).tolist()
    # a run whose first page has gone is gone; one whose prompt is cut by the limit may lose a page's worth
    assert all(abs(ours - theirs) <= BLOCK for ours, theirs in zip(simulated, live, strict=True))
