"""Hand requests to prefill and decode servers of vLLM: the prompt to one, the rest to the other.

Needs starlette, httpx and uvicorn, which vLLM brings. Every request goes to the prefill server with the fewest
requests under way, asking for one token, then to such a decode server, with what it needs to fetch the KV cache. Which
fields do that depends on the connector; with Mooncake both servers work at once. A prefill server that cannot be
reached is passed over. Not for authentication, rate limits or prefixes: put what does that before it, or in its place.

Source: vllm 0.32.0, vllm/distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py (request_finished),
    mooncake/mooncake_connector.py and mooncake_utils.py (MooncakeBootstrapServer), entrypoints (X-data-parallel-rank).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

__all__ = ["Router", "main"]

HEALTH_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
_NO_PREFILL = "no prefill server could be reached; a retry is safe"


@dataclass
class Server:
    """A server and how many requests it has under way."""

    url: str
    bootstrap: str | None = None
    under_way: int = 0


class Router:
    """What takes requests.

    Args:
        prefill, decode: URLs of servers.
        connector: "nixl" or "mooncake".
        bootstrap: with Mooncake, the URL of each prefill server's registry.
        transport: of httpx; for tests.
    """

    def __init__(
        self,
        prefill: Sequence[str],
        decode: Sequence[str],
        *,
        connector: str = "nixl",
        bootstrap: Sequence[str] = (),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        registries = list(bootstrap) if connector == "mooncake" else [None] * len(prefill)
        if len(registries) != len(prefill):
            raise SystemExit(f"--bootstrap: expected one for each --prefill, got {len(registries)} for {len(prefill)}")
        self.prefill = [Server(url, registry) for url, registry in zip(prefill, registries, strict=True)]
        self.decode = [Server(url) for url in decode]
        self.connector = connector
        self.turns = itertools.count()
        self.tasks: set[asyncio.Task[Any]] = set()
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024)
        self.client = httpx.AsyncClient(timeout=timeout, limits=limits, transport=transport)

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/completions", self.answer, methods=["POST"]),
            Route("/v1/chat/completions", self.answer, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
        ]
        return Starlette(routes=routes)

    async def models(self, request: Request) -> Response:
        """Answer as a decode server does."""
        found = await self.client.get(self.decode[0].url + request.url.path)
        return Response(found.content, found.status_code, media_type="application/json")

    async def health(self, request: Request) -> Response:
        """Tell whether every server answers, and which do not."""
        del request
        servers = [*self.prefill, *self.decode]
        asked = [self.client.get(f"{server.url}/health", timeout=HEALTH_TIMEOUT_S) for server in servers]
        found = await asyncio.gather(*asked, return_exceptions=True)
        down = [
            server.url
            for server, answer in zip(servers, found, strict=True)
            if isinstance(answer, BaseException) or answer.status_code != 200
        ]
        return JSONResponse({"down": down}, status_code=503 if down else 200)

    async def answer(self, request: Request) -> Response:
        """Serve a request: prefill, then decode, then its answer as it comes."""
        body = await request.json()
        headers = {key: value for key, value in request.headers.items() if key in ("authorization", "x-request-id")}
        headers.setdefault("x-request-id", uuid.uuid4().hex)
        if self.connector == "mooncake":
            handed = await self._prefill_beside(request.url.path, body, headers)
        else:
            handed = await self._prefill_first(request.url.path, body, headers)
        if isinstance(handed, Response):
            return handed
        return await self._decode(request.url.path, {**body, "kv_transfer_params": handed}, headers)

    async def _prefill_first(
        self, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any] | Response:
        """Compute the prompt; return what the decode server needs to fetch its KV cache, or the refusal."""
        wanted = {**_one_token(body), "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
        for server in self._by_load(self.prefill):
            server.under_way += 1
            try:
                found = await self.client.post(server.url + path, json=wanted, headers=headers)
            except httpx.TransportError:
                continue
            finally:
                server.under_way -= 1
            if found.status_code != 200:
                return Response(found.content, found.status_code, media_type="application/json")
            return found.json().get("kv_transfer_params") or {}
        return _unavailable(_NO_PREFILL)

    async def _prefill_beside(
        self, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any] | Response:
        """Let a prefill server begin; return what the decode server needs to ask it for KV cache."""
        transfer = uuid.uuid4().hex
        for server in self._by_load(self.prefill):
            try:
                ranks = (await self.client.get(f"{server.bootstrap}/query", timeout=HEALTH_TIMEOUT_S)).json()
            except httpx.TransportError:
                continue
            rank = sorted(ranks, key=int)[next(self.turns) % len(ranks)]
            asked = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer}
            wanted = {**_one_token(body), "kv_transfer_params": asked}
            own = {**headers, "X-data-parallel-rank": rank}
            task = asyncio.create_task(self._send(server, path, wanted, own))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return {
                "do_remote_decode": False,
                "do_remote_prefill": True,
                "remote_bootstrap_addr": server.bootstrap,
                "remote_engine_id": ranks[rank]["engine_id"],
                "transfer_id": transfer,
            }
        return _unavailable(_NO_PREFILL)

    async def _send(self, server: Server, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        """Send what nobody waits for: the decode server notices if nothing comes of it."""
        server.under_way += 1
        try:
            with contextlib.suppress(httpx.HTTPError):
                await self.client.post(server.url + path, json=body, headers=headers)
        finally:
            server.under_way -= 1

    async def _decode(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Response:
        server = self._by_load(self.decode)[0]
        server.under_way += 1
        try:
            request = self.client.build_request("POST", server.url + path, json=body, headers=headers)
            found = await self.client.send(request, stream=True)
        except httpx.TransportError as error:
            server.under_way -= 1
            return _unavailable(f"decode server {server.url}: {error!r}; a retry is safe")
        media = found.headers.get("content-type")
        return StreamingResponse(self._passed_on(server, found), found.status_code, media_type=media)

    async def _passed_on(self, server: Server, found: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in found.aiter_bytes():
                yield piece
        finally:
            server.under_way -= 1
            await found.aclose()

    def _by_load(self, servers: list[Server]) -> list[Server]:
        """Return servers, the one with the fewest requests first; equal ones take turns."""
        found = sorted(servers, key=lambda server: server.under_way)
        servers.remove(found[0])
        servers.append(found[0])
        return found


def _one_token(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request that computes a prompt and no more."""
    kept = {key: value for key, value in body.items() if key not in ("stream_options", "min_tokens")}
    limits = {"max_tokens": 1, "stream": False}
    if "max_completion_tokens" in kept:
        limits["max_completion_tokens"] = 1
    return {**kept, **limits}


def _unavailable(message: str) -> Response:
    error = {"message": message, "type": "server_error", "code": "retry"}
    return JSONResponse({"error": error}, status_code=503, headers={"Retry-After": "1"})


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Hand requests to prefill and decode servers of vLLM.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--prefill", action="append", required=True, metavar="URL", help="a prefill server")
    parser.add_argument("--decode", action="append", required=True, metavar="URL", help="a decode server")
    parser.add_argument("--connector", choices=["nixl", "mooncake"], default="nixl", help="what moves KV cache")
    parser.add_argument("--bootstrap", action="append", default=[], metavar="URL", help="registry of each --prefill")
    given = parser.parse_args()
    router = Router(given.prefill, given.decode, connector=given.connector, bootstrap=given.bootstrap)
    uvicorn.run(router.app(), host=given.host, port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
