"""How fast KV goes from one process to another, against plain sockets and a plain copy.

    python benchmarks/bench_kv_transfer.py [--repeats 15]

Sequences of 1 MB and 64 MB (8 layers, sent layer by layer, into shuffled pages) go from a second
process to this one, each timed from its first `send` to the receiver's acknowledgement, checksums
and all. Baselines of the same run and the same bytes: `sendall` / `recv_into` over loopback TCP
into one buffer, acknowledged by a byte and unchecked; a UNIX socket likewise; one `numpy.copyto`.
Also: what `send` costs the computing thread. Medians; warm connections.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane.engine.kv_transfer.contract import KvGeometry
from fourlane.engine.kv_transfer.sender import Sender
from fourlane.engine.kv_transfer.shared_memory import SharedMemoryOutlet, shared_memory_receiver
from fourlane.engine.kv_transfer.storage import allocate_kv
from fourlane.engine.kv_transfer.tcp import TcpOutlet, tcp_receiver
from fourlane.engine.messages import KvAddress
from fourlane.engine.seal import Secret

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from fourlane.engine.kv_transfer.contract import Delivery
    from fourlane.engine.kv_transfer.outlet import Outlet
    from fourlane.engine.kv_transfer.receiver import Receiver

SECRET = Secret(bytes(32))
LAYERS = 8
SIZES = {"1 MB": 1 << 20, "64 MB": 64 << 20}
TIMEOUT_S = 60.0


def geometry_for(size: int) -> KvGeometry:
    """Return a cache that holds one sequence of `size` bytes: pages of 16 tokens of 1 KiB of K each."""
    tokens = size // (2 * LAYERS * 1024)
    return KvGeometry(layers=LAYERS, blocks=tokens // 16 + 4, block_size=16, kv_heads=4, head_dim=64)


def send_sequences(pipe: Connection, endpoint: str, size: int, repeats: int) -> None:
    """Run in the sending process: send when told to, answer with the seconds it took."""
    torch.set_num_threads(1)
    geometry = geometry_for(size)
    tokens = size // (2 * LAYERS * 1024)
    k_LTHd = torch.randn(LAYERS, tokens, 4, 64)
    v_LTHd = torch.randn(LAYERS, tokens, 4, 64)

    def make_outlet(target: KvAddress) -> Outlet:
        if target.endpoint.startswith("tcp"):
            return TcpOutlet(
                target, geometry=geometry, addresses=["127.0.0.1"], name="sender", secret=SECRET, timeout_s=TIMEOUT_S
            )
        return SharedMemoryOutlet(target, geometry=geometry, name="sender", secret=SECRET, timeout_s=TIMEOUT_S)

    sender = Sender(geometry, make_outlet=make_outlet, timeout_s=TIMEOUT_S)
    for number in range(repeats):
        blocks = pipe.recv()
        done = threading.Event()
        failures: list[str] = []

        def delivered(_: Delivery, done: threading.Event = done) -> None:
            done.set()

        def failed(reason: str, done: threading.Event = done, failures: list[str] = failures) -> None:
            failures.append(reason)
            done.set()

        target = KvAddress(endpoint=endpoint, blocks=blocks, owner="receiver")
        began = time.perf_counter()
        stream = sender.open(number, target, on_delivered=delivered, on_failed=failed)
        for layer in range(LAYERS):
            stream.send(layer, 0, k_LTHd[layer], v_LTHd[layer])
        queued = time.perf_counter()
        stream.finish(tokens=tokens, first_token_id=1)
        done.wait(TIMEOUT_S)
        if failures:
            raise RuntimeError(failures[0])
        pipe.send((time.perf_counter() - began, (queued - began) / (LAYERS + 1)))
    sender.close()


def time_transport(transport: str, size: int, repeats: int) -> tuple[float, float]:
    """Return the median seconds of a sequence, and of the computing thread's part of one `send`."""
    geometry = geometry_for(size)
    storage = allocate_kv(geometry, "cpu", shared=transport == "shared memory")
    storage.tensor.fill_(0)
    with tempfile.TemporaryDirectory() as folder:
        if transport == "tcp":
            receiver = tcp_receiver(
                storage, addresses=["127.0.0.1"], ports=None, name="receiver", secret=SECRET, timeout_s=TIMEOUT_S
            )
        else:
            receiver = shared_memory_receiver(
                storage, run_dir=Path(folder), name="receiver", secret=SECRET, timeout_s=TIMEOUT_S
            )
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=send_sequences, args=(there, receiver.endpoint, size, repeats)
        )
        process.start()
        try:
            times = [_one(receiver, here, geometry, size, number) for number in range(repeats)]
        finally:
            process.join(TIMEOUT_S)
            receiver.close()
            storage.close()
    warm = times[min(3, repeats - 1) :]
    return statistics.median(pair[0] for pair in warm), statistics.median(pair[1] for pair in warm)


