"""A stand-in for an OpenAI service: real sockets, scripted answers, no model."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWERS = frozenset(
    {"plain", "refuse", "break", "error_event", "no_usage", "no_done", "garbage", "pieces", "silent", "close"}
)


@dataclass
class FakeService:
    """Answers `/v1/completions` with `max_tokens` events, `token_s` seconds apart."""

    token_s: float = 0.0
    answer: str = "plain"
    port: int = 0
    bodies: list[dict[str, object]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    connections: int = 0
    aborted: int = 0

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client leaves."""
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                )
                body = await reader.readexactly(length)
                if head.startswith(b"GET"):
                    self._json(writer, 200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
                elif not await self._complete(json.loads(body), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _json(self, writer: asyncio.StreamWriter, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)

    async def _complete(self, body: dict[str, object], writer: asyncio.StreamWriter) -> bool:
        self.bodies.append(body)
        if self.answer == "refuse":
            self._json(writer, 429, {"error": {"message": "256 requests wait", "type": "rate_limit_error"}})
            return True
        if self.answer == "garbage":
            writer.write(b"SSH-2.0 nonsense\r\n\r\n")
            return False
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._stream(body, writer)
        except ConnectionError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, body: dict[str, object], writer: asyncio.StreamWriter) -> bool:
        chunked = self.answer != "close"
        frame = b"transfer-encoding: chunked\r\n" if chunked else b"connection: close\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + frame + b"\r\n")
        count = int(str(body["max_tokens"]))
        if self.answer == "silent":
            await asyncio.sleep(60)
        for index in range(count):
            await asyncio.sleep(self.token_s)
            last = index == count - 1
            choice = {"index": 0, "text": " word", "finish_reason": "length" if last else None}
            await self._event(writer, {"choices": [choice]}, chunked=chunked)
            if index == count // 2 and self.answer == "break":
                return False
            if index == count // 2 and self.answer == "error_event":
                await self._event(writer, {"error": {"message": "rank decode/0 died"}}, chunked=chunked)
        prompt = body["prompt"]
        usage = {"prompt_tokens": len(prompt) if isinstance(prompt, list) else 7, "completion_tokens": count}
        if self.answer != "no_usage":
            await self._event(writer, {"choices": [], "usage": usage}, chunked=chunked)
        if self.answer != "no_done":
            await self._event(writer, None, chunked=chunked)
        if chunked:
            writer.write(b"0\r\n\r\n")
        return chunked

    async def _event(self, writer: asyncio.StreamWriter, event: dict[str, object] | None, *, chunked: bool) -> None:
        data = b"data: " + (json.dumps(event).encode() if event else b"[DONE]") + b"\n\n"
        if chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if self.answer != "pieces":
            writer.write(data)
        else:
            for start in range(0, len(data), 7):
                writer.write(data[start : start + 7])
                await asyncio.sleep(0)
        await writer.drain()


@asynccontextmanager
async def fake_service(*, answer: str = "plain", token_s: float = 0.0) -> AsyncIterator[FakeService]:
    """Run a fake service on a free port."""
    assert answer in ANSWERS
    service = FakeService(token_s=token_s, answer=answer)
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await service.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            handlers.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()


async def _main(answer: str, token_s: float) -> None:
    async with fake_service(answer=answer, token_s=token_s) as service:
        print(service.base_url, flush=True)  # noqa: T201 - who started this process reads it
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2])))
