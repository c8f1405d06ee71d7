"""What the ranks of distributed tests do.

Run as `python rank_bodies.py`: imports torch once, then for each line "BODY RANKS FOLDER
IMPLEMENTATION" of standard input forks one process a rank and answers with the worst exit code; what
ranks say goes to `output` in the folder. A body gets (rank, ranks, folder) and raises if something is
wrong; it may end its own process to play a dead peer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from one_process import OneProcess
from split_cases import random_placement

from fourlane.engine.exchange.contract import Agreement, Received
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.tcp import TcpExchange
from fourlane.engine.exchange.torch_all_to_all import TorchAllToAll
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.seal import Secret
from fourlane.errors import PeerLost
from fourlane.policy.placement import Placement, linear_placement
from fourlane.policy.token_split import split_equally, split_tokens
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.engine.exchange.group_exchange import SteppedExchange

EXPERTS, DIM, TOP_K, LAYERS = 10, 8, 3, 2
IMPLEMENTATION: list[str] = []
"""What the ranks exchange over, in a list of one; set before they are forked."""


def _join(
    rank: int, ranks: int, folder: Path, *, store: str = "store", step_s: float = 10.0, split: bool = True
) -> SteppedExchange:
    address = GroupAddress(str(folder / store), rank, ranks, "127.0.0.1", join_s=20, step_s=step_s)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    return _exchange(address, placement, split=split)


def _exchange(
    address: GroupAddress, placement: Placement, *, secret: bytes = b"s" * 32, split: bool = True
) -> SteppedExchange:
    if IMPLEMENTATION == ["tcp"]:
        return TcpExchange(address, placement, device=torch.device("cpu"), secret=Secret(secret), split=split)
    return TorchAllToAll(address, placement, device=torch.device("cpu"), split=split)


def _scale_by_expert(x_RD: torch.Tensor, offset_S1: list[int], experts: list[int]) -> torch.Tensor:
    y_RD = x_RD.clone()
    for slot, expert in enumerate(experts):
        y_RD[offset_S1[slot] : offset_S1[slot + 1]] *= expert + 1.5
    return y_RD


def _pair(
    exchange: SteppedExchange | LocalExchange,
    placement: Placement,
    tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    layer: int,
) -> torch.Tensor:
    received = exchange.dispatch(*tokens, placement, layer=layer).wait()
    experts = placement.experts_of(exchange.rank, layer).tolist()
    return exchange.combine(_scale_by_expert(received.x_RD, received.offset_S1, experts), received).wait()


def _alone(tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor], layer: int) -> torch.Tensor:
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=1)
    exchange = LocalExchange(placement)
    exchange.begin_step(0, more=False)
    return _pair(exchange, placement, tokens, layer)


def _tokens(count: int, seed: int, *, experts: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(count, DIM, generator=generator)
    topk_TK = torch.rand(count, experts, generator=generator).topk(TOP_K).indices
    return x_TD, topk_TK, torch.rand(count, TOP_K, generator=generator)


def equal_to_one_process(rank: int, ranks: int, folder: Path) -> None:
    """Ragged batches, also empty ones, give bit for bit what one process gives."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    for step in range(8):
        exchange.begin_step(step, more=rank == 0 and step < 3)
        tokens = _tokens([7, 0, 1, 30][(rank + step) % 4], seed=100 * rank + step)
        for layer in range(LAYERS):
            assert torch.equal(_pair(exchange, placement, tokens, layer), _alone(tokens, layer)), (rank, step)
        assert exchange.agreement().more == (step < 3)
    totals = exchange.counters.load_LE.sum()
    everyone = exchange.tell_all(f"rank {rank} computed {totals}")
    assert len(everyone) == ranks
    assert everyone[rank] == f"rank {rank} computed {totals}"


def any_placement(rank: int, ranks: int, folder: Path) -> None:
    """Replicas, empty slots, and another placement in each step leave no trace in the results."""
    _step_through_placements(_join(rank, ranks, folder), split=True)


def any_placement_split_equally(rank: int, ranks: int, folder: Path) -> None:
    """So it is where tokens are spread evenly over replicas."""
    _step_through_placements(_join(rank, ranks, folder, split=False), split=False)


