"""The official client, unmodified, against the gateway over fake ranks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from fake_ranks import FakeRanks
from fake_service import FakeService

from fourlane.engine.messages import Cancel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def says(service: FakeService, text: str) -> None:
    """Let the fake ranks produce this text, then the end of sequence."""
    ids = service.state.tokenizer._encode(text, add_special_tokens=False, param="prompt")
    service.ranks.script = lambda _, index: ids[index] if index < len(ids) else 0


def client_of(service: FakeService, key: str = "none") -> openai.OpenAI:
    """Return a client that does not retry by itself."""
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture
def client(service: FakeService) -> Iterator[openai.OpenAI]:
    with client_of(service) as made:
        yield made


@pytest.fixture
def model(service: FakeService) -> str:
    return service.state.model.name


def test_models_are_listed_and_retrieved(client: openai.OpenAI, model: str) -> None:
    assert [card.id for card in client.models.list()] == [model]
    card = client.models.retrieve(model)
    assert (card.id, card.object, card.max_model_len) == (model, "model", 512)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_a_completion_is_answered_whole(service: FakeService, client: openai.OpenAI, model: str) -> None:
    says(service, "and the earth 🙂")
    answer = client.completions.create(model=model, prompt="In the beginning", max_tokens=100)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.index) == ("and the earth 🙂", "stop", 0)
    assert answer.object == "text_completion"
    assert answer.system_fingerprint == service.state.model.fingerprint
    prompt = len(service.state.tokenizer._encode("In the beginning", add_special_tokens=False, param="prompt"))
    usage = answer.usage
    made = len(service.state.tokenizer._encode("and the earth 🙂", add_special_tokens=False, param="prompt")) + 1
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, made, prompt + made)
    assert usage.prompt_tokens_details.cached_tokens == 5


def test_max_tokens_defaults_to_16_and_ends_by_length(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="x")
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_one_token_wanted_is_one_token_and_no_retry(service: FakeService, client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="x", max_tokens=1)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (1, "length")
    time.sleep(0.3)
    assert "fourlane_retries_total 0.0" in service.state.metrics.render().decode()
    assert service.ranks.owned("decode/0") == service.ranks.owned("decode/1") == 0


def test_a_streamed_completion_equals_the_whole_one(service: FakeService, client: openai.OpenAI, model: str) -> None:
    says(service, "日本語 Ünïcödé 🙂🙃 and")
    wanted = {"model": model, "prompt": [5, 6, 7], "max_tokens": 100, "seed": 1}
    whole = client.completions.create(**wanted).choices[0].text
    chunks = list(client.completions.create(**wanted, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole == "日本語 Ünïcödé 🙂🙃 and"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} <= {None}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert all("\ufffd" not in chunk.choices[0].text for chunk in chunks)


def test_a_chat_is_streamed_with_role_content_finish_and_usage(
    service: FakeService, client: openai.OpenAI, model: str
) -> None:
    says(service, "the heaven")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "the heaven"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_chat_prompt_is_the_rendered_template(service: FakeService, client: openai.OpenAI, model: str) -> None:
    says(service, "ok")
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    )
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", "ok", "stop")
    asked = service.ranks.sent[0][1].sequence
    text = service.state.tokenizer.decode(asked.token_ids, skip_special=False)
    assert text == "<|system|>be brief<|user|>a\nb<|assistant|>"
    assert asked.sampling.max_tokens == 512 - asked.prompt_tokens


def test_the_async_client_streams_many_chats_at_once(service: FakeService, model: str) -> None:
    says(service, "In the beginning God created")
    service.ranks.step_s = 0.002

    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(24)))

    assert set(asyncio.run(all_of_them())) == {"In the beginning God created"}


def test_n_choices_come_for_every_prompt_with_seeds_of_their_own(
    service: FakeService, client: openai.OpenAI, model: str
) -> None:
    service.ranks.script = lambda spec, index: 10 + spec.sampling.seed % 7 + index
    answer = client.completions.create(model=model, prompt=["a", "b"], n=3, max_tokens=4, seed=7)
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [choice.text for choice in answer.choices]
    assert texts[:3] == texts[3:]
    assert len(set(texts[:3])) == 3
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == 2
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(model=model, prompt=["a", "b"], n=3, max_tokens=4, seed=7, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[index] for index in range(6)] == texts


def test_completion_logprobs_have_tokens_offsets_and_tops(
    service: FakeService, client: openai.OpenAI, model: str
) -> None:
    says(service, "the earth")
    whole = client.completions.create(model=model, prompt="a", max_tokens=3, logprobs=2, echo=False).choices[0]
    lists = whole.logprobs
    assert "".join(lists.tokens).startswith(whole.text)
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    assert lists.text_offset[0] == 0
    assert lists.text_offset[1] == len(lists.tokens[0])
    assert all(len(top) == 2 for top in lists.top_logprobs)
    assert lists.token_logprobs[0] == -0.5
    chunks = client.completions.create(model=model, prompt="a", max_tokens=3, logprobs=2, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for piece in pieces for token in piece.tokens] == lists.tokens
    assert [offset for piece in pieces for offset in piece.text_offset] == lists.text_offset


def test_chat_logprobs_have_bytes_and_tops(service: FakeService, client: openai.OpenAI, model: str) -> None:
    says(service, "é🙂")
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    data = b"".join(bytes(token.bytes) for token in content[:-1])
    assert data.decode() == answer.choices[0].message.content == "é🙂"
    assert all(len(token.top_logprobs) == 3 for token in content)
    bare = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], logprobs=True)
    assert bare.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "keep", "expected"),
    [
        ("created", False, "In the beginning God "),
        ("created", True, "In the beginning God created"),
        (["zzz", "God c"], False, "In the beginning "),
        (["earthquake"], False, "In the beginning God created the heaven and the earth"),
    ],
)
def test_stop_strings_cut_exactly_and_cancel_the_work(
    service: FakeService, client: openai.OpenAI, model: str, *, stream: bool, stop: Any, keep: bool, expected: str
) -> None:
    says(service, "In the beginning God created the heaven and the earth")
    wanted = {
        "model": model,
        "prompt": "x",
        "max_tokens": 200,
        "stop": stop,
        "extra_body": {"include_stop_str_in_output": keep},
    }
    if stream:
        chunks = list(client.completions.create(**wanted, stream=True))
        text, finish = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = client.completions.create(**wanted).choices[0]
        text, finish = choice.text, choice.finish_reason
    assert (text, finish) == (expected, "stop")
    cancels = [message for _, message in service.ranks.sent if isinstance(message, Cancel)]
    assert bool(cancels) == ("earthquake" not in stop)


def test_echo_returns_the_prompt_first(service: FakeService, client: openai.OpenAI, model: str) -> None:
    says(service, " and")
    assert client.completions.create(model=model, prompt="the", echo=True).choices[0].text == "the and"
    chunks = client.completions.create(model=model, prompt="the", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the and"


def test_sampling_options_reach_the_ranks(service: FakeService, client: openai.OpenAI, model: str) -> None:
    client.completions.create(
        model=model,
        prompt=[1, 2, 3],
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "ignore_eos": True,
            "min_tokens": 2,
            "stop_token_ids": [250],
        },
    )
    sampling = service.ranks.sent[0][1].sequence.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.2)
    assert (sampling.logit_bias, sampling.stop_token_ids) == ({7: -100.0}, [250])
    assert (sampling.ignore_eos, sampling.min_tokens, sampling.max_tokens) == (True, 2, 3)
    assert sampling.seed == 2**63 - 1


def test_a_disconnected_stream_is_cancelled_on_its_ranks(
    service: FakeService, client: openai.OpenAI, model: str
) -> None:
    service.ranks.step_s = 0.01
    stream = client.completions.create(model=model, prompt="x", max_tokens=400, stream=True)
    next(iter(stream))
    assert service.call(lambda: service.router.running) == 1
    stream.close()
    _await(lambda: service.call(lambda: service.router.running) == 0)
    assert any(isinstance(message, Cancel) for _, message in service.ranks.sent)
    assert service.ranks.owned("decode/0") + service.ranks.owned("decode/1") == 0
    assert 'finished_reason="abort",model_name' in service.state.metrics.render().decode()


def test_a_disconnected_whole_request_is_cancelled_too(service: FakeService, client: openai.OpenAI, model: str) -> None:
    service.ranks.step_s = 0.05
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(model=model, prompt="x", max_tokens=400)
    _await(lambda: service.call(lambda: service.router.running) == 0)


def test_a_full_queue_is_answered_with_429_and_a_hint(model_folder: Path) -> None:
    ranks = FakeRanks()
    with (
        FakeService(model_folder, ranks=ranks, up=False, max_queued_requests=2) as service,
        client_of(service) as client,
    ):
        name = service.state.model.name
        jobs = [_background(client, name) for _ in range(2)]
        _await(lambda: service.call(lambda: service.router.waiting) == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests are waiting") as refused:
            client.completions.create(model=name, prompt="x")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        service.call(lambda: ranks.bring_up(service.router))
        assert [job() for job in jobs] == [16, 16]
        assert client.completions.create(model=name, prompt="x").usage.completion_tokens == 16


def test_an_error_before_the_first_token_has_a_status_and_later_an_event(model_folder: Path) -> None:
    ranks = FakeRanks()
    with FakeService(model_folder, ranks=ranks, max_retries=0) as service, client_of(service) as client:
        name = service.state.model.name
        ranks.fail_prefill = 1
        with pytest.raises(openai.InternalServerError, match="a retry is safe") as failed:
            client.completions.create(model=name, prompt="x", stream=True)
        assert failed.value.status_code == 503
        assert failed.value.response.headers["retry-after"] == "1"
        ranks.fail_decode, ranks.fail_at, ranks.step_s = 1, 3, 0.02
        stream = client.completions.create(model=name, prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="a retry is safe"):
            list(stream)


def test_an_api_key_guards_v1_only(model_folder: Path) -> None:
    with FakeService(model_folder, api_key="sesame") as service:
        for key in ("wrong", "sesam", "sesame2"):
            with (
                client_of(service, key) as client,
                pytest.raises(openai.AuthenticationError, match="API key is wrong"),
            ):
                client.completions.create(model=service.state.model.name, prompt="x")
        assert httpx.get(f"{service.url}/v1/models").status_code == 401
        assert httpx.get(f"{service.url}/health").status_code == 200
        with client_of(service, "sesame") as client:
            assert client.models.list().data
            assert client.completions.create(model=service.state.model.name, prompt="x").choices


def _background(client: openai.OpenAI, model: str) -> Any:
    """Start a completion on a thread; return a function that waits for its token count."""
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(1)
    job = executor.submit(lambda: client.completions.create(model=model, prompt="x").usage.completion_tokens)
    executor.shutdown(wait=False)
    return lambda: job.result(20)


def _await(condition: Any) -> None:
    """Wait until a condition holds, for five seconds at most."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "the condition did not come true within 5 s"
        time.sleep(0.01)
