"""How fast KV goes from one process of this host to another, over each transport, and two yardsticks.

A sequence is timed from its first `send` to the receiver's acknowledgement, checksums and all, into
shuffled pages, over a warm connection. The yardsticks move the same number of bytes: the *line*
is `sendall` / `recv_into` over one TCP connection between the same addresses, acknowledged by a
byte and unchecked; *memcpy* is one copy within a process.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import socket
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np
import torch

from fourlane.engine.kv_transfer.contract import KvGeometry
from fourlane.engine.kv_transfer.select import make_receiver, make_sender
from fourlane.engine.kv_transfer.storage import allocate_kv
from fourlane.engine.kv_transfer.tcp import listen_at
from fourlane.engine.messages import KvAddress
from fourlane.engine.rank_config import RankConfig
from fourlane.engine.seal import Secret
from fourlane.errors import TransferError
from fourlane.spec.deployment import KvTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from fourlane.engine.kv_transfer.contract import Delivery, KvReceiver, KvSender
    from fourlane.spec.deployment import KvTransfer

__all__ = ["GRAIN", "Sending", "Series", "time_memcpy"]

GRAIN = 1 << 14
"""A sequence's size is a multiple of this: a token of 1 KiB of K and of V in each of 8 layers."""
_LAYERS, _HEADS, _DIM, _BLOCK = 8, 4, 64, 16
_WARM = 3
_TIMEOUT_S = 60.0
_IDLE_S = 1.0
_SECRET = Secret(bytes(32))


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """How long sequences of one size took over one way.

    Units:
        size: bytes a sequence; seconds: each sequence's, without those that warmed the connection up;
        send_s: what one `send` of a layer cost the computing thread, each sequence's mean.
    """

    way: str
    size: int
    seconds: list[float]
    send_s: list[float] = []


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the sending process is told: over `way` to `endpoint`, sequence `number`."""

    way: str
    endpoint: str = ""
    size: int = 0
    number: int = 0
    config: RankConfig | None = None


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float = 0.0
    send_s: float = 0.0
    failure: str = ""


def time_memcpy(size: int, repeats: int) -> Series:
    """Time one copy within this process."""
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    seconds = []
    for _ in range(repeats + _WARM):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return Series(way="memcpy", size=size, seconds=seconds[_WARM:])


class Sending:
    """A second process, which sends; this one receives. Use as a context manager, in one thread.

    Args:
        settings: addresses, streams, devices and timeout are taken from them; the transport is not.
        largest: bytes of the largest sequence.
    """

    def __init__(self, settings: KvTransfer, *, largest: int) -> None:
        self._settings = settings
        self._geometry = _geometry(largest)
        self._folder = tempfile.TemporaryDirectory(prefix="fourlane-bench-")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_send_jobs, args=(theirs, largest), daemon=True)
        self._process.start()
        theirs.close()
        self._number = 0

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._folder.cleanup()

    def time_line(self, size: int, repeats: int) -> Series:
        """Time plain TCP at the KV address.

        Raises:
            TransferError: the address is none of this host, or the sending process failed.
        """
        seconds: list[float] = []
        buffer = memoryview(bytearray(size))
        (server,) = listen_at([self._settings.address], None)
        with server:
            server.settimeout(_TIMEOUT_S)
            host, port = server.getsockname()[:2]
            job = _Job(way="line", endpoint=f"{host} {port}", size=size, number=repeats + _WARM)
            self._tell(job)
            sock, _ = server.accept()
            with sock:
                sock.settimeout(_TIMEOUT_S)
                for _ in range(repeats + _WARM):
                    done = 0
                    while done < size:
                        count = sock.recv_into(buffer[done:])
                        if not count:
                            raise TransferError("the sending process hung up")
                        done += count
                    sock.sendall(b"!")
                    seconds.append(self._answer().seconds)
        return Series(way="line", size=size, seconds=seconds[_WARM:])

    @contextmanager
    def open(self, transport: str) -> Iterator[Callable[[int, int], Series]]:
        """Start a transport; yields what times it: size, repeats -> series.

        Raises:
            EnvironmentMissing, SpecError, TransferError: it cannot be started.
        """
        receiving = self._config("decode", transport)
        storage = allocate_kv(self._geometry, "cpu", shared=transport == "shared_memory")
        storage.tensor.fill_(0)
        with closing(storage), closing(make_receiver(receiving, storage, self._geometry, secret=_SECRET)) as receiver:
            self._tell(_Job(way="open", config=self._config("prefill", transport)))
            self._answer()
            yield lambda size, repeats: self._time(transport, receiver, size, repeats)
            self._tell(_Job(way="close"))
            self._answer()

    def idle_cpu(self) -> tuple[float, float]:
        """Return what share of a core the receiving and the sending process use at rest."""
        cpu_s = time.process_time()
        self._tell(_Job(way="idle"))
        theirs = self._answer().seconds
        return (time.process_time() - cpu_s) / _IDLE_S, theirs / _IDLE_S

    def _config(self, role: str, transport: str) -> RankConfig:
        settings = self._settings
        return RankConfig(
            role="decode" if role == "decode" else "prefill",
            rank=0,
            ranks=1,
            model_path="",
            control_endpoint="ipc://",
            secret_file="",
            run_dir=self._folder.name,
            kv_transport=msgspec.convert(transport, KvTransport),
            kv_addresses=(settings.address, *settings.more_addresses),
            kv_streams=settings.streams,
            kv_devices=settings.devices,
            kv_gid_index=settings.gid_index,
            kv_timeout_s=_TIMEOUT_S,
        )

    def _time(self, transport: str, receiver: KvReceiver, size: int, repeats: int) -> Series:
        answers = [self._one(receiver, size) for _ in range(repeats + _WARM)][_WARM:]
        return Series(
            way=transport,
            size=size,
            seconds=[answer.seconds for answer in answers],
            send_s=[answer.send_s for answer in answers],
        )

    def _one(self, receiver: KvReceiver, size: int) -> _Done:
        self._number += 1
        tokens = size // GRAIN
        order = random.Random(self._number)  # noqa: S311 - an order of pages
        blocks = order.sample(range(self._geometry.blocks), -(-tokens // _BLOCK))
        failures: list[str] = []
        receiver.expect(self._number, blocks, tokens=tokens, on_complete=_ignore, on_failed=failures.append)
        self._tell(_Job(way="send", endpoint=receiver.endpoint, size=size, number=self._number))
        answer = self._answer()
        if failures:
            raise TransferError(failures[0])
        return answer

    def _tell(self, job: _Job) -> None:
        try:
            self._pipe.send_bytes(msgspec.msgpack.encode(job))
        except OSError as error:
            raise TransferError(f"the sending process is gone: {error}") from error

    def _answer(self) -> _Done:
        if not self._pipe.poll(_TIMEOUT_S):
            raise TransferError(f"no answer from the sending process for {_TIMEOUT_S:g} s")
        try:
            answer = msgspec.msgpack.decode(self._pipe.recv_bytes(), type=_Done)
        except (EOFError, OSError) as error:
            raise TransferError(f"the sending process died (exit status {self._process.exitcode})") from error
        if answer.failure:
            raise TransferError(answer.failure)
        return answer


def _ignore(_: int) -> None:
    """Take a completion; the sender measures it."""


def _geometry(largest: int) -> KvGeometry:
    blocks = -(-largest // GRAIN // _BLOCK) + 4
    return KvGeometry(layers=_LAYERS, blocks=blocks, block_size=_BLOCK, kv_heads=_HEADS, head_dim=_DIM)


# the sending process


def _send_jobs(pipe: Connection, largest: int) -> None:
    """Do what is told until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sender = _Sender(largest)
    while True:
        try:
            job = msgspec.msgpack.decode(pipe.recv_bytes(), type=_Job)
        except (EOFError, OSError):
            sender.close()
            return
        try:
            for answer in sender.do(job):
                pipe.send_bytes(msgspec.msgpack.encode(answer))
        except Exception as error:  # noqa: BLE001 - the other process reports it
            pipe.send_bytes(msgspec.msgpack.encode(_Done(failure=f"sending process: {error}")))


