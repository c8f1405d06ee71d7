"""A light HTTP/1.1 client for one thing: POST a JSON body, time every server-sent event of the answer.

It shares the machine with the service it measures, so it costs a few microseconds a token. Not a general client: no
redirects, no compression, no cookies, no proxies.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fourlane.errors import EnvironmentMissing, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Client", "Response"]

_HEAD_LIMIT = 64 << 10
_DONE = b"[DONE]"


class Response:
    """One answer as it arrives.

    `on_event(seconds, payload)` is called for each `data:` line of an event stream, with the clock of
    `time.perf_counter` at which its bytes came. `body` holds what was not an event stream. `complete`: the event
    stream ended with `[DONE]`, or the body had its announced length.
    """

    __slots__ = ("body", "complete", "headers", "on_event", "status")

    def __init__(self, on_event: Callable[[float, bytes], None] | None = None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False
        self.on_event = on_event


class _Connection(asyncio.Protocol):
    """One socket: parses heads, chunks and events; serves one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._finished: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._raw = b""
        self._events = b""
        self._in_head = True
        self._chunked = False
        self._remaining: int | None = None
        self._is_stream = False
        self._keep_alive = True

    @property
    def reusable(self) -> bool:
        """Tell whether another request may be sent on this socket."""
        return self.transport is not None and not self.transport.is_closing() and self._keep_alive

    def send(self, data: bytes, response: Response) -> asyncio.Future[None]:
        """Send a request; the future ends when the answer has, or fails with ConnectionError."""
        assert self.transport is not None
        assert self._response is None
        self._reset()
        self._response = response
        self._finished = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._finished

    def close(self) -> None:
        """Close the socket at once; the service sees that the client went away."""
        self._response = None
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer that was under way (called by asyncio)."""
        response, self._keep_alive = self._response, False
        if response is None:
            return
        if not self._in_head and self._remaining is None and not self._chunked and not self._is_stream:
            response.complete = True  # a body without length or chunks ends with the connection
        if response.complete:
            self._finish()
        else:
            self._fail(ConnectionError(f"the service closed the connection in mid-answer{f': {exc}' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        """Take in bytes (called by asyncio)."""
        if self._response is None:
            return
        now = time.perf_counter()
        try:
            self._take(now, self._raw + data if self._raw else data)
        except (ValueError, IndexError) as error:
            self._fail(ConnectionError(f"the service sent malformed HTTP: {error}"))
        except Exception as error:  # noqa: BLE001 - whatever `on_event` raises belongs to who called `post`
            self._fail(error)

    def _take(self, now: float, data: bytes) -> None:
        self._raw = b""
        if self._in_head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _HEAD_LIMIT:
                    raise ValueError(f"a head of more than {_HEAD_LIMIT} bytes")
                self._raw = data
                return
            self._head(data[:end])
            data = data[end + 4 :]
        if self._chunked:
            self._take_chunks(now, data)
        else:
            self._take_plain(now, data)

    def _head(self, head: bytes) -> None:
        assert self._response is not None
        first, *lines = head.decode("latin-1").split("\r\n")
        self._response.status = int(first.split(" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._response.headers = headers
        self._in_head = False
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in headers:
            self._remaining = int(headers["content-length"])
        self._keep_alive = headers.get("connection", "").lower() != "close"
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")

    def _take_chunks(self, now: float, data: bytes) -> None:
        start = 0
        while True:
            line_end = data.find(b"\r\n", start)
            if line_end < 0:
                break
            size = int(data[start:line_end].split(b";", 1)[0], 16)
            chunk_end = line_end + 2 + size
            if len(data) < chunk_end + 2:
                break
            if size == 0:
                self._end_of_body()
                return
            self._body(now, data[line_end + 2 : chunk_end])
            start = chunk_end + 2
        self._raw = data[start:]

    def _take_plain(self, now: float, data: bytes) -> None:
        if self._remaining is not None:
            data = data[: self._remaining]
            self._remaining -= len(data)
        self._body(now, data)
        if self._remaining == 0:
            self._end_of_body()

    def _body(self, now: float, data: bytes) -> None:
        response = self._response
        assert response is not None
        if not self._is_stream or response.on_event is None:
            response.body += data
            return
        if self._events:
            data = self._events + data
        *events, self._events = (
            data.split(b"\n\n") if b"\r" not in data else data.replace(b"\r\n", b"\n").split(b"\n\n")
        )
        for event in events:
            if event.startswith(b"data: "):
                payload = event[6:]
                if payload == _DONE:
                    response.complete = True
                else:
                    response.on_event(now, payload)

    def _end_of_body(self) -> None:
        assert self._response is not None
        if not self._is_stream:
            self._response.complete = True
        self._finish()

    def _finish(self) -> None:
        self._response = None
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._response = None
        self._keep_alive = False
        if self._finished is not None and not self._finished.done():
            self._finished.set_exception(error)


class Client:
    """Connections to one service, kept alive and used again.

    Args:
        base_url: such as "http://127.0.0.1:8000"; a path is kept as a prefix.
        api_key: sent as a bearer token where given.
        connect_timeout: seconds until a connection attempt is given up.

    Raises:
        SpecError: `base_url` is not an http or https URL.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, connect_timeout: float = 10.0) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SpecError(f"--url: expected a URL such as http://127.0.0.1:8000, got {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._connect_timeout = connect_timeout
        self._idle: list[_Connection] = []

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 - a client with a deadline of its own is the point
        on_event: Callable[[float, bytes], None] | None = None,
    ) -> Response:
        """Send a JSON body and wait for the end of the answer.

        Raises:
            ConnectionError: it could not be sent, or the connection broke.
            TimeoutError: the answer did not end within `timeout` seconds.
        """
        return await self._exchange(self._request("POST", path, body), Response(on_event), timeout)

    async def get(self, path: str, *, timeout: float = 10.0) -> Response:  # noqa: ASYNC109
        """Fetch a path; raises as `post` does."""
        return await self._exchange(self._request("GET", path, b""), Response(), timeout)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._authority}\r\n{self._key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _exchange(self, data: bytes, response: Response, timeout: float) -> Response:  # noqa: ASYNC109
        deadline = asyncio.get_running_loop().time() + timeout
        connection = await self._connection(timeout)
        try:
            async with asyncio.timeout_at(deadline):
                await connection.send(data, response)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _connection(self, timeout: float) -> _Connection:  # noqa: ASYNC109
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(timeout, self._connect_timeout)):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._ssl)
        except TimeoutError:
            raise ConnectionError(f"no connection to {self.base_url} within {self._connect_timeout:g} s") from None
        except OSError as error:
            raise ConnectionError(f"no connection to {self.base_url}: {error.strerror or error}") from error
        return connection

    async def require(self) -> list[str]:
        """Return the names of the models served; the first is what a load goes to.

        Raises:
            EnvironmentMissing: nothing answers there, or not as an OpenAI service does.
        """
        import msgspec

        try:
            response = await self.get("/v1/models")
        except (ConnectionError, TimeoutError) as error:
            raise EnvironmentMissing(f"{error}; start one with `fourlane serve`, or check --url") from error
        if response.status != 200:
            text = bytes(response.body[:200]).decode(errors="replace")
            raise EnvironmentMissing(f"{self.base_url}/v1/models: expected status 200, got {response.status}: {text}")
        try:
            listing = msgspec.json.decode(bytes(response.body))
            return [model["id"] for model in listing["data"]]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise EnvironmentMissing(f"{self.base_url}/v1/models: not an OpenAI model listing ({error})") from error
