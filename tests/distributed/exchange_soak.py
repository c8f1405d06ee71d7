"""Exchange on and on in batches of random sizes, while ranks are killed at random moments.

Run as `python exchange_soak.py EXCHANGES [IMPLEMENTATION [RANKS [SEED]]]`; needs `tests/support` on its path.
Every result is held against one process's. A killed rank is started anew; the survivors must all get
`PeerLost`, meet it and go on, with nothing left of the memory they had before. Says what happened, or
exits with 1.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from conformance import EXPERTS, Tokens, tokens_of
from faults import Seat
from split_cases import random_placement

from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_S = 60.0
"""Without any progress."""
_SEGMENT = "memfd:fourlane-exchange"


class Board:
    """What ranks let their parent see, in memory that they share.

    Args:
        ranks: of the group.
    """

    def __init__(self, ranks: int) -> None:
        numbers = np.frombuffer(mmap.mmap(-1, 8 * (2 * ranks + 1)), dtype=np.int64)
        self.generation_G, self.done_G, self.stop = numbers[:ranks], numbers[ranks : 2 * ranks], numbers[2 * ranks :]
        """The generation each rank has joined, its exchanges in there, and whether to stop."""
        self.generation_G[:] = -1


def _be_rank(seat: Seat, generation: int, board: Board) -> NoReturn:
    """Exchange until told to stop, through as many generations as it takes."""
    try:
        torch.set_num_threads(1)
        while not _live_through(seat, generation, board):
            generation += 1
    except BaseException:  # noqa: BLE001 - reported, and turned into an exit code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _live_through(seat: Seat, generation: int, board: Board) -> bool:
    """Exchange in one generation of the group; tell whether it ended because it should."""
    group = seat.join(store=f"generation-{generation}")
    mapped = Path("/proc/self/maps").read_text(encoding="ascii").count(_SEGMENT)
    assert mapped <= seat.ranks, f"{mapped} segments mapped in a group of {seat.ranks}: earlier ones are left"
    rng = np.random.default_rng(generation)
    held = -(-EXPERTS // seat.ranks) + 2
    placements = [random_placement(rng, ranks=seat.ranks, experts=EXPERTS, held=held, empty=1) for _ in range(8)]
    board.done_G[seat.rank] = 0
    board.generation_G[seat.rank] = generation
    try:
        for number in count():
            rng = np.random.default_rng((generation, number))  # the same on all ranks
            most = int(rng.choice([1, 4, 30, 200], p=[0.2, 0.4, 0.3, 0.1]))
            tokens_G = rng.integers(0, most + 1, size=seat.ranks)
            placement = placements[number // 10 % len(placements)]
            batch = tokens_of(int(tokens_G[seat.rank]), 1000 * number + seat.rank, dim=int(rng.integers(1, 200)))
            group.exchange.begin_step(number, more=seat.rank == 0 and not board.stop[0])
            assert torch.equal(group.pair(batch, placement=placement), _expected(batch)), number
            board.done_G[seat.rank] = number + 1
            if not group.exchange.agreement().more:
                return True
    except PeerLost:
        return False
    finally:
        group.exchange.close()
    raise AssertionError("unreachable")


def _expected(batch: Tokens) -> torch.Tensor:
    """Return what experts that multiply by a number of their own make of a batch, summed in the order of K."""
    y_TKD = batch.x_TD[:, None] * (batch.topk_TK + 1.5)[..., None]
    total_TD = y_TKD[:, 0] * batch.weights_TK[:, :1]
    for k in range(1, batch.topk_TK.shape[1]):
        total_TD += y_TKD[:, k] * batch.weights_TK[:, k : k + 1]
    return total_TD


def _start(seat: Seat, generation: int, board: Board) -> int:
    child = os.fork()
    return child or _be_rank(seat, generation, board)


def soak(exchanges: int, implementation: str, ranks: int, seed: int) -> str:
    """Run a group through so many exchanges; return what happened."""
    rng = np.random.default_rng(seed)
    began, board, slowest_s = time.monotonic(), Board(ranks), 0.0
    total, generation = 0, 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        seats = [Seat(rank, ranks, Path(folder), implementation) for rank in range(ranks)]
        children = [_start(seat, 0, board) for seat in seats]
        stack.callback(_end, children)
        while True:
            struck = time.monotonic()
            _wait(lambda now=generation: (board.generation_G == now).all(), children, board)
            slowest_s = max(slowest_s, time.monotonic() - struck) if generation else slowest_s
            few = int(rng.integers(1, max(2, min(800, exchanges // 3))))
            few = min(few, exchanges - total)
            _wait(lambda few=few: board.done_G.min() >= few, children, board)
            if total + board.done_G.min() >= exchanges:
                break
            time.sleep(rng.random() * 2e-3)
            victim = int(rng.integers(ranks))
            os.kill(children[victim], signal.SIGKILL)
            os.waitpid(children[victim], 0)
            total, generation = total + int(board.done_G.min()), generation + 1
            children[victim] = _start(seats[victim], generation, board)
        board.stop[0] = 1
        codes = [os.waitstatus_to_exitcode(os.waitpid(children.pop(0), 0)[1]) for _ in range(ranks)]
        assert codes == [0] * ranks, codes
        total += int(board.done_G.min())
    return (
        f"{total} exchanges over {implementation} among {ranks} ranks, {generation} killed; all survivors went on, "
        f"within {slowest_s:.2f} s at most; {time.monotonic() - began:.0f} s"
    )


def _end(children: list[int]) -> None:
    """End what still runs."""
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _wait(reached: Callable[[], Any], children: list[int], board: Board) -> None:
    """Wait until something is so; nobody may end meanwhile, and somebody must get on."""
    last, moved = -1, time.monotonic()
    while not reached():
        ended, status = os.waitpid(-1, os.WNOHANG)
        assert not ended, f"rank {children.index(ended)} ended: {os.waitstatus_to_exitcode(status)}"
        state = hash((board.generation_G.tobytes(), board.done_G.tobytes()))
        last, moved = (last, moved) if state == last else (state, time.monotonic())
        assert time.monotonic() - moved < LONGEST_S, f"nothing moves: {board.generation_G}, {board.done_G}"
        time.sleep(0.002)


def _main(exchanges: str, implementation: str = "shared_memory", ranks: str = "3", seed: str = "0") -> None:
    try:
        sys.stdout.write(f"{soak(int(exchanges), implementation, int(ranks), int(seed))}\n")
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
