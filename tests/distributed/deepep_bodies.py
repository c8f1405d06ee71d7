"""What ranks of the tests of DeepEP's adapters do, each in a process of its own over a stand-in for deep_ep.

With "+gpu" in its kind a group runs on GPUs over the library itself, a GPU a rank.

Run as `python deepep_bodies.py`: for each line "BODY RANKS FOLDER KIND" of standard input it forks one
process a rank and answers with the worst exit code; what ranks say goes to `output` in the folder.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import deepep_double
import numpy as np
import torch
from split_cases import random_placement

from fourlane.engine.exchange.deepep import DeepEpExchange, Kernels, require_deepep
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.payload import AS_IS, FLOAT8
from fourlane.errors import PeerLost
from fourlane.policy.placement import Placement, linear_placement
from fourlane.policy.token_split import split_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.exchange.contract import Received

EXPERTS, TOP_K, LAYERS = 10, 3, 2
KIND: list[str] = []
"""Which kernels, in a list of one; set before ranks are forked."""
Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def on_gpus() -> bool:
    """Tell whether the library itself is under test."""
    return "+gpu" in KIND[0]


def device() -> torch.device:
    """Return where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpus() else torch.device("cpu")


def dim() -> int:
    """Return a model dim that the kernels take."""
    return 2048 if "low_latency" in KIND[0] else 256


def join(rank: int, ranks: int, folder: Path, *, store: str = "store", step_s: float = 10.0) -> DeepEpExchange:
    """Join a group over the kernels under test."""
    kind = KIND[0]
    classes = {"v2": ["Buffer", "ElasticBuffer"], "ep": ["EPBuffer"]}.get(kind.split("+")[0], ["Buffer"])
    if on_gpus():
        torch.cuda.set_device(rank)
        library, interface = require_deepep(device()), "v2" if classes != ["Buffer"] else "v1"
    else:
        library, interface = deepep_double.library(*classes), "auto"
    backend = "nccl" if on_gpus() else "gloo"
    return DeepEpExchange(
        GroupAddress(str(folder / store), rank, ranks, "127.0.0.1", join_s=20, step_s=step_s, backend=backend),
        linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks),
        kernels=Kernels(library, interface, low_latency_tokens=16 if "low_latency" in kind else 0),
        device=device(),
        payload=FLOAT8 if "float8" in kind else AS_IS,
    )


def draw(count: int, seed: int) -> Tokens:
    """Draw a batch."""
    generator = torch.Generator().manual_seed(seed)
    topk_TK = torch.rand(count, EXPERTS, generator=generator).topk(TOP_K).indices
    x_TD = torch.randn(count, dim(), generator=generator).to(torch.bfloat16)
    return x_TD.to(device()), topk_TK.to(device()), torch.rand(count, TOP_K, generator=generator).to(device())


def travelled(x_TD: torch.Tensor) -> torch.Tensor:
    """Return activations as they arrive."""
    if "float8" not in KIND[0]:
        return x_TD
    if "low_latency" in KIND[0]:
        elements, scales = deepep_double._cast_fp8(x_TD.unsqueeze(0))
        blocks = elements.float().unflatten(2, (-1, 128)) * scales.unsqueeze(3)
        return blocks.flatten(2)[0].to(torch.bfloat16)
    return FLOAT8.unpack(FLOAT8.pack(x_TD), x_TD.shape[1], x_TD.dtype)


def compute(x_RD: torch.Tensor, expert: int) -> torch.Tensor:
    """Play an expert."""
    return (x_RD.float() * (expert + 1.5)).to(torch.bfloat16)


def at_slots(x_RD: torch.Tensor, offset_S1: list[int], experts: list[int]) -> torch.Tensor:
    """Play the experts of a rank."""
    y_RD = torch.empty_like(x_RD)
    for slot, expert in enumerate(experts):
        y_RD[offset_S1[slot] : offset_S1[slot + 1]] = compute(x_RD[offset_S1[slot] : offset_S1[slot + 1]], expert)
    return y_RD


def pair(exchange: DeepEpExchange, placement: Placement, tokens: Tokens, layer: int) -> torch.Tensor:
    """Dispatch, compute, combine."""
    received = exchange.dispatch(*tokens, placement, layer=layer).wait()
    experts = placement.experts_of(exchange.rank, layer).tolist()
    return exchange.combine(at_slots(received.x_RD, received.offset_S1, experts), received).wait()


