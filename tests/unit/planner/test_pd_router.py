"""The router that goes with vLLM: which server gets what, by which connector, and what a client sees."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fourlane.planner.files.pd_router import Router

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETIONS = "/v1/completions"


class Servers:
    """Servers that note what they are asked; `down` ones cannot be reached."""

    def __init__(self, *, down: frozenset[str] = frozenset()) -> None:
        self.asked: list[tuple[str, str, dict[str, Any], httpx.Headers]] = []
        self.down = down

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.down:
            raise httpx.ConnectError("refused", request=request)
        body = json.loads(request.content) if request.content else {}
        self.asked.append((host, request.url.path, body, request.headers))
        if request.url.path == "/query":
            return httpx.Response(200, json={"0": {"engine_id": "e0"}, "1": {"engine_id": "e1"}})
        if host.startswith("p"):
            if body.get("prompt") == "bad":
                return httpx.Response(400, json={"error": {"message": "too long"}})
            return httpx.Response(200, json={"choices": [], "kv_transfer_params": {"remote_host": host}})
        return httpx.Response(200, json={"from": host, "kv": body.get("kv_transfer_params")})

    def to(self, prefix: str) -> list[tuple[str, str, dict[str, Any], httpx.Headers]]:
        return [entry for entry in self.asked if entry[0].startswith(prefix)]


def ask(servers: Servers, *bodies: dict[str, Any], path: str = COMPLETIONS, **settings: Any) -> list[httpx.Response]:
    """Send requests one after the other through a router over two prefill and two decode servers."""

    async def session() -> list[httpx.Response]:
        router = Router(
            ["http://p0", "http://p1"], ["http://d0", "http://d1"], transport=httpx.MockTransport(servers), **settings
        )
        transport = httpx.ASGITransport(router.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client, router.client:
            send: Callable[[dict[str, Any]], Any] = lambda body: client.post(path, json=body)  # noqa: E731
            found = [await send(body) if body else await client.get(path) for body in bodies]
            await asyncio.gather(*router.tasks)
            assert all(server.under_way == 0 for server in [*router.prefill, *router.decode])
            return found

    return asyncio.run(session())


def test_the_prompt_is_computed_first_and_its_cache_fetched_by_the_decode_server() -> None:
    servers = Servers()
    (answer,) = ask(servers, {"prompt": "once", "max_tokens": 40, "stream": True, "stream_options": {}})
    ((host, path, prefill, _),) = servers.to("p")
    assert (path, prefill["max_tokens"], prefill["stream"]) == (COMPLETIONS, 1, False)
    assert "stream_options" not in prefill
    assert prefill["kv_transfer_params"]["do_remote_decode"] is True
    ((_, _, decode, _),) = servers.to("d")
    assert (decode["max_tokens"], decode["stream"]) == (40, True)
    assert answer.json()["kv"] == {"remote_host": host}


def test_equal_servers_take_turns() -> None:
    servers = Servers()
    ask(servers, *({"prompt": str(n)} for n in range(4)))
    assert {host for host, *_ in servers.to("p")} == {"p0", "p1"}
    assert {host for host, *_ in servers.to("d")} == {"d0", "d1"}


def test_a_prefill_server_that_cannot_be_reached_is_passed_over() -> None:
    servers = Servers(down=frozenset({"p0"}))
    answers = ask(servers, *({"prompt": str(n)} for n in range(3)))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert {host for host, *_ in servers.to("p")} == {"p1"}


def test_a_refusal_of_the_prefill_server_is_the_answer_and_nothing_is_decoded() -> None:
    servers = Servers()
    (answer,) = ask(servers, {"prompt": "bad"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")
    assert servers.to("d") == []


@pytest.mark.parametrize("down", [frozenset({"p0", "p1"}), frozenset({"d0", "d1"})])
def test_where_nobody_can_be_reached_the_client_may_retry(down: frozenset[str]) -> None:
    (answer,) = ask(Servers(down=down), {"prompt": "x"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "retry is safe" in answer.json()["error"]["message"]


def test_with_mooncake_both_servers_work_at_once_by_a_transfer_of_one_name() -> None:
    servers = Servers()
    (answer,) = ask(servers, {"prompt": "x"}, connector="mooncake", bootstrap=["http://b0", "http://b1"])
    handed = answer.json()["kv"]
    ((_, _, prefill, headers),) = servers.to("p")
    assert prefill["kv_transfer_params"]["transfer_id"] == handed["transfer_id"]
    assert handed["do_remote_prefill"] is True
    assert handed["remote_bootstrap_addr"] in {"http://b0", "http://b1"}
    assert handed["remote_engine_id"] == f"e{headers['x-data-parallel-rank']}"


def test_health_names_the_servers_that_do_not_answer() -> None:
    (answer,) = ask(Servers(down=frozenset({"d1"})), {}, path="/health")
    assert (answer.status_code, answer.json()) == (503, {"down": ["http://d1"]})
    (answer,) = ask(Servers(), {}, path="/health")
    assert answer.status_code == 200