def _step_through_placements(exchange: SteppedExchange, *, split: bool) -> None:
    rank, ranks = exchange.rank, exchange.ranks
    rng = np.random.default_rng(ranks)  # the same on all ranks
    fullest, if_equal = np.zeros(LAYERS, dtype=np.int64), np.zeros(LAYERS, dtype=np.int64)
    for step, placement in enumerate(_placements(rng, ranks)):
        exchange.begin_step(step, more=True)
        counts = [40, 0, 7, 1, 25]
        everyones = [_tokens(counts[(r + step) % 5], seed=100 * r + step) for r in range(ranks)]
        for layer in range(LAYERS):
            tokens_G = _check_layer(exchange, placement, everyones, layer, split=split)
            fullest[layer] += tokens_G.max()
            count_GE = np.stack([torch.bincount(t[1].reshape(-1), minlength=EXPERTS) for t in everyones])
            if_equal[layer] += split_equally(count_GE, placement, layer).tokens_G.max()
    assert (exchange.counters.max_split_L == fullest).all()
    assert (exchange.counters.max_equal_L == if_equal).all()
    assert len(exchange.tell_all("through")) == ranks, rank


def _placements(rng: np.random.Generator, ranks: int) -> list[Placement]:
    """Return placements with and without replicas and empty slots, of several widths; some differ in a layer only."""
    least = -(-EXPERTS // ranks)
    placements = [linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)]
    for held in range(least, min(EXPERTS, least + 3) + 1):
        for empty in {0, min(3, ranks * held - EXPERTS)}:
            layers = [
                random_placement(rng, ranks=ranks, experts=EXPERTS, held=held, empty=empty) for _ in range(LAYERS + 1)
            ]
            *rows, other = (layer.slot_of_LP[0] for layer in layers)
            placement = Placement(np.stack(rows), experts=EXPERTS, ranks=ranks)
            placements += [placement, placement.with_layer(int(rng.integers(LAYERS)), other), placement]
    return placements


def _check_layer(
    exchange: SteppedExchange,
    placement: Placement,
    everyones: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    layer: int,
    *,
    split: bool,
) -> np.ndarray:
    tokens = everyones[exchange.rank]
    received = exchange.dispatch(*tokens, placement, layer=layer).wait()
    experts = placement.experts_of(exchange.rank, layer).tolist()
    y_RD = _scale_by_expert(received.x_RD, received.offset_S1, experts)
    assert torch.equal(exchange.combine(y_RD, received).wait(), _alone(tokens, layer)), (exchange.rank, layer)
    chosen = (split_tokens if split else split_equally)(received.count_GE, placement, layer)
    _assert_slots_hold_what_the_split_says(exchange.rank, received, placement, chosen.quota_GP, everyones, layer)
    assert received.x_RD.shape[0] == chosen.tokens_G[exchange.rank]
    return chosen.tokens_G


def _assert_slots_hold_what_the_split_says(
    rank: int,
    received: Received,
    placement: Placement,
    quota_GP: np.ndarray,
    everyones: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    layer: int,
) -> None:
    """Each slot has of each rank's tokens those behind what lower slots of the same expert took."""
    row_P = placement.slot_of_LP[layer]
    first = rank * placement.slots_per_rank
    for local, slot in enumerate(range(first, first + placement.slots_per_rank)):
        held = received.x_RD[received.offset_S1[local] : received.offset_S1[local + 1]]
        expected = [torch.empty(0, DIM)]
        for source, (x_TD, topk_TK, _) in enumerate(everyones):
            rows = (topk_TK == row_P[slot]).any(dim=1).nonzero()[:, 0]
            begin = quota_GP[source, :slot][row_P[:slot] == row_P[slot]].sum()
            expected.append(x_TD[rows[begin : begin + quota_GP[source, slot]]])
        assert torch.equal(held, torch.cat(expected)), (layer, slot)


