"""The nursery: imports torch and the engine once, then forks a rank in milliseconds when asked.

Started by the gateway's supervisor as `python -m fourlane.engine.nursery --preload ...`, with one
end of a socket pair as its standard input; frames on it are four bytes of length, then msgpack.
It stays single-threaded and never touches CUDA (forked ranks initialise it themselves), sleeps in
the kernel while nothing happens, and takes its ranks with it when it ends: they get SIGKILL from
the kernel when the nursery dies, and the nursery when the gateway dies.

Importing this module imports no torch: the gateway uses its messages. Not for ranks that something
else starts (`fourlane worker`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from fourlane.engine.rank_config import RankConfig
from fourlane.errors import FourlaneError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DEFAULT_TARGET",
    "Exited",
    "FrameBuffer",
    "FromNursery",
    "Kill",
    "Nursery",
    "PreloadFailed",
    "Ready",
    "Spawn",
    "Spawned",
    "ToNursery",
    "decode_from_nursery",
    "die_with_parent",
    "encode_frame",
    "main",
    "name_process",
]

DEFAULT_TARGET = "fourlane.engine.worker:run_rank"
MAX_FRAME = 1 << 20
UNEXPECTED_ERROR = 70
"""Exit status of a rank that ended in an error nobody foresaw (EX_SOFTWARE)."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: immutable, tagged with its class name."""


class Spawn(_Message, frozen=True, kw_only=True):
    """Fork a rank that runs `target` ("module:function") on `config` and writes to the file `log`."""

    config: RankConfig
    log: str
    target: str = DEFAULT_TARGET


class Kill(_Message, frozen=True, kw_only=True):
    """Send a signal to a rank; ignored if it has ended already, so it can never hit a stranger."""

    pid: int
    signal: int = int(signal.SIGKILL)


ToNursery = Spawn | Kill


class Ready(_Message, frozen=True, kw_only=True):
    """Everything is imported. `seconds`: how long that took."""

    pid: int
    seconds: float


class PreloadFailed(_Message, frozen=True, kw_only=True):
    """An import failed; the nursery ends. `missing`: the absent module, if that was the cause."""

    detail: str
    missing: str | None = None


class Spawned(_Message, frozen=True, kw_only=True):
    """A rank runs."""

    name: str
    pid: int


class Exited(_Message, frozen=True, kw_only=True):
    """A rank ended. `status`: its exit code, or minus the number of the signal that ended it."""

    name: str
    pid: int
    status: int


FromNursery = Ready | PreloadFailed | Spawned | Exited

_to_nursery = msgspec.msgpack.Decoder(ToNursery)
_from_nursery = msgspec.msgpack.Decoder(FromNursery)


def encode_frame(message: ToNursery | FromNursery) -> bytes:
    """Encode a message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def decode_from_nursery(body: bytes) -> FromNursery:
    """Decode what the nursery sent.

    Raises:
        ProtocolError: not such a message.
    """
    try:
        return _from_nursery.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"nursery: malformed message: {error}") from error


class FrameBuffer:
    """Cut a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they come; return the frames they complete, in order.

        Raises:
            ProtocolError: a frame longer than any message can be.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > MAX_FRAME:
                raise ProtocolError(f"nursery: frame of {length} bytes; at most {MAX_FRAME} are allowed")
            if len(self._buffer) < 4 + length:
                break
            frames.append(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return frames


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGKILL to this process when its parent dies (Linux; elsewhere no effect).

    Args:
        parent_pid: who the parent was when this process was started; if it is gone already, the
            process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)


