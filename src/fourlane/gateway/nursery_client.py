"""The gateway's end of the nursery: starts it, asks it for ranks, hears how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from fourlane.engine.nursery import (
    DEFAULT_TARGET,
    FrameBuffer,
    Kill,
    PreloadFailed,
    Ready,
    Spawn,
    decode_from_nursery,
    encode_frame,
)
from fourlane.errors import EngineError, EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.nursery import FromNursery, ToNursery
    from fourlane.engine.rank_config import RankConfig
    from fourlane.gateway.run_dir import RunDir

__all__ = ["NurseryClient", "missing_module"]

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Set to 1 for the nursery: a process that forks must have one thread. Ranks set their own number."""


class NurseryClient:
    """One nursery process. Use from one asyncio loop; start it from the loop's thread.

    Args:
        run_dir: where logs go; the nursery removes the folder if the gateway is killed.
        on_event: called with `Spawned` and `Exited`, in order.
        on_lost: called once if the nursery ends without having been asked to.
        target: what ranks run, "module:function".
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        on_event: Callable[[FromNursery], None],
        on_lost: Callable[[], None],
        target: str = DEFAULT_TARGET,
    ) -> None:
        self._run_dir = run_dir
        self._on_event = on_event
        self._on_lost = on_lost
        self._target = target
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Return the process id; None before `start`."""
        return self._process.pid if self._process is not None else None

    async def start(self, *, timeout_s: float) -> Ready:
        """Start the process and wait until it has imported everything.

        Raises:
            EnvironmentMissing: a module it needs is not installed.
            EngineError: an import failed, or took longer than the timeout.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await self._launch(theirs)
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._ready = asyncio.get_running_loop().create_future()
        self._listener = asyncio.create_task(self._listen(reader), name="nursery listener")
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
        except TimeoutError:
            raise EngineError(
                f"the nursery (process {self.pid}) did not finish its imports within {timeout_s:g} s"
                f"{_quoted(self._run_dir.tail_of('nursery'))}"
            ) from None

    def spawn(self, config: RankConfig) -> None:
        """Ask for a rank; `Spawned` follows."""
        self._send(Spawn(config=config, log=str(self._run_dir.log_of(config.name)), target=self._target))

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a rank; `Exited` follows, unless it came already."""
        self._send(Kill(pid=pid))

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """End the nursery and with it all ranks that still run. May be called again."""
        self._closing = True
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), timeout_s)
            except TimeoutError:
                self.kill_now()
                await self._process.wait()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    def kill_now(self) -> None:
        """Send SIGKILL to the nursery; the kernel passes it on to the ranks. Waits for nothing."""
        self._closing = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _launch(self, control: socket.socket) -> asyncio.subprocess.Process:
        module = self._target.partition(":")[0]
        command = [sys.executable, "-P", "-m", "fourlane.engine.nursery", "--run-dir", str(self._run_dir.path)]
        with self._run_dir.log_of("nursery").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                "--preload",
                module,
                stdin=control.fileno(),
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        frames = FrameBuffer()
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(65536):
                for frame in frames.feed(data):
                    self._take(decode_from_nursery(frame))
        assert self._ready is not None
        assert self._writer is not None
        self._writer.close()
        if not self._ready.done():
            tail = _quoted(self._run_dir.tail_of("nursery"))
            self._ready.set_exception(EngineError(f"the nursery ended while it imported the engine{tail}"))
        elif not self._closing:
            self._on_lost()

    def _take(self, message: FromNursery) -> None:
        assert self._ready is not None
        if isinstance(message, Ready):
            self._ready.set_result(message)
        elif isinstance(message, PreloadFailed):
            self._ready.set_exception(_import_error(message))
        else:
            self._on_event(message)

    def _send(self, message: ToNursery) -> None:
        assert self._writer is not None, "start comes first"
        self._writer.write(encode_frame(message))


def missing_module(name: str) -> EnvironmentMissing:
    """Return the error that says how to get a module the engine needs."""
    return EnvironmentMissing(
        f"the engine needs the Python module {name!r}, which is not installed: pip install 'fourlane[engine]'"
    )


def _import_error(failure: PreloadFailed) -> Exception:
    if failure.missing is not None and not failure.missing.startswith("fourlane"):
        return missing_module(failure.missing)
    return EngineError(f"the nursery cannot {failure.detail}")


def _environment() -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONUNBUFFERED": "1"}


def _quoted(tail: str) -> str:
    return f"; the last lines of its log:\n{tail}" if tail else ""
