"""The exchange over own TCP connections, ranks in threads: leaving while somebody waits, who waited for whom, pace."""

from __future__ import annotations

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fourlane.errors import PeerLost

torch = pytest.importorskip("torch")

from fourlane.engine.exchange.meeting import GroupAddress  # noqa: E402
from fourlane.engine.exchange.tcp import TcpExchange  # noqa: E402
from fourlane.engine.seal import Secret  # noqa: E402
from fourlane.policy.placement import linear_placement  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLACEMENT = {"layers": 1, "experts": 8}
SO_MAX_PACING_RATE = 47


@contextmanager
def group(folder: Path, ranks: int, **settings: Any) -> Iterator[list[TcpExchange]]:
    """Form a group, all its ranks in this process."""

    def join(rank: int) -> TcpExchange:
        address = GroupAddress(str(folder / "store"), rank, ranks, "127.0.0.1", join_s=20, step_s=20)
        placement = linear_placement(**PLACEMENT, ranks=ranks)
        return TcpExchange(address, placement, device=torch.device("cpu"), secret=Secret(b"s" * 32), **settings)

    with ThreadPoolExecutor(ranks) as pool, ExitStack() as stack:
        exchanges = list(pool.map(join, range(ranks)))
        for exchange in exchanges:
            stack.callback(exchange.close)
        yield exchanges


def at_once(exchanges: list[TcpExchange], body: Callable[[TcpExchange], Any]) -> list[Any]:
    """Run a body for each rank in a thread of its own."""
    with ThreadPoolExecutor(len(exchanges)) as pool:
        return list(pool.map(body, exchanges))


@pytest.mark.parametrize("leave", ["close", "interrupt"])
def test_leaving_ends_a_wait_of_another_thread_at_once(leave: str, tmp_path: Path) -> None:
    with group(tmp_path, 2) as (here, there), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(here.all_to_all, torch.zeros((2, 1000), dtype=torch.uint8))
        time.sleep(0.2)
        began = time.monotonic()
        getattr(here, leave)()
        with pytest.raises(PeerLost, match=r"this rank leaves the group; rank 1: waited for; 0 of 1020 bytes"):
            waiting.result(5)
        assert time.monotonic() - began < 2
        blocks = torch.zeros((2, 1000), dtype=torch.uint8)
        there.all_to_all(blocks)  # what had been sent is still worth having
        with pytest.raises(PeerLost, match=r"rank 0: (it closed the connection|Connection reset by peer|Broken pipe)"):
            there.all_to_all(blocks)


def test_descriptors_are_closed_only_when_no_thread_uses_them(tmp_path: Path) -> None:
    # whoever takes a closed descriptor's number next would be written to
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with group(folder, 2) as exchanges:
            failed = []

            def work(exchange: TcpExchange, failed: list[PeerLost] = failed) -> None:
                try:
                    while True:
                        exchange.all_to_all(torch.zeros((2, 100_000), dtype=torch.uint8))
                except PeerLost as error:
                    failed.append(error)

            threads = [threading.Thread(target=work, args=(exchange,)) for exchange in exchanges]
            for thread in threads:
                thread.start()
            time.sleep(0.002 * turn)
            exchanges[turn % 2].close()
            with socket.socket() as stranger, stranger.makefile("rb"):  # takes a number that has become free
                for thread in threads:
                    thread.join(5)
                    assert not thread.is_alive()
            assert len(failed) == 2, failed


def test_who_is_waited_for_is_told_by_rank(tmp_path: Path) -> None:
    def take_part(exchange: TcpExchange) -> list[float]:
        exchange.begin_step(0, more=False)
        if exchange.rank == 2:
            time.sleep(0.4)
        exchange.tell_all_numbers(np.zeros(3, dtype=np.int64))
        exchange.all_to_all(torch.zeros((3, 500), dtype=torch.uint8))
        return exchange.counters.waited_for_G

    with group(tmp_path, 3) as exchanges:
        waits_GG = np.array(at_once(exchanges, take_part))
    assert waits_GG.shape == (3, 3)
    assert (np.diag(waits_GG) == 0).all()
    assert (waits_GG[:2, 2] > 0.3).all()
    assert (waits_GG[:2, :2] < 0.2).all()
    assert (waits_GG[2] < 0.2).all()


def test_a_group_that_is_paced_takes_the_time_its_line_would(tmp_path: Path) -> None:
    pace, size = 80_000_000, 500_000

    def exchange_blocks(exchange: TcpExchange) -> float:
        began = time.perf_counter()
        for _ in range(3):
            exchange.all_to_all(torch.zeros((2, size), dtype=torch.uint8))
        return time.perf_counter() - began

    with group(tmp_path, 2, pace=pace) as exchanges:
        took = min(at_once(exchanges, exchange_blocks))
    # The kernel lets a sender that was kept waiting catch up at up to twice its pace; unpaced it takes a hundredth.
    assert took > 0.45 * (3 * size * 8 / pace)


def test_connections_share_the_pace_of_their_rank(tmp_path: Path) -> None:
    with group(tmp_path, 3, pace=60_000_000) as exchanges:
        for exchange in exchanges:
            carrier = exchange._carrier
            assert carrier is not None
            rates = [
                struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
                for sock in carrier._sockets  # type: ignore[attr-defined]
                if sock is not None
            ]
            assert rates == [30_000_000 // 8] * 2
