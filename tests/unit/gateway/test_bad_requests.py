"""Bad input gets a 4xx with the OpenAI error body, says what is wrong, and does no harm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fake_service import FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPLETION = "/v1/completions"
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def running(model_folder: Path) -> Iterator[FakeService]:
    with FakeService(model_folder, max_body=200_000) as service:
        yield service


@pytest.fixture(scope="module")
def http(running: FakeService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=20) as client:
        yield client


def completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "x", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HI, **fields}


BODIES = [
    # (path, fields, status, part of the message, param)
    (COMPLETION, {}, 400, "prompt: missing", "prompt"),
    (COMPLETION, {"prompt": None}, 400, "missing", "prompt"),
    (COMPLETION, {"prompt": ""}, 400, "at least one token", "prompt"),
    (COMPLETION, {"prompt": []}, 400, "empty list", "prompt"),
    (COMPLETION, {"prompt": [""]}, 400, "at least one token", "prompt"),
    (COMPLETION, {"prompt": [[]]}, 400, "at least one token", "prompt"),
    (COMPLETION, {"prompt": 7}, 400, "got 7", "prompt"),
    (COMPLETION, {"prompt": {"a": 1}}, 400, "got `object`", "prompt"),
    (COMPLETION, {"prompt": [1, "a"]}, 400, "a mix", "prompt"),
    (COMPLETION, {"prompt": ["a", [1]]}, 400, "a mix", "prompt"),
    (COMPLETION, {"prompt": [1.5]}, 400, "got 1.5", "prompt[0]"),
    (COMPLETION, {"prompt": [True]}, 400, "got true", "prompt[0]"),
    (COMPLETION, {"prompt": [[["a"]]]}, 400, "prompt", "prompt[0][0]"),
    (COMPLETION, {"prompt": [-1]}, 400, "from 0 to", "prompt"),
    (COMPLETION, {"prompt": [299, 300]}, 400, "got 300", "prompt"),
    (COMPLETION, {"prompt": [10**30]}, 400, "a larger number", "prompt"),
    (COMPLETION, {"prompt": [1] * 512}, 400, "512 tokens; the limit is 512", "prompt"),
    (COMPLETION, {"prompt": "x y z " * 900}, 400, "the limit is 512", "prompt"),
    (COMPLETION, {"prompt": "x" * 150_000}, 400, "at least", "prompt"),
    (COMPLETION, {"prompt": ["x"] * 129}, 400, "at most 128", "prompt"),
    (COMPLETION, {"prompt": ["x"] * 65, "n": 2}, 400, "at most 128 texts", "n"),
    (COMPLETION, completion(max_tokens=0), 400, "max_tokens", "max_tokens"),
    (COMPLETION, completion(max_tokens=-5), 400, "got -5", "max_tokens"),
    (COMPLETION, completion(max_tokens=10**9), 400, "ask for at most 511", "max_tokens"),
    (COMPLETION, completion(max_tokens=10**40), 400, "max_tokens", "max_tokens"),
    (COMPLETION, completion(max_tokens="many"), 400, 'got "many"', "max_tokens"),
    (COMPLETION, completion(max_tokens=1.5), 400, "got 1.5", "max_tokens"),
    (COMPLETION, completion(temperature=-0.1), 400, "got -0.1", "temperature"),
    (COMPLETION, completion(temperature=2.1), 400, "<= 2", "temperature"),
    (COMPLETION, completion(temperature="hot"), 400, "temperature", "temperature"),
    (COMPLETION, completion(top_p=0), 400, "top_p", "top_p"),
    (COMPLETION, completion(top_p=1.01), 400, "top_p", "top_p"),
    (COMPLETION, completion(top_k=-2), 400, "top_k", "top_k"),
    (COMPLETION, completion(min_p=1.5), 400, "min_p", "min_p"),
    (COMPLETION, completion(n=0), 400, "got 0", "n"),
    (COMPLETION, completion(n=129), 400, "<= 128", "n"),
    (COMPLETION, completion(n=1, best_of=3), 400, "best_of", "best_of"),
    (COMPLETION, completion(seed=2**64), 400, "seed", "seed"),
    (COMPLETION, completion(seed="a"), 400, "seed", "seed"),
    (COMPLETION, completion(stop=["x"] * 10_000), 400, "at most 16 strings, got 10000", "stop"),
    (COMPLETION, completion(stop=["x" * 2000]), 400, "at most 1024 characters", "stop"),
    (COMPLETION, completion(stop=""), 400, "at least one character", "stop"),
    (COMPLETION, completion(stop=[1]), 400, "got 1", "stop[0]"),
    (COMPLETION, completion(stop_token_ids=[-1]), 400, "stop_token_ids", "stop_token_ids[0]"),
    (COMPLETION, completion(stop_token_ids=[300]), 400, "from 0 to 299, got 300", "stop_token_ids"),
    (COMPLETION, completion(stop_token_ids=[1] * 2000), 400, "at most 1024", "stop_token_ids"),
    (COMPLETION, completion(logit_bias={"a": 1}), 400, "'a'", "logit_bias"),
    (COMPLETION, completion(logit_bias={"300": 1}), 400, "'300'", "logit_bias"),
    (COMPLETION, completion(logit_bias={"-1": 1}), 400, "'-1'", "logit_bias"),
    (COMPLETION, completion(logit_bias={"\u00b2": 1}), 400, "logit_bias", "logit_bias"),
    (COMPLETION, completion(logit_bias={"1": 101}), 400, "100", "logit_bias[...]"),
    (COMPLETION, completion(logit_bias={str(i): 1 for i in range(1025)}), 400, "at most 1024", "logit_bias"),
    (COMPLETION, completion(logprobs=21), 400, "<= 20", "logprobs"),
    (COMPLETION, completion(logprobs=True), 400, "logprobs", "logprobs"),
    (COMPLETION, completion(logprobs=1, echo=True), 400, "echo", "echo"),
    (COMPLETION, completion(suffix="end"), 400, "suffix", "suffix"),
    (COMPLETION, completion(presence_penalty=3), 400, "got 3", "presence_penalty"),
    (COMPLETION, completion(frequency_penalty=-3), 400, "got -3", "frequency_penalty"),
    (COMPLETION, completion(repetition_penalty=0), 400, "got 0", "repetition_penalty"),
    (COMPLETION, completion(min_tokens=20), 400, "at most max_tokens (16), got 20", "min_tokens"),
    (COMPLETION, completion(stream="yes"), 400, "stream", "stream"),
    (COMPLETION, completion(stream_options={"include_usage": True}), 400, "only allowed when stream", "stream_options"),
    (COMPLETION, completion(stream=True, stream_options={"x": 1}), 400, "x", "stream_options.x"),
    (COMPLETION, completion(response_format={"type": "json_object"}), 400, 'only "text"', "response_format"),
    (COMPLETION, completion(guided_json={"a": 1}), 400, "not supported", "guided_json"),
    (COMPLETION, completion(tempretaure=1), 400, "not a field this service knows", "tempretaure"),
    (COMPLETION, completion(model=None), 400, "model: missing", "model"),
    (COMPLETION, completion(model=5), 400, "got 5", "model"),
    (COMPLETION, completion(model="gpt-5"), 404, '"gpt-5" is not served here', "model"),
    (CHAT, chat(model="gpt-5"), 404, "not served here", "model"),
    (CHAT, {}, 400, "at least one message", "messages"),
    (CHAT, {"messages": []}, 400, "at least one message", "messages"),
    (CHAT, {"messages": "hi"}, 400, "messages", "messages"),
    (CHAT, {"messages": ["hi"]}, 400, "messages[0]", "messages[0]"),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "role", "messages[0]"),
    (CHAT, {"messages": [{"role": "king", "content": "hi"}]}, 400, "king", "messages[0].role"),
    (CHAT, {"messages": [{"role": "tool", "content": "hi"}]}, 400, "tools are not supported", "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "got null", "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "got 5", "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
     "image_url", "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": "hi", "tool_calls": [{"id": 1}]}]}, 400, "not supported",
     "messages[0].tool_calls"),
    (CHAT, {"messages": [{"role": "user", "content": "hi", "x": 1}]}, 400, "not a field", "messages[0].x"),
    (CHAT, {"messages": [{"role": "user", "content": "x y " * 2000}]}, 400, "the limit is 512", "messages"),
    (CHAT, chat(tools=[{"type": "function"}]), 400, "not supported", "tools"),
    (CHAT, chat(functions=[{"name": "f"}]), 400, "not supported", "functions"),
    (CHAT, chat(tool_choice="required"), 400, "tools are not supported", "tool_choice"),
    (CHAT, chat(response_format={"type": "json_schema"}), 400, "only", "response_format"),
    (CHAT, chat(modalities=["audio"]), 400, "modalities", "modalities"),
    (CHAT, chat(top_logprobs=2), 400, "needs logprobs", "top_logprobs"),
    (CHAT, chat(logprobs=3), 400, "logprobs", "logprobs"),
    (CHAT, chat(max_completion_tokens=600), 400, "ask for at most", "max_tokens"),
    (CHAT, chat(chat_template="{{ messages }}"), 400, "not supported", "chat_template"),
    (CHAT, chat(chat_template_kwargs={"messages": []}), 400, "set by the service", "chat_template_kwargs"),
    (CHAT, chat(store=True), 400, "not supported", "store"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "status", "part", "param"), BODIES)
def test_a_bad_field_is_refused_by_name(
    running: FakeService,
    http: httpx.Client,
    path: str,
    fields: dict[str, Any],
    status: int,
    part: str,
    param: str | None,
) -> None:
    response = http.post(path, json={"model": running.state.model.name, **fields})
    error = expect_refusal(response, status)
    assert part in error["message"]
    assert error["param"] == param
    expect_unharmed(running, http)


RAW = [
    (b"", "empty"),
    (b"   ", "empty"),
    (b"{", "no valid JSON"),
    (b"nonsense", "no valid JSON"),
    (b"[1]", "expected `object`"),
    (b'"text"', "expected `object`"),
    (b"null", "expected `object`"),
    (b'{"prompt": NaN}', "no valid JSON"),
    (b'{"prompt": "x", "temperature": 1e999}', "out of range"),
    (b'{"prompt": "x", "temperature": Infinity}', "no valid JSON"),
    (b'{"prompt": "\xff\xfe"}', "UTF-8"),
    (b"\xff\xfe\x00", "JSON"),
    (b'{"prompt": "\\ud800"}', ""),
    (b'{"prompt": "x", "prompt_embeds": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested"),
    (b"[" * 90_000, "object"),
    (b'{"messages": ' + b'{"a":' * 20_000, ""),
    (b'{"model": "a", "prompt": "x", "max_tokens": ' + b"9" * 5_000 + b"}", "max_tokens"),
    (b'{"\\u0000": 1}', "not a field"),
]


@pytest.mark.parametrize(("body", "part"), RAW)
@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_a_malformed_body_is_refused(
    running: FakeService, http: httpx.Client, path: str, body: bytes, part: str
) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    error = expect_refusal(response, 400)
    if path == COMPLETION:
        assert part in error["message"]
    expect_unharmed(running, http)


def test_half_a_surrogate_pair_is_refused(running: FakeService, http: httpx.Client) -> None:
    name = running.state.model.name
    body = json.dumps({"model": name, "prompt": "a\ud800b"}).encode()
    expect_refusal(http.post(COMPLETION, content=body, headers={"content-type": "application/json"}), 400)


def test_a_body_over_the_limit_gets_413_with_and_without_a_length(running: FakeService, http: httpx.Client) -> None:
    body = b'{"prompt": "' + b"x" * 200_001 + b'"}'
    headers = {"content-type": "application/json"}
    assert "200000" in expect_refusal(http.post(COMPLETION, content=body, headers=headers), 413)["message"]
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    with httpx.Client(base_url=running.url, timeout=20) as own:
        expect_refusal(own.post(COMPLETION, content=pieces, headers=headers), 413)
    expect_unharmed(running, http)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_gets_415(http: httpx.Client, kind: str) -> None:
    response = http.post(COMPLETION, content=b"{}", headers={"content-type": kind})
    assert kind in expect_refusal(response, 415)["message"]


def test_a_compressed_body_gets_415(http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert "gzip" in expect_refusal(http.post(COMPLETION, content=b"x", headers=headers), 415)["message"]


@pytest.mark.parametrize("path", ["/v1/none", "/favicon.ico", "/v1/models/none", "/v1", "/%00", "/page/../app.py"])
def test_an_unknown_path_gets_404_in_the_same_form(http: httpx.Client, path: str) -> None:
    expect_refusal(http.get(path), 404)


@pytest.mark.parametrize(("method", "path"), [("GET", COMPLETION), ("DELETE", CHAT), ("POST", "/v1/models")])
def test_a_wrong_method_gets_405_in_the_same_form(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert method in expect_refusal(response, 405)["message"]
    assert "allow" in response.headers


def test_a_known_request_id_is_sent_back_and_a_bad_one_replaced(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = http.get("/v1/models", headers={"x-request-id": "a b" * 100}).headers["x-request-id"]
    assert len(made) == 32


def expect_refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that a response is a refusal in OpenAI's form; return its error."""
    assert response.status_code == status, response.text[:500]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert len(body["error"]["message"]) < 600
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]


def expect_unharmed(service: FakeService, http: httpx.Client) -> None:
    """Check that nothing was left behind and the service still answers."""
    assert service.call(lambda: (service.router.running, service.router.waiting)) == (0, 0)
    answer = http.post(COMPLETION, json={"model": service.state.model.name, "prompt": "x", "max_tokens": 2})
    assert answer.status_code == 200, answer.text
