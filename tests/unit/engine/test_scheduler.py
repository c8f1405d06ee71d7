"""Continuous batching on one rank, without a model."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.engine.batches import build_batch
from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.messages import KvAddress, Sampling, SequenceSpec
from fourlane.engine.scheduler import Limits, Scheduler
from fourlane.engine.sequence import Sequence

EOS = 0


def scheduler(*, blocks: int = 64, chunk_tokens: int = 32, max_running: int = 8, max_length: int = 200) -> Scheduler:
    limits = Limits(chunk_tokens, max_running, max_length, block_size=4, eos_ids=frozenset({EOS}))
    return Scheduler(BlockPool(blocks, prefix_cache=True), limits)


def sequence(
    sequence_id: int, prompt: int, *, max_tokens: int = 4, seed: int | None = None, target: KvAddress | None = None
) -> Sequence:
    first = 1000 + (sequence_id if seed is None else seed)
    spec = SequenceSpec(
        sequence_id=sequence_id,
        token_ids=[first, *range(1, prompt)],
        prompt_tokens=prompt,
        sampling=Sampling(max_tokens=max_tokens),
    )
    return Sequence.of(spec, target=target)


def run_step(ranks: Scheduler, token: int = 7) -> list[tuple[int, int, str | None]]:
    ranks.admit()
    ranks.make_room()
    step = ranks.schedule()
    results = ranks.commit(step, [token] * len(step.sampling))
    return [(done.sequence_id, value, reason) for done, value, reason in results]


def test_a_long_prompt_is_computed_in_chunks_and_decodes_come_first() -> None:
    rank = scheduler(chunk_tokens=10)
    rank.submit(sequence(1, 3))
    run_step(rank)
    rank.submit(sequence(2, 25))
    rank.admit()
    assert [(part.sequence.sequence_id, part.tokens) for part in rank.schedule().parts] == [(1, 1), (2, 9)]
    assert run_step(rank) == [(1, 7, None)]
    assert rank.running[1].computed == 9


def test_the_rows_of_decoded_tokens_are_told_from_pieces_of_prompts() -> None:
    rank = scheduler(chunk_tokens=10)
    for name, prompt in ((1, 3), (2, 1), (3, 11)):
        rank.submit(sequence(name, prompt))
    found = []
    for _ in range(3):
        rank.admit()
        rank.make_room()
        step = rank.schedule()
        batch = build_batch(step, block_size=4, device=torch.device("cpu"))
        assert batch.decode_row_N is not None
        decoded = batch.decode_row_N.tolist()
        found.append([(part.sequence.sequence_id, part.tokens, part.decodes) for part in step.parts])
        assert [row in decoded for row, _ in enumerate(batch.token_ids_T)] == [
            decodes for _, tokens, decodes in found[-1] for _ in range(tokens)
        ]
        rank.commit(step, [7] * len(step.sampling))
    assert found == [
        [(1, 3, False), (2, 1, False), (3, 6, False)],
        [(1, 1, True), (2, 1, True), (3, 5, False)],
        [(1, 1, True), (2, 1, True), (3, 1, True)],
    ]


def test_a_sequence_ends_at_max_tokens_and_gives_its_pages_back() -> None:
    rank = scheduler()
    rank.submit(sequence(1, 5, max_tokens=3))
    assert [run_step(rank)[0][2] for _ in range(3)] == [None, None, "length"]
    assert rank.pool.free_blocks == 64
    assert not rank.has_work()


def test_a_sequence_ends_at_end_of_sequence() -> None:
    rank = scheduler()
    rank.submit(sequence(1, 5))
    assert run_step(rank, EOS) == [(1, EOS, "stop")]


def test_the_second_of_two_equal_prompts_reuses_the_pages_of_the_first() -> None:
    rank = scheduler()
    rank.submit(sequence(1, 13, seed=5))
    run_step(rank)
    rank.submit(sequence(2, 13, seed=5))
    rank.admit()
    second = rank.running[1]
    assert second.cached_tokens == second.computed == 12
    assert second.blocks[:3] == rank.running[0].blocks[:3]
    assert second.blocks[3] != rank.running[0].blocks[3]


def test_a_wholly_cached_prompt_still_computes_its_last_page() -> None:
    rank = scheduler()
    rank.submit(sequence(1, 12, seed=5))
    run_step(rank)
    rank.submit(sequence(2, 12, seed=5))
    rank.admit()
    assert rank.running[1].cached_tokens == 8


def test_a_prefilled_sequence_leaves_and_keeps_its_pages_until_its_kv_has_arrived() -> None:
    rank = scheduler()
    target = KvAddress(endpoint="tcp://x", blocks=[0, 1], owner="decode-0")
    rank.submit(sequence(1, 6, target=target))
    assert run_step(rank) == [(1, 7, None)]
    assert not rank.running
    assert rank.pool.free_blocks == 62
    assert rank.left(1) is not None
    assert rank.pool.free_blocks == 64


def test_a_reserved_sequence_decodes_from_where_prefill_stopped() -> None:
    rank = scheduler()
    reserved = sequence(1, 6)
    assert rank.reserve(reserved)
    assert not rank.has_work()
    rank.start(1, 9)
    part = rank.schedule().parts[0]
    assert (part.sequence.token_ids[-1], part.sequence.computed, part.tokens) == (9, 6, 1)


def test_pages_that_run_out_evict_the_youngest() -> None:
    rank = scheduler(blocks=4)
    for sequence_id in (1, 2):
        assert rank.reserve(sequence(sequence_id, 8, max_tokens=50))
        rank.start(sequence_id, 9)
    assert [gone.sequence_id for gone in rank.make_room()] == [2]
    assert rank.running[0].sequence_id == 1
    assert rank.evictions == 1


def test_without_room_a_reservation_is_refused_and_changes_nothing() -> None:
    rank = scheduler(blocks=2)
    assert not rank.reserve(sequence(1, 12))
    assert rank.pool.free_blocks == 2


def test_scheduling_twice_without_commit_gives_the_same_step() -> None:
    rank = scheduler(chunk_tokens=10)
    rank.submit(sequence(1, 25))
    rank.submit(sequence(2, 5))
    rank.admit()
    assert rank.schedule() == rank.schedule()


def test_the_outlook_of_a_step_says_whether_there_will_be_work_after_it() -> None:
    rank = scheduler()
    rank.submit(sequence(1, 5, max_tokens=2))
    rank.admit()
    assert rank.schedule().more
    run_step(rank)
    assert not rank.schedule().more


def test_the_load_of_the_step_after_is_expected_from_what_is_queued_and_what_decodes() -> None:
    ranks = scheduler(chunk_tokens=16)
    ranks.submit(sequence(1, 40))
    ranks.submit(sequence(2, 12))
    ranks.admit()
    expected = []
    for _ in range(4):
        step = ranks.schedule()
        expected.append(ranks.expected_after(step))
        run_step(ranks)
    assert expected == [(16, 0), (16, 0), (4, 1), (0, 2)]
    assert [(part.tokens, part.decodes) for part in ranks.schedule().parts] == [(1, True), (1, True)]


def test_a_prefill_rank_expects_no_decoding() -> None:
    ranks = scheduler(chunk_tokens=16)
    ranks.submit(sequence(1, 20, target=KvAddress(endpoint="tcp://x", blocks=[0, 1], owner="d")))
    ranks.admit()
    assert ranks.expected_after(ranks.schedule()) == (4, 0)
    run_step(ranks)
    assert ranks.expected_after(ranks.schedule()) == (0, 0)


def test_everyone_is_whoever_waits_runs_is_reserved_or_leaves() -> None:
    rank = scheduler(max_running=2)
    target = KvAddress(endpoint="tcp://x", blocks=[0, 1], owner="decode-0")
    rank.submit(sequence(1, 6, target=target))
    run_step(rank)
    rank.submit(sequence(2, 5))
    rank.admit()
    rank.submit(sequence(3, 5))
    assert rank.reserve(sequence(4, 5))
    assert sorted(rank.everyone()) == [1, 2, 3, 4]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.integers(10, 30))
def test_whatever_comes_every_sequence_ends_and_every_page_returns(
    seed: int, chunk_tokens: int, max_running: int, blocks: int
) -> None:
    draw = random.Random(seed)
    rank = scheduler(blocks=blocks, chunk_tokens=chunk_tokens, max_running=max_running)
    open_ids = set(range(12))
    for sequence_id in open_ids:
        rank.submit(sequence(sequence_id, draw.randint(1, 30), max_tokens=draw.randint(1, 8), seed=draw.randint(0, 2)))
    cancelled = draw.randint(0, 11)
    for turn in range(2000):
        if turn == 3 and cancelled in open_ids:
            rank.cancel(cancelled)
            open_ids.discard(cancelled)
        rank.admit()
        for gone in rank.make_room():
            open_ids.discard(gone.sequence_id)
        step = rank.schedule()
        assert len(step.parts) <= max_running
        for done, _, reason in rank.commit(step, [draw.randint(0, 50) for _ in step.sampling]):
            if reason:
                open_ids.discard(done.sequence_id)
        if not rank.has_work():
            break
    assert not open_ids
    assert rank.pool.free_blocks == blocks