def check(result_TD: torch.Tensor, tokens: Tokens, kernels: str | None = None) -> None:
    """Assert a result is what one process computes, in the order of additions that the kernels promise."""
    x_TD, topk_TK, weights_TK = (part.cpu() for part in tokens)
    x_TD, result_TD = travelled(x_TD), result_TD.cpu()
    y_TKD = torch.empty((x_TD.shape[0], TOP_K, dim()), dtype=torch.bfloat16)
    for token, experts in enumerate(topk_TK.tolist()):
        for k, expert in enumerate(experts):
            y_TKD[token, k] = compute(x_TD[token], expert)
    terms_TKD = y_TKD.float() * weights_TK.unsqueeze(2)
    kind = kernels or KIND[0].split("+")[0]
    if kind == "v1" or on_gpus():  # a sum of rounded sums, one a rank: it depends on which rank computed what
        bound_TD = 2.0**-7 * terms_TKD.abs().sum(dim=1)
        assert ((result_TD.float() - terms_TKD.sum(dim=1)).abs() <= bound_TD).all()
        return
    if kind != "low_latency":  # rows are weighted before they travel
        terms_TKD = terms_TKD.to(torch.bfloat16).float()
    expected_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    for k in range(TOP_K):
        expected_TD += terms_TKD[:, k]
    assert torch.equal(result_TD, expected_TD.to(torch.bfloat16)), (result_TD.float() - expected_TD).abs().max()


def ragged_batches(rank: int, ranks: int, folder: Path) -> None:
    """Ragged batches, also empty ones, in one group again and again."""
    exchange = join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    for step in range(6):
        exchange.begin_step(step, more=rank == 0 and step < 3, staged=step + rank, refused=rank, outlook=[rank, step])
        tokens = draw([7, 0, 1, 14][(rank + step) % 4], seed=100 * rank + step)
        for layer in range(LAYERS):
            check(pair(exchange, placement, tokens, layer), tokens)
        agreed = exchange.agreement()
        assert (agreed.more, agreed.staged, agreed.refused) == (step < 3, step, ranks - 1)
        assert agreed.outlook_GO[:, :2].tolist() == [[r, step] for r in range(ranks)]
    assert exchange.tell_all(f"I am {rank}") == [f"I am {r}" for r in range(ranks)]
    assert exchange.find_nodes(f"host {rank}") == ranks


