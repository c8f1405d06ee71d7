"""One rank of a model that is served in one stream and in two; beside it, the model alone.

Run as `python dual_bodies.py`: imports torch once, then for each line "FOLDER IMPLEMENTATION RANKS" of
standard input forks the ranks, which meet in the folder and serve its model, and answers with the worst
of their exit codes; what ranks say goes to `output` in the folder.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from split_cases import random_placement

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.shared_memory import SharedMemoryExchange
from fourlane.engine.exchange.tcp import TcpExchange
from fourlane.engine.exchange.torch_all_to_all import TorchAllToAll
from fourlane.engine.messages import Sampling
from fourlane.engine.micro_batches import StepRunner
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.scheduler import Scheduled, Step
from fourlane.engine.seal import Secret
from fourlane.engine.sequence import Sequence
from fourlane.policy.overlap_order import DECODE_ORDER, EXPERTS_ORDER, PREFILL_ORDER
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.model.qwen3_moe import CausalLM
    from fourlane.policy.overlap_order import OverlapOrder

CPU = torch.device("cpu")
PAGE, PAGES = 4, 60
CHUNKS = (9, 1, 14, 1, 1, 6)
"""Tokens of each sequence in a step, in turn."""


def join(implementation: str, address: GroupAddress, placement: Placement) -> SteppedExchange | LocalExchange:
    """Form the group."""
    match implementation:
        case "local":
            return LocalExchange(placement)
        case "torch_all_to_all":
            return TorchAllToAll(address, placement, device=CPU)
        case "tcp":
            return TcpExchange(address, placement, device=CPU, secret=Secret(b"s" * 32))
        case _:
            return SharedMemoryExchange(address, placement, device=CPU, secret=Secret(b"s" * 32))


@dataclass
class Serving:
    """A model with pages, and sequences under way; the same sequences wherever it is made for the same rank."""

    model: CausalLM
    rank: int
    sequences: list[Sequence] = field(default_factory=list)
    told: set[tuple[int, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        geometry = self.model.kv_geometry(PAGES, PAGE)
        kv_LQBShd = torch.full((geometry.layers, 2, PAGES, PAGE, geometry.kv_heads, geometry.head_dim), torch.nan)
        kv_LQBShd[:, :, 0] = 0.0  # page 0 pads block tables
        self.runner = StepRunner(self.model, kv_LQBShd)
        rng = np.random.default_rng(self.rank)
        for number, length in enumerate([[40], [31, 9, 24], []][self.rank % 3]):  # one rank has no tokens
            blocks = list(range(1 + 12 * number, 13 + 12 * number))
            token_ids = rng.integers(5, 500, length).tolist()
            self.sequences.append(Sequence(number, token_ids, length - 4, Sampling(max_tokens=9), blocks=blocks))

    def step(self, chunk: int) -> Step:
        """Return the next step: a chunk of every sequence that is not through."""
        parts = [Scheduled(s, min(chunk + s.sequence_id, s.pending)) for s in self.sequences if s.pending]
        return Step(parts, more=True)

    def run(
        self,
        step: Step,
        exchange: SteppedExchange | LocalExchange | CommunicationThread,
        placement: Placement,
        order: OverlapOrder | None,
    ) -> torch.Tensor:
        """Compute a step; each token's KV of each layer must be told once."""

        def on_kv(half: Step) -> object:
            rows = [(p.sequence.sequence_id, p.first + i) for p in half.parts for i in range(p.tokens)]

            def tell(layer: int, k_THd: torch.Tensor, v_THd: torch.Tensor) -> None:
                assert k_THd.shape[0] == v_THd.shape[0] == len(rows)
                found = {(layer, *row) for row in rows}
                assert not found & self.told, "the same token's KV twice"
                self.told |= found

            return tell

        logits_NV = self.runner.run(step, exchange, placement, order=order, on_kv=on_kv)  # type: ignore[arg-type]
        for part in step.parts:
            part.sequence.computed += part.tokens
        return logits_NV


def placements(model: CausalLM, ranks: int) -> list[Placement]:
    """Return placements of one width, as experts move from one to the next: replicas, an empty slot, other ranks."""
    config = model.config
    if ranks == 1:
        return [linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=1)]
    rng = np.random.default_rng(ranks)  # the same on all ranks
    shape = {"ranks": ranks, "experts": config.experts, "held": -(-config.experts // ranks) + 2, "empty": 1}
    found = []
    for _ in range(3):
        rows = [random_placement(rng, **shape).slot_of_LP[0] for _ in config.moe_layers]
        found.append(Placement(np.stack(rows), experts=config.experts, ranks=ranks))
    return found


def serve(rank: int, ranks: int, folder: Path, implementation: str) -> None:
    """Serve step after step, in one stream and in either order of two, while experts move; compare with alone."""
    config_placement = linear_placement(layers=3, experts=10, ranks=1)
    alone = Serving(load_model(folder / "model", device="cpu", placement=config_placement, rank=0), rank)
    moving = placements(alone.model, ranks)
    together = Serving(load_model(folder / "model", device="cpu", placement=moving[0], rank=rank), rank)
    address = GroupAddress(str(folder / f"store-{implementation}-{ranks}"), rank, ranks, "127.0.0.1", 20.0, 20.0)
    group = join(implementation, address, moving[0])
    exchange, local = CommunicationThread(group, device=CPU), LocalExchange(config_placement)
    orders = cycle((PREFILL_ORDER, EXPERTS_ORDER, DECODE_ORDER, None, EXPERTS_ORDER))
    outputs = 0
    for number, (chunk, order) in enumerate(zip(islice(cycle(CHUNKS), 12), orders, strict=False)):
        placement = moving[number % len(moving)]
        if len(moving) > 1:
            for layer, experts in together.model.read_experts(placement, rank, range(placement.layers)):
                together.model.moe_blocks[layer].experts = experts
        exchange.begin_step(number, more=True)
        local.begin_step(number, more=True)
        found = together.run(together.step(chunk), exchange, placement, order)
        expected = alone.run(alone.step(chunk), local, config_placement, None)
        assert torch.equal(found, expected), (rank, number, order)
        assert exchange.agreement().step == number
        outputs += found.shape[0]
    assert together.told == alone.told
    assert outputs == len(together.sequences), "every sequence came to its end"
    assert exchange.counters.communication_s > 0
    exchange.close()


def run(folder: Path, implementation: str, ranks: int) -> int:
    """Fork the ranks, wait for them, and return the worst of their exit codes."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            try:
                with (folder / "output").open("a", buffering=1) as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                serve(rank, ranks, folder, implementation)
            except BaseException:  # noqa: BLE001 - reported, and turned into an exit code
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


def main() -> None:
    """Answer line by line."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        folder, implementation, ranks = line.split()
        sys.stdout.write(f"{run(Path(folder), implementation, int(ranks))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
