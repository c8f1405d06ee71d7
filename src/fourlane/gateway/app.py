"""The HTTP application: the OpenAI API, health, metrics and the page.

An API key, if there is one, guards /v1; /health, /metrics, /stats, /experts/load and the page are
open, as probes and scrapers have no keys: put a proxy in front where they must not be seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fourlane.errors import InvalidRequest, RequestError, Unauthorized
from fourlane.gateway.envelope import Envelope
from fourlane.gateway.openai_answers import ModelCard, ModelList
from fourlane.gateway.openai_types import ChatRequest, CompletionRequest, parse_request
from fourlane.gateway.page import page_routes
from fourlane.gateway.prepare import prepare_chat, prepare_completion
from fourlane.gateway.refusals import error_response, of_status
from fourlane.gateway.sse import Answer, EventStream, WholeAnswer
from fourlane.gateway.stats import health, stats
from fourlane.gateway.writers import ChatWriter, CompletionWriter
from fourlane.spec.expert_files import load_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.gateway.prepare import Job
    from fourlane.gateway.state import GatewayState
    from fourlane.gateway.writers import Writer
    from fourlane.spec.expert_files import LoadArrays

__all__ = ["EmbeddedServer", "create_app"]


def create_app(state: GatewayState) -> Starlette:
    """Return the application of one service; `state.router` must be started before requests come."""
    api = Api(state)
    app = Starlette(
        routes=[
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/health", api.health),
            Route("/health/live", api.live),
            Route("/metrics", api.metrics),
            Route("/stats", api.stats),
            Route("/experts/load", api.expert_load),
            *page_routes(),
        ],
        exception_handlers={
            RequestError: api.on_refusal,
            HTTPException: api.on_http_error,
            ClientDisconnect: api.on_disconnect,
            Exception: api.on_fault,
        },
    )
    app.add_middleware(Envelope)
    return app


class Api:
    """The handlers, one a path."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        key = state.deployment.gateway.api_key
        self._key = key.encode() if key is not None else None

    # generation

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        state = self._state
        body = parse_request(CompletionRequest, await self._body(request))
        job = await prepare_completion(state, body, request.scope["request_id"])
        return self._answer(job, CompletionWriter(job, state.model, state.tokenizer, f"cmpl-{secrets.token_hex(12)}"))

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        state = self._state
        body = parse_request(ChatRequest, await self._body(request))
        job = await prepare_chat(state, body, request.scope["request_id"])
        return self._answer(job, ChatWriter(job, state.model, state.tokenizer, f"chatcmpl-{secrets.token_hex(12)}"))

    def _answer(self, job: Job, writer: Writer) -> Response:
        generation = self._state.router.submit(job.generation)
        answer = Answer(generation, job, writer, self._state.tokenizer)
        return EventStream(answer, self._state.metrics) if job.stream else WholeAnswer(answer)

    async def _body(self, request: Request) -> bytes:
        """Return a request's body after checking key, type and size."""
        self._authorize(request)
        kind = request.headers.get("content-type")
        if kind is not None and kind.partition(";")[0].strip().lower() not in {"application/json", ""}:
            message = f"content-type: expected application/json, got {kind[:80]!r}"
            raise InvalidRequest(message, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        coding = request.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            message = f"content-encoding: expected none, got {coding[:80]!r}"
            raise InvalidRequest(message, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        limit = int(self._state.deployment.gateway.max_body)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(length, limit)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large(f"more than {limit}", limit)
        return bytes(body)

    def _authorize(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            problem = "missing" if not given else "wrong"
            raise Unauthorized(
                f'the API key is {problem}: send the header "Authorization: Bearer <key>"', code="invalid_api_key"
            )

    # what is served

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        self._authorize(request)
        return _json(ModelList(data=[self._card()]))

    async def model(self, request: Request) -> Response:
        """Answer GET /v1/models/{name}."""
        self._authorize(request)
        name = request.path_params["name"]
        if name != self._state.model.name:
            message = f'model "{name[:80]}" is not served here; expected "{self._state.model.name}"'
            raise InvalidRequest(message, param="model", code="model_not_found", status=HTTPStatus.NOT_FOUND)
        return _json(self._card())

    def _card(self) -> ModelCard:
        model = self._state.model
        return ModelCard(id=model.name, created=model.created, max_model_len=self._state.max_length())

    # how it does

    async def health(self, _: Request) -> Response:
        """Answer GET /health: 200 when every pool serves, else 503."""
        found = health(self._state)
        serving = found.status in {"ok", "degraded"}
        return _json(found, HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE)

    async def live(self, _: Request) -> Response:
        """Answer GET /health/live: 200 as long as the gateway answers at all."""
        return _json({"status": "live"})

    async def metrics(self, _: Request) -> Response:
        """Answer GET /metrics."""
        return Response(self._state.metrics.render(), media_type="text/plain; version=0.0.4")

    async def stats(self, _: Request) -> Response:
        """Answer GET /stats: the figures of the page."""
        return _json(stats(self._state, asyncio.get_running_loop().time()))

    async def expert_load(self, _: Request) -> Response:
        """Answer GET /experts/load: which experts texts needed, in windows, as `fourlane experts` reads it."""
        loads = self._state.router.expert_loads.by_phase()
        source = f"gateway of {self._state.model.name}"
        body = await asyncio.to_thread(_encode_loads, loads, source)
        return Response(body, media_type="application/json")

    # errors

    async def on_refusal(self, _: Request, error: Exception) -> Response:
        """Answer a refused or failed request."""
        if not isinstance(error, RequestError):
            raise error
        self._state.metrics.refused(error.status)
        return error_response(error)

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer an unknown path or method."""
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
        self._state.metrics.refused(status)
        response = error_response(of_status(status, request.method, request.url.path))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
        return response

    async def on_disconnect(self, _: Request, __: Exception) -> Response:
        """Close a request whose client went away while sending it."""
        return Response(status_code=HTTPStatus.BAD_REQUEST)

    async def on_fault(self, _: Request, __: Exception) -> Response:
        """Answer a defect of ours; Starlette raises it again afterwards, to be logged."""
        self._state.metrics.refused(HTTPStatus.INTERNAL_SERVER_ERROR)
        return error_response(RequestError("internal error; the gateway's log has the traceback"))


def _too_large(found: str, limit: int) -> InvalidRequest:
    message = f"the body has {found} bytes; the limit is {limit} (gateway.max_body)"
    return InvalidRequest(message, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _encode_loads(loads: dict[str, LoadArrays], source: str) -> bytes:
    return msgspec.json.encode(load_document(loads, source=source), enc_hook=lambda array: array.tolist())


def _json(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


class EmbeddedServer(uvicorn.Server):
    """uvicorn inside another program: it leaves signals and logging alone.

    Await `serve(sockets=[...])`; set `should_exit` to end it: open connections are finished first.
    """

    def __init__(self, app: Starlette, *, close_after_s: int = 5) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=close_after_s,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program around it."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these listening sockets until `should_exit` is set.

        Connections inherit TCP_NODELAY from them; asyncio sets it only on sockets made with an
        explicit protocol number, and without it a chunk may wait 40 ms for the client's ACK.
        """
        for listener in sockets or ():
            if listener.family in {socket.AF_INET, socket.AF_INET6}:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().serve(sockets=sockets)
