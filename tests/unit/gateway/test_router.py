"""The life of a request over fake ranks: order, retries, room, deadlines, ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fake_ranks import FakeRanks
from fake_service import deployment_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.engine.messages import Cancel, Failed, Prefill, RankStats, Reserve, Run, Sampling, TokenEvent, Tokens
from fourlane.errors import InvalidRequest, Overloaded, ServiceUnavailable
from fourlane.gateway.generation import ChoiceSpec, Generation, GenerationRequest
from fourlane.gateway.metrics import Metrics
from fourlane.gateway.router import Limits, Router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

QUICK = Limits(retry_delay_s=0.01, refusal_delay_s=0.01, gap_timeout_s=0.2, reserve_timeout_s=0.2, request_timeout_s=5)


def wanted(*prompts: list[int], max_tokens: int = 6, **sampling: Any) -> GenerationRequest:
    """Return a request with a choice a prompt."""
    specs = [ChoiceSpec(prompt, Sampling(max_tokens=max_tokens, temperature=0, **sampling)) for prompt in prompts]
    return GenerationRequest("test", specs)


async def tokens_of(generation: Generation) -> list[list[int]]:
    """Iterate a generation to its end; return the tokens of each choice, checking indexes."""
    got: list[list[int]] = [[] for _ in generation.choices]
    async for deltas in generation:
        for delta in deltas:
            for event in delta.events:
                assert event.index == len(got[delta.choice])
                got[delta.choice].append(event.token_id)
    return got


def expected(prompt: list[int], count: int) -> list[int]:
    """Return what the fake ranks say by default."""
    return [100 + (sum(prompt) + index) % 50 for index in range(count)]


@asynccontextmanager
async def routing(
    ranks: FakeRanks, *, limits: Limits = QUICK, up: bool = True, facts: dict[str, int] | None = None, **options: int
) -> AsyncIterator[Router]:
    """Run a router over fake ranks; afterwards check that its books are empty."""
    router = Router(ranks, deployment_of(**options), limits, Metrics("test"))
    router.start()
    ranks.router = router
    if up:
        ranks.bring_up(router, **(facts or {}))
    yield router
    await asyncio.sleep(0.02)
    await router.stop(0)
    await asyncio.sleep(0)
    assert (router.running, router.waiting) == (0, 0)
    for rank in router.ranks.values():
        assert (rank.owned, rank.pages, rank.queued_tokens, len(rank.attempts)) == (0, 0, 0, 0), rank.name


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_request_is_reserved_prefilled_and_decoded_in_that_order() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks) as router:
            generation = router.submit(wanted([1, 2, 3]))
            assert await tokens_of(generation) == [expected([1, 2, 3], 6)]
            assert [type(message) for _, message in ranks.sent] == [Reserve, Prefill]
            assert ranks.sent[0][0].startswith("decode/")
            assert ranks.sent[1][0].startswith("prefill/")
            assert ranks.sent[1][1].target.owner == ranks.sent[0][0]
            assert generation.cached_tokens == 5

    run(test)


def test_a_unified_pool_gets_the_whole_sequence() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks, unified=2) as router:
            assert await tokens_of(router.submit(wanted([1], [2]))) == [expected([1], 6), expected([2], 6)]
            assert [type(message) for _, message in ranks.sent] == [Run, Run]
            assert {name for name, _ in ranks.sent} == {"unified/0", "unified/1"}

    run(test)


def test_a_first_token_overtaken_by_the_second_comes_first() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.reorder = True
        async with routing(ranks) as router:
            assert await tokens_of(router.submit(wanted([4, 5]))) == [expected([4, 5], 6)]

    run(test)


@given(order=st.permutations(list(range(8))), repeats=st.lists(st.integers(0, 7), max_size=5))
@settings(max_examples=50, deadline=None)
def test_tokens_in_any_order_with_repeats_come_out_in_order_once(order: list[int], repeats: list[int]) -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.silent = {"unified/0"}
        async with routing(ranks, unified=1) as router:
            generation = router.submit(wanted([1], max_tokens=8))
            sid = ranks.sent[0][1].sequence.sequence_id
            for index in [*order[:4], *repeats, *order[4:]]:
                event = TokenEvent(sid, index, 50 + index, finish="length" if index == 7 else None)
                router.handle("unified/0", Tokens(events=[event]))
            assert await tokens_of(generation) == [[50 + index for index in range(8)]]

    run(test)


@pytest.mark.parametrize("knob", ["fail_prefill", "fail_decode", "evict", "refuse_reserve"])
def test_a_failed_sequence_goes_on_where_it_stopped(knob: str) -> None:
    async def test() -> None:
        ranks = FakeRanks()
        setattr(ranks, knob, 2)
        async with routing(ranks) as router:
            assert await tokens_of(router.submit(wanted([7, 8], max_tokens=10))) == [expected([7, 8], 10)]
            specs = [message.sequence for _, message in ranks.sent if isinstance(message, Reserve)]
            assert len(specs) == 3
            assert all(spec.prompt_tokens == 2 for spec in specs)
            done = 4 if knob in {"fail_decode", "evict"} else 0  # three, and the second attempt's first
            assert specs[-1].token_ids == [7, 8, *expected([7, 8], done)]

    run(test)


def test_a_retry_prefers_another_pair() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.fail_decode = 1
        async with routing(ranks) as router:
            await tokens_of(router.submit(wanted([7, 8])))
            first, second = [name for name, message in ranks.sent if isinstance(message, Reserve)]
            assert first != second

    run(test)


def test_too_many_failures_end_the_request_with_the_reason() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.fail_decode = 10
        async with routing(ranks) as router:
            with pytest.raises(
                ServiceUnavailable, match=r"4 attempts failed, the last because rank decode/.: KV transfer"
            ):
                await tokens_of(router.submit(wanted([7, 8], max_tokens=20)))
            assert not ranks.owned("decode/0")
            assert not ranks.owned("decode/1")

    run(test)


def test_a_failure_that_no_retry_can_mend_ends_the_request_at_once() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.silent = {"unified/0"}
        async with routing(ranks, unified=1) as router:
            generation = router.submit(wanted([1]))
            sid = ranks.sent[0][1].sequence.sequence_id
            router.handle("unified/0", Failed(sequence_id=sid, reason="bad grammar", retryable=False))
            with pytest.raises(ServiceUnavailable, match="unified/0: bad grammar"):
                await tokens_of(generation)

    run(test)


@pytest.mark.parametrize("victim", ["decode/0", "prefill/0"])
def test_a_killed_ranks_sequences_go_on_elsewhere(victim: str) -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s, ranks.prefill_s = 0.005, 0.03
        async with routing(ranks) as router:
            jobs = [asyncio.create_task(tokens_of(router.submit(wanted([n], max_tokens=12)))) for n in range(16)]
            await asyncio.sleep(0.05 if victim.startswith("decode") else 0.01)
            ranks.kill(victim)
            assert await asyncio.gather(*jobs) == [[expected([n], 12)] for n in range(16)]
            ranks.revive(victim)
            assert router.ranks[victim].restarts == 1
            assert await tokens_of(router.submit(wanted([3]))) == [expected([3], 6)]

    run(test)


def test_requests_wait_while_a_pool_has_no_rank_and_go_on_when_one_comes() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.002
        async with routing(ranks, decode=1) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([9], max_tokens=20))))
            await asyncio.sleep(0.02)
            ranks.kill("decode/0")
            await asyncio.sleep(0.05)
            assert (router.running, router.waiting) == (0, 1)
            ranks.revive("decode/0")
            assert await job == [expected([9], 20)]

    run(test)


def test_a_prefill_rank_that_dies_after_handing_over_disturbs_nothing() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.005
        async with routing(ranks) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([9], max_tokens=10))))
            await asyncio.sleep(0.03)
            ranks.kill(next(name for name, message in ranks.sent if isinstance(message, Prefill)))
            assert await job == [expected([9], 10)]
            assert len([message for _, message in ranks.sent if isinstance(message, Reserve)]) == 1

    run(test)


def test_a_decode_rank_is_never_given_more_pages_than_it_has() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.001
        async with routing(ranks, facts={"kv_blocks": 8}) as router:
            prompts = [[n] * 40 for n in range(12)]  # 3 pages each, growing to 4
            jobs = [asyncio.create_task(tokens_of(router.submit(wanted(p, max_tokens=15)))) for p in prompts]
            while not all(job.done() for job in jobs):
                for name in ("decode/0", "decode/1"):
                    assert router.ranks[name].pages <= 8
                await asyncio.sleep(0.001)
            assert [job.result() for job in jobs] == [[expected(p, 15)] for p in prompts]
            assert max(ranks.most_owned.values()) == 2

    run(test)


def test_an_evicted_sequence_comes_before_younger_ones_and_asks_for_room_to_grow() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.silent = {"unified/0"}
        async with routing(ranks, unified=1, facts={"kv_blocks": 8}) as router:
            old = router.submit(wanted([1] * 40, max_tokens=100))
            router.submit(wanted([2] * 40, max_tokens=100))
            young = router.submit(wanted([3] * 40, max_tokens=100))
            specs = [message.sequence for _, message in ranks.sent]
            assert [spec.token_ids[0] for spec in specs] == [1, 2]
            router.handle("unified/0", Failed(sequence_id=specs[0].sequence_id, reason="evicted: x", retryable=True))
            assert len(specs) == 2  # the evicted one wants 7 pages now; the young one waits behind it
            router.handle("unified/0", Tokens(events=[TokenEvent(specs[1].sequence_id, 0, 5, finish="stop")]))
            runs = [message.sequence for _, message in ranks.sent if isinstance(message, Run)]
            assert [spec.token_ids[0] for spec in runs] == [1, 2, 1]
            old.cancel()
            young.cancel()

    run(test)


def test_a_rank_that_refuses_is_asked_again_when_it_reports() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.refuse_reserve = 1
        slow = Limits(refusal_delay_s=60)
        async with routing(ranks, limits=slow, prefill=1, decode=1) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([1]))))
            await asyncio.sleep(0.05)
            assert router.waiting == 1
            ranks.stats("decode/0")
            assert await job == [expected([1], 6)]

    run(test)


def test_a_cancelled_request_is_cancelled_on_its_ranks_at_once() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.01
        async with routing(ranks) as router:
            generation = router.submit(wanted([1], [2], max_tokens=1000))
            await anext(generation)
            generation.cancel()
            generation.cancel()
            assert (router.running, ranks.owned("decode/0"), ranks.owned("decode/1")) == (0, 0, 0)
            assert await tokens_of(generation) is not None

    run(test)


def test_a_stopped_choice_leaves_the_others_running() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.002
        async with routing(ranks) as router:
            generation = router.submit(wanted([1], [2], max_tokens=20))
            await anext(generation)
            generation.stop_choice(0)
            generation.stop_choice(0)
            ends = []
            async for deltas in generation:
                ends += [delta.choice for delta in deltas if delta.events[-1].finish]
            assert ends == [1]
            assert len([message for _, message in ranks.sent if isinstance(message, Cancel)]) >= 1

    run(test)


def test_a_request_past_its_deadline_is_told_where_it_was() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        limits = Limits(request_timeout_s=0.3)
        async with routing(ranks, limits=limits, up=False) as router:
            with pytest.raises(ServiceUnavailable, match=r"did not end within 0\.3 s: it was waiting for room"):
                await tokens_of(router.submit(wanted([1])))
            ranks.bring_up(router)
            ranks.silent = set(router.ranks)
            with pytest.raises(ServiceUnavailable, match="it was reserving on ranks prefill/0 and decode/0"):
                await tokens_of(router.submit(wanted([1])))

    run(test)


def test_a_reservation_without_answer_is_tried_elsewhere() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.silent = {"decode/0"}
        async with routing(ranks) as router:
            assert await tokens_of(router.submit(wanted([1]))) == [expected([1], 6)]

    run(test)


def test_a_token_that_never_comes_is_made_again() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks, unified=2) as router:
            ranks.silent = {"unified/0", "unified/1"}
            generation = router.submit(wanted([1], max_tokens=4))
            name, message = ranks.sent[0]
            router.handle(name, Tokens(events=[TokenEvent(message.sequence.sequence_id, 1, 101)]))
            ranks.silent = set()
            assert await tokens_of(generation) == [expected([1], 4)]

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks, limits=Limits(max_queued_requests=3), up=False) as router:
            jobs = [asyncio.create_task(tokens_of(router.submit(wanted([n], [n])))) for n in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="3 requests are waiting") as refused:
                router.submit(wanted([9]))
            assert refused.value.retry_after >= 1
            ranks.bring_up(router)
            assert await asyncio.gather(*jobs) == [[expected([n], 6)] * 2 for n in range(3)]

    run(test)


def test_stopping_lets_open_requests_end_and_takes_no_more() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.005
        async with routing(ranks) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([1], max_tokens=10))))
            await asyncio.sleep(0.01)
            stopping = asyncio.create_task(router.stop(5))
            await asyncio.sleep(0)
            with pytest.raises(ServiceUnavailable, match="shutting down"):
                router.submit(wanted([1]))
            assert await job == [expected([1], 10)]
            await stopping

    run(test)


def test_stopping_fails_what_does_not_end_in_time() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.05
        async with routing(ranks) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([1], max_tokens=100))))
            await asyncio.sleep(0.02)
            await router.stop(0.05)
            with pytest.raises(ServiceUnavailable, match="did not finish this request in time"):
                await job
            assert ranks.owned("decode/0") == 0

    run(test)


def test_paused_ranks_keep_their_sequences_but_get_no_new_ones() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.step_s = 0.005
        async with routing(ranks) as router:
            job = asyncio.create_task(tokens_of(router.submit(wanted([1], max_tokens=10))))
            await asyncio.sleep(0.01)
            router.rank_paused("decode/0", "its group is being rebuilt")
            router.rank_paused("prefill/0", "its group is being rebuilt")
            await tokens_of(router.submit(wanted([5])))
            assert {name for name, _ in ranks.sent[2:]} == {"decode/1", "prefill/1"}
            assert await job == [expected([1], 10)]
            router.rank_resumed("decode/0")
            assert router.ranks["decode/0"].state == "ready"

    run(test)


def test_a_hello_of_the_same_process_keeps_its_sequences_and_of_another_does_not() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.silent = {"unified/0"}
        async with routing(ranks, unified=1) as router:
            generation = router.submit(wanted([1]))
            router.rank_ready("unified/0", router.ranks["unified/0"].hello)
            assert len(ranks.sent) == 1
            router.rank_ready("unified/0", ranks.hello("unified/0"))
            await asyncio.sleep(0.02)
            assert len([message for _, message in ranks.sent if isinstance(message, Run)]) == 2
            generation.cancel()

    run(test)


def test_requests_with_a_common_prefix_go_to_the_rank_that_has_it() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks) as router:
            for first in (1, 2):
                await tokens_of(router.submit(wanted([first] * 64 + [9])))
                router.ranks["prefill/0"].queued_tokens += 1  # so that the other is chosen for the second
            router.ranks["prefill/0"].queued_tokens -= 2
            for first in (2, 1, 2, 1):
                await tokens_of(router.submit(wanted([first] * 64 + [7])))
            chosen = [name for name, message in ranks.sent if isinstance(message, Prefill)]
            assert chosen[2:] == [chosen[1], chosen[0], chosen[1], chosen[0]]
            assert chosen[0] != chosen[1]

    run(test)


def test_a_prompt_no_rank_can_hold_is_refused_even_if_it_came_before_the_ranks() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks, up=False) as router:
            early = router.submit(wanted([1] * 200))
            ranks.bring_up(router, kv_blocks=8)
            for generation in (lambda: early, lambda: router.submit(wanted([1] * 200))):
                with pytest.raises(InvalidRequest, match="200 tokens; the service holds at most 112 tokens"):
                    await tokens_of(generation())

    run(test)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=12),
    st.lists(st.sampled_from(["fail_prefill", "fail_decode", "evict", "refuse_reserve"]), max_size=3),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_whatever_fails_every_request_gets_its_own_tokens(
    shapes: list[tuple[int, int]], failures: list[str], reorder: bool
) -> None:
    async def test() -> None:
        ranks = FakeRanks()
        ranks.reorder = reorder
        for knob in failures:
            setattr(ranks, knob, getattr(ranks, knob) + 1)
        async with routing(ranks, facts={"kv_blocks": 12}) as router:
            prompts = [[n] * length for n, (length, _) in enumerate(shapes)]
            jobs = [
                tokens_of(router.submit(wanted(prompt, max_tokens=count)))
                for prompt, (_, count) in zip(prompts, shapes, strict=True)
            ]
            answers = await asyncio.gather(*jobs)
            assert answers == [[expected(p, count)] for p, (_, count) in zip(prompts, shapes, strict=True)]

    run(test)


def test_totals_do_not_fall_when_a_rank_restarts() -> None:
    async def test() -> None:
        ranks = FakeRanks()
        async with routing(ranks) as router:
            ranks.stats("decode/0", steps=10, lane_bytes={"expert": 1000}, step_exchange_times=[3, 7])
            await asyncio.sleep(0.01)
            ranks.kill("decode/0")
            ranks.revive("decode/0")
            assert isinstance(
                ranks.stats("decode/0", steps=1, lane_bytes={"expert": 5, "kv": 1}, step_exchange_times=[0, 1]),
                RankStats,
            )
            await asyncio.sleep(0.01)
            assert router.ranks["decode/0"].totals()["steps"] == 11
            assert router.ranks["decode/0"].lane_bytes() == {"expert": 1005, "kv": 1}
            assert router.ranks["decode/0"].step_exchange_times() == [3, 8]

    run(test)