def name_process(name: str) -> None:
    """Give the process a name of at most 15 bytes for ps and top (Linux; elsewhere no effect)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class Nursery:
    """Serve one control socket: fork ranks, reap them, report their ends.

    Args:
        control: connected stream socket to the supervisor.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._frames = FrameBuffer()
        self._names: dict[int, str] = {}
        self._wake_read, self._wake_write = socket.socketpair()

    def run(self) -> None:
        """Work until the supervisor closes its end; then kill what still runs and reap it."""
        self._wake_write.settimeout(0)
        self._wake_read.settimeout(0)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._control, selectors.EVENT_READ, self._on_control)
                selector.register(self._wake_read, selectors.EVENT_READ, self._on_child)
                while all(key.data() for key, _ in selector.select()):
                    pass
        finally:
            self._kill_all()

    def send(self, message: FromNursery) -> None:
        """Report to the supervisor; a supervisor that is gone is noticed by the next read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(encode_frame(message))

    def _on_control(self) -> bool:
        try:
            data = self._control.recv(65536)
        except ConnectionResetError:
            data = b""
        for frame in self._frames.feed(data):
            match _to_nursery.decode(frame):
                case Spawn() as spawn:
                    self._spawn(spawn)
                case Kill(pid=pid, signal=number) if pid in self._names:
                    os.kill(pid, number)
                case Kill():
                    pass
        return bool(data)

    def _on_child(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
        self._reap(os.WNOHANG)
        return True

    def _spawn(self, spawn: Spawn) -> None:
        nursery_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_rank(spawn, nursery_pid=nursery_pid, inherited=(self._control, self._wake_read, self._wake_write))
        self._names[pid] = spawn.config.name
        self.send(Spawned(name=spawn.config.name, pid=pid))

    def _reap(self, options: int) -> None:
        while self._names:
            pid, status = os.waitpid(-1, options)
            if pid == 0:
                return
            name = self._names.pop(pid, None)
            if name is not None:
                self.send(Exited(name=name, pid=pid, status=os.waitstatus_to_exitcode(status)))

    def _kill_all(self) -> None:
        for pid in self._names:
            os.kill(pid, signal.SIGKILL)
        self._reap(0)


def _become_rank(spawn: Spawn, *, nursery_pid: int, inherited: Sequence[socket.socket]) -> NoReturn:
    """Turn the freshly forked process into a rank; never return to the nursery's code."""
    status = UNEXPECTED_ERROR
    try:
        die_with_parent(nursery_pid)
        os.setsid()
        name_process(spawn.config.name)
        _default_signals()
        for end in inherited:
            end.close()
        _redirect_output(Path(spawn.log))
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(spawn.config.threads)
        status = _resolve(spawn.target)(spawn.config)
    except FourlaneError as error:
        status = error.exit_code
        _print(f"{type(error).__name__}: {error}")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends here; the trace goes to the rank's log
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)
    raise AssertionError("os._exit does not return")


def _default_signals() -> None:
    """Undo the nursery's handlers. Ctrl-C is the supervisor's to handle, so SIGINT is ignored."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _redirect_output(log: Path) -> None:
    """Point standard output and error at the end of a file, standard input at nothing."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    os.close(null)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _resolve(target: str) -> Callable[[RankConfig], int]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")


def _preload(modules: Sequence[str]) -> PreloadFailed | None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            return PreloadFailed(detail=f"import {module}: {error}", missing=error.name)
        except Exception:  # noqa: BLE001 - whatever an import raises is told to the supervisor
            return PreloadFailed(detail=f"import {module}:\n{traceback.format_exc()}")
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a nursery on standard input; return the exit code."""
    parser = argparse.ArgumentParser(description="Fork ranks for a fourlane gateway; started by it, not by hand.")
    parser.add_argument("--run-dir", type=Path, help="folder to remove in the end")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to import before the first fork")
    options = parser.parse_args(arguments)
    name_process("fl:nursery")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nursery = Nursery(socket.socket(fileno=os.dup(0)))
    began = time.monotonic()
    failure = _preload(options.preload)
    if failure is not None:
        nursery.send(failure)
        return 3
    gc.freeze()
    nursery.send(Ready(pid=os.getpid(), seconds=time.monotonic() - began))
    nursery.run()
    if options.run_dir is not None:  # the gateway has gone; if it was killed, nobody else will remove it
        shutil.rmtree(options.run_dir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
