"""The exchange through shared memory among threads: who gets in, what fits, what is left."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
import torch
import torch.distributed as dist

from fourlane.engine.exchange import shared_meeting
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.shared_memory import SharedMemoryExchange
from fourlane.engine.seal import Secret
from fourlane.errors import EngineError, PeerLost, SpecError
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

T = TypeVar("T")

CPU = torch.device("cpu")
EXPERTS = 4


def join(
    folder: Path, rank: int, *, ranks: int = 2, secret: bytes = b"s" * 32, join_s: float = 10.0, step_s: float = 10.0
) -> SharedMemoryExchange:
    address = GroupAddress(str(folder / "store"), rank, ranks, "127.0.0.1", join_s=join_s, step_s=step_s)
    return SharedMemoryExchange(address, placement_of(ranks), device=CPU, secret=Secret(secret))


def placement_of(ranks: int) -> Placement:
    return linear_placement(layers=1, experts=EXPERTS, ranks=ranks)


def by_ranks(body: Callable[[int], T], ranks: int = 2) -> list[T | BaseException]:
    """Run a body for each rank in a thread of its own; return results, or what was raised."""

    def run(rank: int) -> T | BaseException:
        threading.current_thread().name = f"rank {rank}"
        try:
            return body(rank)
        except (AssertionError, EngineError, SpecError) as error:
            return error.with_traceback(None)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def group_of(folder: Path, ranks: int = 2, step_s: float = 10.0) -> list[SharedMemoryExchange]:
    found = by_ranks(lambda rank: join(folder, rank, ranks=ranks, step_s=step_s), ranks)
    exchanges = [one for one in found if isinstance(one, SharedMemoryExchange)]
    assert len(exchanges) == ranks, found
    for one in exchanges:
        one.begin_step(0, more=False)
    return exchanges


def batch(tokens: int = 6, dim: int = 8, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, dim, generator=generator)
    return x_TD, torch.rand(tokens, EXPERTS, generator=generator).topk(2).indices, torch.full((tokens, 2), 0.5)


def segments_mapped() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:fourlane-exchange")


def test_a_rank_with_another_secret_is_not_let_in(tmp_path: Path) -> None:
    first, second = by_ranks(lambda rank: join(tmp_path, rank, secret=bytes([rank]) * 32, join_s=1.0))
    assert isinstance(first, PeerLost)
    assert "absent: rank 1" in str(first)
    assert isinstance(second, PeerLost)
    assert "no connection to rank 0 on this host" in str(second)


def test_a_stranger_who_connects_is_sent_away_and_the_group_forms_without_him(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def body(rank: int) -> list[str]:
        if rank == 0:
            return join(tmp_path, rank).tell_all("here is 0")
        seat = msgspec.json.decode(dist.FileStore(str(tmp_path / "store"), 2).get("shared memory/0"))
        with socket.socket(socket.AF_UNIX) as stranger, suppress(ConnectionResetError):
            stranger.connect(f"\0{seat['name']}")
            stranger.sendall(bytes(100))
            told = join(tmp_path, rank).tell_all("here is 1")
            assert stranger.recv(100)[:4] == b"FLXG"
            assert stranger.recv(100) == b"", "the stranger was let in"
        return told

    assert by_ranks(body) == [["here is 0", "here is 1"]] * 2
    assert "sent away somebody on this host" in caplog.text


def test_ranks_of_two_hosts_are_told_to_use_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_meeting, "_host", lambda: threading.current_thread().name)
    for rank, error in enumerate(by_ranks(lambda rank: join(tmp_path, rank))):
        assert isinstance(error, SpecError)
        assert f'rank {1 - rank} is on another than rank {rank}; use "tcp"' in str(error)


def test_activations_on_a_gpu_are_refused_before_anybody_is_waited_for(tmp_path: Path) -> None:
    address = GroupAddress(str(tmp_path / "store"), 0, 2, "127.0.0.1", join_s=60, step_s=60)
    with pytest.raises(SpecError, match="shared_memory is for activations on a CPU, got a pool on cuda"):
        SharedMemoryExchange(address, placement_of(2), device=torch.device("cuda"), secret=Secret(bytes(32)))


def test_ranks_of_unlike_limits_agree_on_the_smallest_and_say_alike_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = {"rank 0": 1 << 20, "rank 1": 8192}
    monkeypatch.setattr(shared_meeting, "_room", lambda _: rooms[threading.current_thread().name])
    exchanges = group_of(tmp_path)
    placement = placement_of(2)

    def fits(rank: int) -> bool:
        x_TD, topk_TK, weights_TK = batch(seed=rank)
        received = exchanges[rank].dispatch(x_TD, topk_TK, weights_TK, placement, layer=0).wait()
        return torch.allclose(exchanges[rank].combine(received.x_RD, received).wait(), x_TD)

    def does_not_fit(rank: int) -> None:
        exchanges[rank].dispatch(*batch(200, seed=rank), placement, layer=0).wait()

    assert by_ranks(fits) == [True, True]
    errors = by_ranks(does_not_fit)
    assert all(type(error) is EngineError for error in errors), errors
    assert len(set(map(str, errors))) == 1
    assert "has room for 8192 here; lower chunk_tokens" in str(errors[0])


@pytest.mark.parametrize(("limit", "most"), [("RLIMIT_AS", 2 << 30), ("RLIMIT_FSIZE", 1 << 30)])
def test_a_processs_limits_make_buffers_smaller(limit: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shared_meeting._room(2)
    number = getattr(shared_meeting.resource, limit)
    real = shared_meeting.resource.getrlimit
    monkeypatch.setattr(
        shared_meeting.resource, "getrlimit", lambda kind: (most, most) if kind == number else real(kind)
    )
    assert 0 < shared_meeting._room(2) * 6 <= most < free * 6


def test_a_third_batch_under_way_is_an_error_that_says_which_one_is_in_the_way(tmp_path: Path) -> None:
    exchange, _ = group_of(tmp_path)
    placement = placement_of(2)
    exchange.dispatch(*batch(), placement, layer=0)
    exchange.dispatch(*batch(), placement, layer=0)
    with pytest.raises(AssertionError, match=r"at most 2 dispatches may be under way.*it was not waited for"):
        exchange.dispatch(*batch(), placement, layer=0)


def test_a_batch_that_is_never_combined_gives_way_to_the_second_after_it(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path)
    placement = placement_of(2)

    def body(rank: int) -> bool:
        dropped = exchanges[rank].dispatch(*batch(seed=rank), placement, layer=0).wait()
        for seed in range(4):
            x_TD, topk_TK, weights_TK = batch(seed=seed + rank)
            received = exchanges[rank].dispatch(x_TD, topk_TK, weights_TK, placement, layer=0).wait()
            assert torch.allclose(exchanges[rank].combine(received.x_RD, received).wait(), x_TD)
        with pytest.raises(AssertionError, match="combined after two later dispatches had begun"):
            exchanges[rank].combine(dropped.x_RD, dropped)
        return True

    assert by_ranks(body) == [True, True]


def test_nothing_of_a_group_is_left_but_rows_that_are_still_held(tmp_path: Path) -> None:
    before = segments_mapped()
    exchanges = group_of(tmp_path)
    assert segments_mapped() == before + 4  # two ranks, each with both segments, in this one process

    def body(rank: int) -> Tensor:
        return exchanges[rank].dispatch(*batch(seed=rank), placement_of(2), layer=0).wait().x_RD

    held = [one for one in by_ranks(body) if isinstance(one, torch.Tensor)]
    expected = [x_RD.clone() for x_RD in held]
    for exchange in exchanges:
        exchange.close()
    del exchange, body
    exchanges.clear()
    assert segments_mapped() == before + 2
    assert all(torch.equal(x_RD, copy) for x_RD, copy in zip(held, expected, strict=True))
    held.clear()
    assert segments_mapped() == before


def test_who_leaves_ends_his_own_wait_and_is_named_by_the_others(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path, ranks=3)

    def body(rank: int) -> None:
        if rank == 2:
            threading.Timer(0.2, exchanges[2].close).start()
        if rank != 1:
            exchanges[rank].dispatch(*batch(), placement_of(3), layer=0).wait()
            return
        time.sleep(0.6)
        exchanges[1].dispatch(*batch(), placement_of(3), layer=0).wait()

    first, second, left = by_ranks(body, ranks=3)
    assert "step 0, layer 0, counts" in str(left)
    assert "this rank has left the group" in str(left)
    for error in (first, second):
        assert isinstance(error, PeerLost)
    exchanges[0].close()
    assert "rank 2: it closed the connection or died" in str(second) or "rank 2" in str(first)
    with pytest.raises(PeerLost, match="could not exchange"):
        exchanges[0].tell_all("again")


def test_a_signal_is_handled_while_a_rank_waits(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path)
    handled: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: handled.append(number))
    other = threading.Timer(0.5, lambda: exchanges[1].tell_all("late"))
    try:
        other.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        assert exchanges[0].tell_all("early") == ["early", "late"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        other.join()
    assert handled


def test_longer_texts_than_a_slot_holds_are_told_in_pieces(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path)
    numbers = [torch.arange(300_000, dtype=torch.int64).numpy() * (rank + 1) for rank in range(2)]
    told = by_ranks(lambda rank: exchanges[rank].tell_all_numbers(numbers[rank]))
    for table in told:
        assert not isinstance(table, BaseException)
        assert (table == numbers).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(3, 5), (3, 0), (3, 2, 7)])
def test_plain_all_to_all_brings_blocks_of_any_kind(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    exchanges = group_of(tmp_path, ranks=3)

    def body(rank: int) -> list[Tensor]:
        came = []
        for turn in range(4):
            blocks = torch.arange(3)[(slice(None), *[None] * (len(shape) - 1))].expand(shape) * 3 + rank + turn
            came.append(exchanges[rank].all_to_all(blocks.to(dtype)).clone())
        return came

    for rank, came in enumerate(by_ranks(body, ranks=3)):
        assert not isinstance(came, BaseException), came
        for turn, blocks in enumerate(came):
            sent = torch.arange(3)[(slice(None), *[None] * (len(shape) - 1))].expand(shape) + 3 * rank + turn
            assert torch.equal(blocks, sent.to(dtype))


def test_blocks_of_unlike_sizes_are_an_error_on_both_ranks(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path)
    for error in by_ranks(lambda rank: exchanges[rank].all_to_all(torch.zeros(2, 4 + rank))):
        assert isinstance(error, PeerLost)
        assert "it gave something else than expected" in str(error)


def test_blocks_larger_than_the_buffer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_meeting, "_room", lambda _: 4096)
    exchange, _ = group_of(tmp_path)
    with pytest.raises(EngineError, match="would get 5000 bytes, and a buffer of shared memory has room for 4096"):
        exchange.all_to_all(torch.zeros(2, 2500, dtype=torch.uint8))


def test_a_forked_child_is_refused_and_takes_nothing_from_the_rank(tmp_path: Path) -> None:
    exchanges = group_of(tmp_path)
    child = os.fork()
    if not child:
        code = 1
        try:
            exchanges[0].tell_all("from a child")
        except EngineError as error:
            code = 0 if "a forked child is no rank of the group" in str(error) else 2
            exchanges[0].close()
            exchanges.clear()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert by_ranks(lambda rank: exchanges[rank].tell_all(str(rank))) == [["0", "1"]] * 2
