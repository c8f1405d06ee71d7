"""Run the bundled model in one stream and in two, and draw when two streams compute and what travels meanwhile."""

from __future__ import annotations

import torch

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.messages import Sampling
from fourlane.engine.micro_batches import StepRunner
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.scheduler import Scheduled, Step
from fourlane.engine.sequence import Sequence
from fourlane.policy.overlap_order import ORDERS, OverlapOrder, Stretch, timeline
from fourlane.policy.placement import linear_placement
from fourlane.policy.stages import Stage, model_stages

TEXTS = 6
TOKENS = 20
"""Of each text."""
PAGE = 16
TAKES = {"attention 0": 2, "attention 1": 3, "router": 1, "experts": 6, "experts 0": 3, "experts 1": 3, "output": 1}
"""Units of time that parts of a layer compute for a whole batch; a micro-batch takes half."""
TRAVELS = 4
"""And how long a dispatch or a combine is on its way."""


def main() -> None:
    """Print the tokens of every way to run a step, then a picture of each order."""
    with torch.no_grad():
        compare_tokens()
    stages = model_stages([True] * 3, shared=False)
    alone = sum(computes(stage) for stage in stages)
    single = alone + sum(travels(stage) for stage in stages)
    print(f"\nthree layers, one stream: {single:.0f} units of time, {alone:.0f} of them computing")
    for order in ORDERS.values():
        draw(order, single)


def compare_tokens() -> None:
    """Run the same step in one stream and in two, in every order, and print each text's next token."""
    config = read_config("bundled")
    placement = linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=1)
    model = load_model("bundled", device="cpu", placement=placement, rank=0)
    pages = -(-TOKENS // PAGE)
    geometry = model.kv_geometry(1 + TEXTS * pages, PAGE)
    kv = torch.zeros(geometry.layers, 2, geometry.blocks, PAGE, geometry.kv_heads, geometry.head_dim)
    runner, step = StepRunner(model, kv), Step([part(text, pages) for text in range(TEXTS)], more=False)
    exchange = CommunicationThread(LocalExchange(placement), device=torch.device("cpu"))
    exchange.begin_step(0, more=False)
    one = runner.run(step, exchange, placement)
    print(f"{TEXTS} texts of {TOKENS} tokens, next tokens in one stream: {one.argmax(dim=1).tolist()}")
    for number, order in enumerate(ORDERS.values(), start=1):
        exchange.begin_step(number, more=False)
        two = runner.run(step, exchange, placement, order=order)
        print(f"  two streams, order {order.name:8} the same logits: {torch.equal(one, two)}")
    exchange.close()


def part(text: int, pages: int) -> Scheduled:
    """Return all tokens of a text, to be computed in one step."""
    token_ids = [300 + (17 * text + 5 * place) % 3000 for place in range(TOKENS)]
    blocks = list(range(1 + text * pages, 1 + (text + 1) * pages))
    return Scheduled(Sequence(text, token_ids, TOKENS, Sampling(max_tokens=1), blocks=blocks), TOKENS)


def computes(stage: Stage) -> float:
    """Return how long a whole batch computes in a stage."""
    return sum(TAKES.get(part, 0) for part in stage.parts)


def travels(stage: Stage) -> float:
    """Return how long what follows a stage is on its way."""
    return TRAVELS if stage.then in ("dispatch", "combine") else 0


def draw(order: OverlapOrder, single: float) -> None:
    """Print when each stream computes (A, B) and what is on its way for it (a, b)."""
    stages = model_stages([True] * 3, shared=False, cut_experts=order.cut_experts)
    half = [Stretch(computes(stage) / 2, stage.then, travels(stage) / 2) for stage in stages]
    intervals = timeline((half, half), order)
    end = max(each.end_s for each in intervals)
    print(f"order {order.name}: {end:.1f} units, {single / end:.2f} times faster")
    for name, on_its_way in (("computes", False), ("travels ", True)):
        row = [" "] * round(2 * end)
        for each in intervals:
            if each.travels == on_its_way:
                letter = "ab"[each.stream] if on_its_way else "AB"[each.stream]
                row[round(2 * each.begin_s) : round(2 * each.end_s)] = letter * round(2 * (each.end_s - each.begin_s))
        print(f"  {name} {''.join(row).rstrip()}")


if __name__ == "__main__":
    main()