def ignore(_: int) -> None:
    """Take a completion; the sender measures it."""


def _one(receiver: Receiver, pipe: Connection, geometry: KvGeometry, size: int, number: int) -> tuple[float, float]:
    tokens = size // (2 * LAYERS * 1024)
    blocks = random.Random(number).sample(range(geometry.blocks), tokens // 16)  # noqa: S311 - an order of pages
    failures: list[str] = []
    receiver.expect(number, blocks, tokens=tokens, on_complete=ignore, on_failed=failures.append)
    pipe.send(blocks)
    if not pipe.poll(TIMEOUT_S):
        raise RuntimeError(f"no answer from the sender: {failures}")
    return pipe.recv()


def send_plainly(pipe: Connection, address: str | tuple[str, int], size: int, repeats: int) -> None:
    """Run in the sending process: the baseline's sender."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    payload = np.random.default_rng(0).bytes(size)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)
        for _ in range(repeats):
            pipe.recv()
            began = time.perf_counter()
            sock.sendall(payload)
            sock.recv(1)
            pipe.send(time.perf_counter() - began)


def time_plain_socket(family: socket.AddressFamily, size: int, repeats: int) -> float:
    """Return the median seconds of `sendall` / `recv_into` with a byte of acknowledgement."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind(os.path.join(folder, "s") if family == socket.AF_UNIX else ("127.0.0.1", 0))  # noqa: PTH118
        server.listen(1)
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=send_plainly, args=(there, server.getsockname(), size, repeats)
        )
        process.start()
        times = []
        buffer = memoryview(bytearray(size))
        sock, _ = server.accept()
        with sock:
            for _ in range(repeats):
                here.send(None)
                done = 0
                while done < size:
                    done += sock.recv_into(buffer[done:])
                sock.sendall(b"!")
                times.append(here.recv())
        process.join(TIMEOUT_S)
    return statistics.median(times[min(3, repeats - 1) :])


def time_memcpy(size: int, repeats: int) -> float:
    """Return the median seconds of one copy within this process."""
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measure and print one table a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for label, size in SIZES.items():
        plain = time_plain_socket(socket.AF_INET, size, repeats)
        tcp, tcp_send = time_transport("tcp", size, repeats)
        shared, shared_send = time_transport("shared memory", size, repeats)
        rows = [
            ("plain TCP, sendall/recv_into", plain),
            ("plain UNIX socket", time_plain_socket(socket.AF_UNIX, size, repeats)),
            ("memcpy", time_memcpy(size, repeats)),
            ("fourlane tcp", tcp),
            ("fourlane shared memory", shared),
        ]
        print(f"{label} a sequence, {LAYERS} layers, median of {max(repeats - 3, 1)}")
        for name, seconds in rows:
            print(f"  {name:30} {size / seconds / 1e9:7.2f} GB/s   {plain / seconds:5.2f} x plain TCP")
        thread = f"{tcp_send * 1e6:.0f} us over tcp, {shared_send * 1e6:.0f} us over shared memory"
        print(f"  the computing thread spends, a layer: {thread}")


if __name__ == "__main__":
    main()