class _Sender:
    """The sending side of all transports, one at a time."""

    def __init__(self, largest: int) -> None:
        self._geometry = _geometry(largest)
        generator = torch.Generator().manual_seed(0)
        self._kv_TLHd = torch.randn(2, largest // GRAIN, _HEADS, _DIM, generator=generator)
        self._sender: KvSender | None = None

    def do(self, job: _Job) -> Iterator[_Done]:
        """Do one thing; yield the answers."""
        if job.way == "line":
            yield from _send_plainly(job)
        elif job.way == "open" and job.config is not None:
            self._sender = make_sender(job.config, self._geometry, secret=_SECRET)
            yield _Done()
        elif job.way == "idle":
            cpu_s = time.process_time()
            time.sleep(_IDLE_S)
            yield _Done(seconds=time.process_time() - cpu_s)
        elif job.way == "close":
            self.close()
            yield _Done()
        else:
            yield self._send(job)

    def _send(self, job: _Job) -> _Done:
        assert self._sender is not None
        tokens = job.size // GRAIN
        done = threading.Event()
        failures: list[str] = []

        def delivered(_: Delivery) -> None:
            done.set()

        def failed(reason: str) -> None:
            failures.append(reason)
            done.set()

        k_THd, v_THd = self._kv_TLHd[0, :tokens], self._kv_TLHd[1, :tokens]
        target = KvAddress(endpoint=job.endpoint, blocks=[], owner="receiver")
        began = time.perf_counter()
        stream = self._sender.open(job.number, target, on_delivered=delivered, on_failed=failed)
        for layer in range(_LAYERS):
            stream.send(layer, 0, k_THd, v_THd)
        queued = time.perf_counter()
        stream.finish(tokens=tokens, first_token_id=1)
        if not done.wait(_TIMEOUT_S):
            failures.append(f"no acknowledgement for {_TIMEOUT_S:g} s")
        seconds = time.perf_counter() - began
        return _Done(seconds=seconds, send_s=(queued - began) / (_LAYERS + 1), failure="; ".join(failures))

    def close(self) -> None:
        """End the transport."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def _send_plainly(job: _Job) -> Iterator[_Done]:
    host, port = job.endpoint.split()
    payload = np.random.default_rng(0).bytes(job.size)
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(job.number):
            began = time.perf_counter()
            sock.sendall(payload)
            sock.recv(1)
            yield _Done(seconds=time.perf_counter() - began)
