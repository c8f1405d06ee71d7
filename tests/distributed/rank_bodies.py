"""What the ranks of distributed tests do.

Run as `python rank_bodies.py`: imports torch once, then for each line "BODY RANKS FOLDER
IMPLEMENTATION" of standard input forks one process a rank and answers with the worst exit code; what
ranks say goes to `output` in the folder. BODY is the name of a function, and after a colon its argument.
A body gets its `Seat` and raises if something is wrong; it may end its own process to play a dead peer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import conformance
import faults
import node_bodies
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conformance import EXPERTS, LAYERS, Tokens
from exchanges import Joining
from faults import Seat
from one_process import OneProcess
from split_cases import random_placement

from fourlane.engine.exchange.payload import FLOAT8
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.errors import PeerLost
from fourlane.policy.placement import Placement, linear_placement
from fourlane.spec.traffic import TrafficClass


def cases(seat: Seat, which: str) -> None:
    """The cases of the conformance suite, or a few of them, one after the other in one group."""
    group = seat.join()
    for case in {"all": conformance.CASES, "few": conformance.FEW, "ragged": [conformance.ragged_batches]}[which]:
        sys.stdout.write(f"{case.__name__}\n")
        case(group)
    group.exchange.close()


def split_equally(seat: Seat) -> None:
    """Any placement, with tokens spread evenly over replicas."""
    conformance.any_placement(seat.join(split=False))


def float8(seat: Seat) -> None:
    """Tokens that travel as float8: every rank sees the same rounded activations, wherever its experts are."""
    group = seat.join(payload=FLOAT8)
    for case in (*conformance.FEW, conformance.two_micro_batches, conformance.results_stay):
        case(group)
    group.exchange.close()


def a_models_logits(seat: Seat) -> None:
    """A whole model gives bit for bit the logits of one process, whatever experts its ranks hold."""
    rank, ranks, model = seat.rank, seat.ranks, seat.folder / "model"
    one = OneProcess.load(model, weights="float32")
    config = one.model.config
    rng = np.random.default_rng(ranks)
    shape = {"ranks": ranks, "experts": config.experts, "held": -(-config.experts // ranks) + 2, "empty": 1}
    rows = [random_placement(rng, **shape).slot_of_LP[0] for _ in config.moe_layers]
    placement = Placement(np.stack(rows), experts=config.experts, ranks=ranks)
    together = OneProcess(load_model(model, device="cpu", weights="float32", placement=placement, rank=rank))
    together.exchange, together.placement = seat.kind.open(Joining(seat.address(), placement)), placement
    texts = [
        torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(rank)).tolist() for length in (31, 9)
    ]
    texts = texts if rank else []  # one rank has no tokens
    mine = [(process, [process.text(tokens) for tokens in texts]) for process in (together, one)]
    for chunk in (1, 5, 20):
        found, expected = (
            process.step([(text, min(chunk, len(text.token_ids) - text.computed)) for text in parts])
            for process, parts in mine
        )
        assert torch.equal(found, expected), (rank, chunk)
    assert int(together.exchange.counters.load_LE.sum()) == (ranks - 1) * (26 + 9) * config.top_k * len(
        config.moe_layers
    )


def sockets_are_marked(seat: Seat) -> None:
    """The library's connections carry the expert lane's mark, and still work."""
    exchange = seat.join().exchange
    assert sum(mark.dscp == TrafficClass.EXPERT.dscp for mark in exchange.marks) >= seat.ranks - 1, exchange.marks
    assert exchange.tell_all("here") == ["here"] * seat.ranks


def ranks_tell_each_other(seat: Seat) -> None:
    """Texts and numbers reach all, outside of steps too."""
    exchange = seat.join().exchange
    assert exchange.tell_all(f"rank {seat.rank} grüßt") == [f"rank {rank} grüßt" for rank in range(seat.ranks)]
    numbers = exchange.tell_all_numbers(np.array([seat.rank, -(2**63), 2**63 - 1]))
    assert numbers.tolist() == [[rank, -(2**63), 2**63 - 1] for rank in range(seat.ranks)]
    assert exchange.find_nodes(f"host {seat.rank // 2}") == (seat.ranks // 2 if seat.ranks % 2 == 0 else 1)


def absent_peer(seat: Seat) -> None:
    """A group that one rank never joins says so."""
    if seat.is_victim:
        return
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=seat.ranks)
    with pytest.raises(PeerLost, match="did not all meet") as lost:
        seat.kind.open(Joining(seat.address(join_s=1.0, step_s=1.0), placement))
    if seat.kind.names_peers:
        assert f"absent: rank {seat.ranks - 1}" in str(lost.value)


def large_rows(seat: Seat) -> None:
    """Messages larger than any socket buffer pass both ways at once, again and again."""
    group = seat.join()
    for turn in range(3):
        group.step()
        drawn = group.tokens(300, seed=seat.rank)
        x_TD = torch.randn(300, 4096, generator=torch.Generator().manual_seed(seat.rank + turn))
        tokens = Tokens(x_TD, drawn.topk_TK, drawn.weights_TK)
        group.check(group.pair(tokens), tokens)
    assert group.exchange.counters.bytes_sent > 2 * 3 * 1_000_000


def another_secret(seat: Seat) -> None:
    """A rank with another deployment's secret does not get in, and is told so."""
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=seat.ranks)
    said = "absent: rank 1" if seat.rank == 0 else "no connection from 127.0.0.1 to rank 0"
    with pytest.raises(PeerLost, match=said):
        seat.kind.open(Joining(seat.address(join_s=1.0, step_s=1.0), placement, secret=bytes([seat.rank]) * 32))