def one_expert_everywhere(rank: int, ranks: int, folder: Path) -> None:
    """All tokens go to one expert that every rank holds: every rank computes as many."""
    row = np.concatenate(
        [np.r_[0, 1 + np.arange(EXPERTS - 1)[r::ranks], [-1] * EXPERTS][:EXPERTS] for r in range(ranks)]
    )
    placement = Placement(np.tile(row, (LAYERS, 1)), experts=EXPERTS, ranks=ranks)
    exchange = _join(rank, ranks, folder)
    exchange.begin_step(0, more=False)
    x_TD = torch.randn(60 * int(rank == 0), DIM, generator=torch.Generator().manual_seed(rank))
    tokens = (x_TD, torch.zeros(x_TD.shape[0], 1, dtype=torch.int64), torch.ones(x_TD.shape[0], 1))
    received = exchange.dispatch(*tokens, placement, layer=0).wait()
    assert received.x_RD.shape[0] == 60 // ranks
    y_RD = _scale_by_expert(received.x_RD, received.offset_S1, placement.experts_of(rank, 0).tolist())
    assert torch.equal(exchange.combine(y_RD, received).wait(), _alone(tokens, 0))
    assert exchange.counters.balance == 1.0


def a_models_logits(rank: int, ranks: int, folder: Path) -> None:
    """A whole model gives bit for bit the logits of one process, whatever experts its ranks hold."""
    alone = OneProcess.load(folder / "model", weights="float32")
    config = alone.model.config
    rng = np.random.default_rng(ranks)
    shape = {"ranks": ranks, "experts": config.experts, "held": -(-config.experts // ranks) + 2, "empty": 1}
    rows = [random_placement(rng, **shape).slot_of_LP[0] for _ in config.moe_layers]
    placement = Placement(np.stack(rows), experts=config.experts, ranks=ranks)
    address = GroupAddress(str(folder / "store"), rank, ranks, "127.0.0.1", join_s=20, step_s=20)
    together = OneProcess(load_model(folder / "model", device="cpu", weights="float32", placement=placement, rank=rank))
    together.exchange, together.placement = _exchange(address, placement), placement
    texts = [
        torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(rank)).tolist() for length in (31, 9)
    ]
    texts = texts if rank else []  # one rank has no tokens
    mine = [(one, [one.text(tokens) for tokens in texts]) for one in (together, alone)]
    for chunk in (1, 5, 20):
        found, expected = (
            one.step([(text, min(chunk, len(text.token_ids) - text.computed)) for text in parts]) for one, parts in mine
        )
        assert torch.equal(found, expected), (rank, chunk)
    assert int(together.exchange.counters.load_LE.sum()) == (ranks - 1) * (26 + 9) * config.top_k * len(
        config.moe_layers
    )


def sockets_are_marked(rank: int, ranks: int, folder: Path) -> None:
    """The library's connections carry the expert lane's mark, and still work."""
    exchange = _join(rank, ranks, folder)
    assert sum(mark.dscp == TrafficClass.EXPERT.dscp for mark in exchange.marks) >= ranks - 1, exchange.marks
    assert exchange.tell_all("here") == ["here"] * ranks


def ranks_agree_on_migrations(rank: int, ranks: int, folder: Path) -> None:
    """What all have staged is the least anybody announced; what somebody refused, all hear of."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    expected = [(0, 0), (1, 0), (1, 2), (2, 2)]
    announced = [(int(rank != 1), 0), (1, 0), (1 + int(rank == 0), 2 * int(rank == 2)), (2, 0 if rank else 2)]
    for step, ((staged, refused), agreed) in enumerate(zip(announced, expected, strict=True)):
        exchange.begin_step(step, more=False, staged=staged, refused=refused)
        _pair(exchange, placement, _tokens(rank, seed=step), 0)
        assert exchange.agreement() == Agreement(step=step, more=False, staged=agreed[0], refused=agreed[1])
    exchange.begin_step(len(expected), more=True, outlook=(rank, -7, 2**62))
    _pair(exchange, placement, _tokens(2, seed=rank), 0)
    assert exchange.agreement().outlook_GO.tolist() == [[r, -7, 2**62, 0, 0, 0, 0, 0] for r in range(ranks)]
    assert exchange.agreement() == Agreement(step=len(expected), more=True), "announcements last for a step"


def all_to_one_expert(rank: int, ranks: int, folder: Path) -> None:
    """Every token of every rank goes to the same experts."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    tokens = _tokens(20, seed=rank, experts=TOP_K)
    exchange.begin_step(0, more=False)
    assert torch.equal(_pair(exchange, placement, tokens, 0), _alone(tokens, 0))
    assert exchange.counters.balance > 1.5


def two_micro_batches_interleave(rank: int, ranks: int, folder: Path) -> None:
    """Two batches under way at once do not mix."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    a, b = _tokens(9, seed=rank), _tokens(4, seed=50 + rank)
    exchange.begin_step(0, more=False)
    pending_a = exchange.dispatch(*a, placement, layer=0)
    pending_b = exchange.dispatch(*b, placement, layer=0)
    experts = placement.experts_of(rank, 0).tolist()
    received_a, received_b = pending_a.wait(), pending_b.wait()
    back_a = exchange.combine(_scale_by_expert(received_a.x_RD, received_a.offset_S1, experts), received_a)
    back_b = exchange.combine(_scale_by_expert(received_b.x_RD, received_b.offset_S1, experts), received_b)
    assert torch.equal(back_a.wait(), _alone(a, 0))
    assert torch.equal(back_b.wait(), _alone(b, 0))


def peer_dies(rank: int, ranks: int, folder: Path) -> None:
    """Survivors of a killed peer get a typed error at once, meet its successor and go on."""
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    tokens = _tokens(5, seed=rank)
    if not (folder / f"lived-{rank}").exists():
        (folder / f"lived-{rank}").touch()
        exchange = _join(rank, ranks, folder)
        exchange.begin_step(0, more=True)
        _pair(exchange, placement, tokens, 0)
        if rank == ranks - 1:
            os.kill(os.getpid(), signal.SIGKILL)  # `_main` starts this rank once more
        _step_until_lost(exchange, placement, tokens)
        exchange.close()
    exchange = _join(rank, ranks, folder, store="again")
    exchange.begin_step(0, more=False)
    assert torch.equal(_pair(exchange, placement, tokens, 1), _alone(tokens, 1))


def _step_until_lost(
    exchange: SteppedExchange, placement: Placement, tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    began = time.monotonic()
    try:
        for step in range(1, 1000):
            exchange.begin_step(step, more=True)
            _pair(exchange, placement, tokens, 0)
    except PeerLost as error:
        assert "a peer died or hangs" in str(error)  # noqa: PT017 - in a forked rank
        if IMPLEMENTATION == ["tcp"]:
            assert f"rank {exchange.ranks - 1}: " in str(error)  # noqa: PT017 - in a forked rank
        assert time.monotonic() - began < 5
    else:
        raise AssertionError("the exchange went on without its peer")


def peer_hangs(rank: int, ranks: int, folder: Path) -> None:
    """A peer that does not come makes the others fail within the timeout, naming the place."""
    exchange = _join(rank, ranks, folder, step_s=1.0)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    exchange.begin_step(0, more=False)
    if rank == ranks - 1:
        time.sleep(4)
        return
    began = time.monotonic()
    try:
        _pair(exchange, placement, _tokens(3, seed=rank), 0)
    except PeerLost as error:
        assert "step 0, layer 0, counts" in str(error)  # noqa: PT017 - in a forked rank
        if IMPLEMENTATION == ["tcp"]:
            assert f"rank {ranks - 1}: nothing moved; 0 of " in str(error)  # noqa: PT017 - in a forked rank
        assert time.monotonic() - began < 3.5
    else:
        raise AssertionError("the exchange went on without its peer")


def absent_peer(rank: int, ranks: int, folder: Path) -> None:
    """A group that one rank never joins says so."""
    if rank == ranks - 1:
        return
    address = GroupAddress(str(folder / "store"), rank, ranks, "127.0.0.1", join_s=1.0, step_s=1.0)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    try:
        _exchange(address, placement)
    except PeerLost as error:
        assert "did not all meet" in str(error)  # noqa: PT017 - in a forked rank
        if IMPLEMENTATION == ["tcp"]:
            assert f"absent: rank {ranks - 1}" in str(error)  # noqa: PT017 - in a forked rank
    else:
        raise AssertionError("joined without its peer")


def no_tokens_at_all(rank: int, ranks: int, folder: Path) -> None:
    """A step in which nobody has a token goes through; so does the next, with tokens."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    for step, count in enumerate([0, 0, 5]):
        exchange.begin_step(step, more=False)
        tokens = _tokens(count, seed=rank)
        assert torch.equal(_pair(exchange, placement, tokens, 0), _alone(tokens, 0))


def every_dtype(rank: int, ranks: int, folder: Path) -> None:
    """What is sent arrives bit for bit, whatever its dtype; sums are those of one process."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
    for step, dtype in enumerate((*kinds, torch.float8_e4m3fn)):
        exchange.begin_step(step, more=False)
        x_TD, topk_TK, weights_TK = _tokens(6, seed=rank)
        tokens = ((x_TD * 16).to(dtype), topk_TK, weights_TK)
        received = exchange.dispatch(*tokens, placement, layer=0).wait()
        assert received.x_RD.dtype == dtype
        if dtype.is_floating_point and dtype.itemsize > 1:
            back = exchange.combine(received.x_RD, received).wait()
            alone = LocalExchange(linear_placement(layers=LAYERS, experts=EXPERTS, ranks=1))
            same = alone.dispatch(*tokens, linear_placement(layers=LAYERS, experts=EXPERTS, ranks=1), layer=0).wait()
            assert torch.equal(back, alone.combine(same.x_RD, same).wait()), dtype
        elif ranks == 1:
            raise AssertionError("nothing is sent here")
        else:
            _assert_rows_are_those_sent(received.x_RD, [_sent_by(r, dtype) for r in range(ranks)], placement, rank)


def _sent_by(rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x_TD, topk_TK, _ = _tokens(6, seed=rank)
    return (x_TD * 16).to(dtype), topk_TK


def _assert_rows_are_those_sent(
    x_RD: torch.Tensor, sent: list[tuple[torch.Tensor, torch.Tensor]], placement: Placement, rank: int
) -> None:
    expected = [
        x_TD[token].view(torch.uint8)
        for expert in placement.experts_of(rank, 0).tolist()
        for x_TD, topk_TK in sent
        for token in (topk_TK == expert).any(dim=1).nonzero()[:, 0].tolist()
    ]
    assert torch.equal(x_RD.view(torch.uint8), torch.stack(expected))


def large_rows(rank: int, ranks: int, folder: Path) -> None:
    """Messages larger than any socket buffer pass both ways at once, again and again."""
    exchange = _join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    for step in range(3):
        exchange.begin_step(step, more=False)
        _, topk_TK, weights_TK = _tokens(300, seed=rank)
        x_TD = torch.randn(300, 4096, generator=torch.Generator().manual_seed(rank + step))
        tokens = (x_TD, topk_TK, weights_TK)
        assert torch.equal(_pair(exchange, placement, tokens, 0), _alone(tokens, 0))
    assert exchange.counters.bytes_sent > 2 * 3 * 1_000_000


def another_secret(rank: int, ranks: int, folder: Path) -> None:
    """A rank with another deployment's secret does not get in, and is told so."""
    address = GroupAddress(str(folder / "store"), rank, ranks, "127.0.0.1", join_s=1.0, step_s=1.0)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    try:
        _exchange(address, placement, secret=bytes([rank]) * 32)
    except PeerLost as error:
        said = "absent: rank 1" if rank == 0 else "no connection from 127.0.0.1 to rank 0"
        assert said in str(error)  # noqa: PT017 - in a forked rank
    else:
        raise AssertionError("met a rank of another deployment")


def stranger_at_the_door(rank: int, ranks: int, folder: Path) -> None:
    """Somebody else who connects is sent away; the group forms without him."""
    stranger = _call_before_the_others(folder / "store") if rank == ranks - 1 else None
    exchange = _join(rank, ranks, folder)
    assert exchange.tell_all("here") == ["here"] * ranks
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


def _start(body: str, rank: int, ranks: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        with (folder / "output").open("a", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        globals()[body](rank, ranks, folder)
    except BaseException:  # noqa: BLE001 - reported, and turned into an exit code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _run(body: str, ranks: int, folder: Path) -> int:
    """Run a rank a process; one that was killed is started once more. Return the worst exit code."""
    alive = {_start(body, rank, ranks, folder): rank for rank in range(ranks)}
    restarts, worst = 0, 0
    while alive:
        child, status = os.wait()
        rank, code = alive.pop(child), os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL and not restarts:
            restarts += 1
            alive[_start(body, rank, ranks, folder)] = rank
        else:
            worst = max(worst, abs(code))
    return worst


def _main() -> None:
    torch.set_num_threads(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        body, ranks, folder, implementation = line.split()
        IMPLEMENTATION[:] = [implementation]
        sys.stdout.write(f"{_run(body, int(ranks), Path(folder))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
