"""The load generator against scripted answers over real sockets."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from fake_completions_service import fake_service

from fourlane.errors import EnvironmentMissing, SpecError
from fourlane.gateway.load import Arrivals, Client, Lengths, Load, plan_requests, run_load, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.gateway.load import PlannedRequest, Record

VOCABULARY = range(300, 4000)


def requests_of(arrivals: Arrivals, count: int, *, tokens: int = 8) -> Iterable[PlannedRequest]:
    return plan_requests(
        arrivals,
        requests=count,
        input_lengths=Lengths(kind="fixed", low=16, high=16),
        output_lengths=Lengths(kind="fixed", low=tokens, high=tokens),
        vocabulary=VOCABULARY,
        seed=3,
    )


async def measured(answer: str, *, count: int = 4, timeout_s: float = 10.0) -> list[Record]:
    async with fake_service(answer=answer) as service:
        client = Client(service.base_url)
        try:
            load = Load(model="fake", concurrency=2, timeout_s=timeout_s)
            return await run_load(client, load, requests_of(Arrivals(concurrency=2), count))
        finally:
            client.close()


@pytest.mark.parametrize("answer", ["plain", "pieces", "close"])
def test_every_token_is_counted_however_the_bytes_are_cut(answer: str) -> None:
    records = asyncio.run(measured(answer))
    assert [record.error for record in records] == [None] * 4
    assert [record.output_tokens for record in records] == [8] * 4
    assert [record.prompt_tokens for record in records] == [16] * 4
    assert all(len(record.gaps_s) == 7 for record in records)
    assert all(record.finish_reason == "length" for record in records)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("refuse", "status 429: 256 requests wait"),
        ("break", "the service closed the connection in mid-answer"),
        ("error_event", "stream: rank decode/0 died"),
        ("no_usage", "brought no usage"),
        ("no_done", "ended early"),
        ("garbage", "malformed HTTP"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error_that_says_why(answer: str, said: str) -> None:
    records = asyncio.run(measured(answer))
    assert len(records) == 4
    assert all(record.error is not None and said in record.error for record in records)
    summary = summarize(records)
    assert (summary.completed, summary.failed, summary.output_tokens) == (0, 4, 0)
    assert sum(summary.errors.values()) == 4


def test_a_request_without_an_end_is_given_up_after_its_timeout() -> None:
    records = asyncio.run(measured("silent", count=2, timeout_s=0.2))
    assert [record.error for record in records] == ["no end of the answer within 0.2 s"] * 2


def test_the_closed_loop_keeps_to_its_concurrency_and_uses_connections_again() -> None:
    async def run() -> tuple[int, int, int]:
        async with fake_service(token_s=0.002) as service:
            client = Client(service.base_url)
            load = Load(model="fake", concurrency=3)
            records = await run_load(client, load, requests_of(Arrivals(concurrency=3), 12))
            client.close()
            return len(records), service.most_running, service.connections

    assert asyncio.run(run()) == (12, 3, 3)


def test_the_open_loop_sends_when_due_whatever_the_service_does() -> None:
    async def run() -> tuple[list[Record], int]:
        async with fake_service(token_s=0.05) as service:
            client = Client(service.base_url)
            arrivals = Arrivals(rate=100.0, burstiness=0.0)
            records = await run_load(client, Load(model="fake", concurrency=None), requests_of(arrivals, 10))
            client.close()
            return records, service.most_running

    records, most_running = asyncio.run(run())
    assert [round(record.due_s, 6) for record in records] == [index / 100 for index in range(10)]
    assert most_running == 10  # an answer takes 0.4 s, the last is due after 0.09 s
    assert all(record.sent_s >= record.due_s for record in records)
    assert all(record.ttft_s is not None and record.ttft_s >= 0.05 for record in records)


def test_an_infinite_rate_sends_everything_at_once() -> None:
    planned = list(requests_of(Arrivals(rate=math.inf), 5))
    assert [request.due_s for request in planned] == [0.0] * 5


def test_nothing_is_sent_after_the_duration() -> None:
    async def run() -> int:
        async with fake_service(token_s=0.01) as service:
            client = Client(service.base_url)
            load = Load(model="fake", concurrency=1, duration_s=0.2)
            records = await run_load(client, load, requests_of(Arrivals(concurrency=1), 1000))
            client.close()
            assert all(record.error is None for record in records)
            return len(records)

    assert 1 <= asyncio.run(run()) <= 3


def test_stop_cuts_off_what_is_under_way_and_keeps_what_was_measured() -> None:
    async def run() -> tuple[list[Record], int]:
        async with fake_service(token_s=0.02) as service:
            client = Client(service.base_url)
            stop = asyncio.Event()
            load = Load(model="fake", concurrency=2)
            asyncio.get_running_loop().call_later(0.25, stop.set)
            records = await run_load(client, load, requests_of(Arrivals(concurrency=2), 1000), stop=stop)
            client.close()
            await asyncio.sleep(0.1)
            return records, service.running

    records, still_running = asyncio.run(run())
    summary = summarize(records)
    assert summary.completed == 2
    assert summary.interrupted == 2
    assert summary.failed == 0
    assert still_running == 0  # the connections were closed, so the service could stop


def test_the_body_asks_for_what_the_load_says() -> None:
    async def run() -> list[dict[str, object]]:
        async with fake_service() as service:
            client = Client(service.base_url)
            load = Load(model="m", concurrency=1, ignore_eos=False, temperature=0.5, extra={"seed": 7})
            await run_load(client, load, requests_of(Arrivals(concurrency=1), 1))
            client.close()
            return service.bodies

    (body,) = asyncio.run(run())
    assert body["model"] == "m"
    assert body["max_tokens"] == 8
    assert body["temperature"] == 0.5
    assert body["seed"] == 7
    assert body["stream"] is True
    assert "ignore_eos" not in body


def test_a_service_that_is_not_there_is_named() -> None:
    async def run() -> None:
        async with fake_service() as service:
            url = service.base_url
        await Client(url).require()

    with pytest.raises(EnvironmentMissing, match=r"no connection to http://127\.0\.0\.1:\d+"):
        asyncio.run(run())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match="expected a URL"):
        Client(url)


def test_an_error_of_the_event_handler_reaches_who_asked() -> None:
    def refuse(_now: float, payload: bytes) -> None:
        raise LookupError(f"{len(payload)} bytes")

    async def run() -> None:
        async with fake_service() as service:
            client = Client(service.base_url)
            await client.post("/v1/completions", b'{"prompt": [1], "max_tokens": 2}', timeout=5, on_event=refuse)

    with pytest.raises(LookupError, match="bytes"):
        asyncio.run(run())