def stranger_at_the_door(seat: Seat) -> None:
    """Somebody else who connects is sent away; the group forms without him."""
    stranger = _call_before_the_others(seat.folder / "store") if seat.is_victim else None
    exchange = seat.join().exchange
    assert exchange.tell_all("here") == ["here"] * seat.ranks
    if stranger is not None:
        with stranger, suppress(ConnectionResetError):
            assert stranger.recv(100)[:4] == b"FLXG"
            assert stranger.recv(100) == b"", "the stranger was let in"


def _call_before_the_others(path: Path) -> socket.socket:
    store = dist.FileStore(str(path), 2)
    seat = json.loads(store.get("tcp exchange/0"))
    stranger = socket.create_connection((seat["address"], seat["port"]), timeout=5)
    stranger.sendall(b"GET / HTTP/1.1\r\nHost: anybody who has lost his way\r\n\r\n")
    return stranger


def _start(body: str, seat: Seat) -> int:
    child = os.fork()
    if child:
        return child
    try:
        with (seat.folder / "output").open("a", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        name, _, argument = body.partition(":")
        function = next(
            getattr(module, name) for module in (sys.modules[__name__], faults, node_bodies) if hasattr(module, name)
        )
        function(seat, *([argument] if argument else []))
    except BaseException:  # noqa: BLE001 - reported, and turned into an exit code
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _run(body: str, ranks: int, folder: Path, implementation: str) -> int:
    """Run a rank a process; one that was killed is started once more. Return the worst exit code."""
    seats = [Seat(rank, ranks, folder, implementation) for rank in range(ranks)]
    alive = {_start(body, seat): seat for seat in seats}
    restarts, worst = 0, 0
    while alive:
        child, status = os.wait()
        seat, code = alive.pop(child), os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL and not restarts:
            restarts += 1
            alive[_start(body, seat)] = seat
        else:
            worst = max(worst, abs(code))
    return worst


def _main() -> None:
    torch.set_num_threads(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        body, ranks, folder, implementation = line.split()
        sys.stdout.write(f"{_run(body, int(ranks), Path(folder), implementation)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