def any_placement(rank: int, ranks: int, folder: Path) -> None:
    """Replicas and empty slots: rows go where the split says, results are the same."""
    exchange = join(rank, ranks, folder)
    rng = np.random.default_rng(ranks)
    held = -(-EXPERTS // ranks) + 1
    for step in range(4):
        drawn = [random_placement(rng, ranks=ranks, experts=EXPERTS, held=held, empty=step % 3) for _ in range(LAYERS)]
        placement = Placement(np.stack([layer.slot_of_LP[0] for layer in drawn]), experts=EXPERTS, ranks=ranks)
        exchange.begin_step(step, more=True)
        everyones = [draw([13, 0, 7, 1][(r + step) % 4], seed=100 * r + step) for r in range(ranks)]
        for layer in range(LAYERS):
            received = exchange.dispatch(*everyones[rank], placement, layer=layer).wait()
            _check_rows(rank, received, placement, everyones, layer)
            experts = placement.experts_of(rank, layer).tolist()
            y_RD = at_slots(received.x_RD, received.offset_S1, experts)
            check(exchange.combine(y_RD, received).wait(), everyones[rank])


def _check_rows(rank: int, received: Received, placement: Placement, everyones: list[Tokens], layer: int) -> None:
    row_P = placement.slot_of_LP[layer]
    quota_GP = split_tokens(received.count_GE, placement, layer).quota_GP
    first = rank * placement.slots_per_rank
    for local, slot in enumerate(range(first, first + placement.slots_per_rank)):
        held = received.x_RD[received.offset_S1[local] : received.offset_S1[local + 1]].cpu()
        expected = [torch.empty((0, dim()), dtype=torch.bfloat16)]
        for source, tokens in enumerate(everyones):
            x_TD, topk_TK, _ = (part.cpu() for part in tokens)
            rows = (topk_TK == row_P[slot]).any(dim=1).nonzero()[:, 0]
            begin = quota_GP[source, :slot][row_P[:slot] == row_P[slot]].sum()
            expected.append(travelled(x_TD)[rows[begin : begin + quota_GP[source, slot]]])
        if "low_latency" in KIND[0]:  # rows of a slot stand in any order
            held, expected = held[held[:, 0].argsort()], [torch.cat(expected)]
            expected[0] = expected[0][expected[0][:, 0].argsort()]
        assert torch.equal(held, torch.cat(expected)), (layer, slot)


def one_hot_expert(rank: int, ranks: int, folder: Path) -> None:
    """All tokens choose the same experts, which are on one rank."""
    exchange = join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    exchange.begin_step(0, more=False)
    x_TD, _, weights_TK = draw(9, seed=rank)
    tokens = x_TD, torch.arange(TOP_K, device=device()).expand(9, TOP_K).contiguous(), weights_TK
    check(pair(exchange, placement, tokens, 0), tokens)
    row = exchange._payload.row_bytes(dim(), torch.bfloat16) + 2 * dim()
    computing = [r for r in range(ranks) if set(placement.experts_of(r, 0).tolist()) & set(range(TOP_K))]
    if computing == [0] and rank:
        copies = TOP_K if "low_latency" in KIND[0] else 1
        assert exchange.counters.bytes_sent == 9 * copies * (row - 2 * dim())


def no_tokens(rank: int, ranks: int, folder: Path) -> None:
    """Nobody has a token."""
    exchange = join(rank, ranks, folder)
    exchange.begin_step(0, more=False)
    tokens = draw(0, seed=0)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    assert pair(exchange, placement, tokens, 0).shape == (0, dim())


def two_micro_batches(rank: int, ranks: int, folder: Path) -> None:
    """Two micro-batches take turns; the second is larger than the first."""
    exchange = join(rank, ranks, folder)
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    experts = [placement.experts_of(rank, layer).tolist() for layer in range(LAYERS)]
    exchange.begin_step(0, more=False)
    first, second = draw(5 + rank, seed=rank), draw(150 if "v2" in KIND[0] else 40, seed=50 + rank)
    waiting = exchange.dispatch(*first, placement, layer=0)
    for layer in range(LAYERS):
        other = exchange.dispatch(*second, placement, layer=layer)
        received = waiting.wait()
        combined = exchange.combine(at_slots(received.x_RD, received.offset_S1, experts[layer]), received)
        received = other.wait()
        check(combined.wait(), first)
        if layer + 1 < LAYERS:
            waiting = exchange.dispatch(*first, placement, layer=layer + 1)
        result_TD = exchange.combine(at_slots(received.x_RD, received.offset_S1, experts[layer]), received).wait()
        check(result_TD, second, "v1" if KIND[0].startswith("low_latency") else None)
    log = deepep_double.LOG  # of the stand-in; empty on GPUs
    if KIND == ["v2"]:
        assert [entry for entry in log if "open" in entry] == ["open 128", "open 256"]
        assert log[-1] == "elastic combine"
        assert log.index("destroy 128") > log.index("open 256")
    if KIND == ["low_latency"]:
        assert {"normal dispatch", "low-latency dispatch"} <= set(log)
        assert log[log.index("low-latency dispatch", log.index("normal dispatch")) - 1] == "clean"


def peer_dies(rank: int, ranks: int, folder: Path) -> None:
    """Survivors of a killed peer get a typed error, form a group without waiting for it, and go on."""
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)
    tokens = draw(5, seed=rank)
    if not (folder / f"lived-{rank}").exists():
        (folder / f"lived-{rank}").touch()
        exchange = join(rank, ranks, folder, step_s=3)
        exchange.begin_step(0, more=True)
        pair(exchange, placement, tokens, 0)
        if rank == ranks - 1:
            os.kill(os.getpid(), signal.SIGKILL)  # it is started once more
        began = time.monotonic()
        lost: PeerLost | None = None
        with suppress(AssertionError):
            try:
                for step in range(1, 100):
                    exchange.begin_step(step, more=True)
                    pair(exchange, placement, tokens, 0)
            except PeerLost as error:
                lost = error
        assert lost is not None
        assert "a peer died or hangs" in str(lost)
        assert time.monotonic() - began < 8
        exchange.close()
    exchange = join(rank, ranks, folder, store="again")
    exchange.begin_step(0, more=False)
    check(pair(exchange, placement, tokens, 1), tokens)


def _rank(body: Callable[[int, int, Path], None], rank: int, ranks: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (folder / "output").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        torch.set_num_threads(1)
        body(rank, ranks, folder)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked rank never returns into its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _main() -> None:
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        name, ranks, folder, kind = line.split()
        KIND[:] = [kind]
        body, count, place = globals()[name], int(ranks), Path(folder)
        children = {_rank(body, rank, count, place): rank for rank in range(count)}
        worst = 0
        while children:
            child, status = os.wait()
            rank = children.pop(child)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                children[_rank(body, rank, count, place)] = rank
            else:
                worst = max(worst, os.waitstatus_to_exitcode(status))
        print(worst, flush=True)  # noqa: T201


if __name__ == "__main__":
    _main()
