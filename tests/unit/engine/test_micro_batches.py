"""A step cut in two computes the same tokens, and a model's logits are the same bits either way."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_random_checkpoint import Shape, write_checkpoint

from fourlane.engine.batches import build_batch
from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.messages import Sampling
from fourlane.engine.micro_batches import StepRunner, split_step
from fourlane.engine.model.moe import cut_rows
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.scheduler import Limits, Scheduled, Scheduler, Step
from fourlane.engine.sequence import Sequence
from fourlane.engine.stage_trace import StageTrace
from fourlane.policy.overlap_order import ORDERS
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from fourlane.engine.model.qwen3_moe import CausalLM
    from fourlane.policy.overlap_order import OverlapOrder

PAGE, BLOCKS = 4, 64


def part(tokens: int, *, computed: int = 0, pending: int | None = None, prompt: int = 100) -> Scheduled:
    known = computed + (tokens if pending is None else pending)
    sequence = Sequence(1, list(range(known)), prompt, Sampling(max_tokens=5), blocks=list(range(1, 40)))
    sequence.computed = computed
    return Scheduled(sequence, tokens)


def cut(tokens: list[int]) -> tuple[list[int], list[int]]:
    first, second = split_step(Step([part(count) for count in tokens], more=True))
    return [p.tokens for p in first.parts], [p.tokens for p in second.parts]


def test_decoding_requests_are_shared_out() -> None:
    assert cut([1] * 5) == ([1, 1, 1], [1, 1])


def test_a_prefill_chunk_is_cut_inside() -> None:
    assert cut([101]) == ([51], [50])
    assert cut([1, 1, 60, 2]) == ([1, 1, 30], [30, 2])


def test_a_cut_between_sequences_is_preferred_if_it_is_nearly_even() -> None:
    assert cut([49, 51]) == ([49], [51])
    assert cut([40, 60]) == ([40, 10], [50])


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_rank_without_tokens_still_has_two_micro_batches(tokens: list[int]) -> None:
    assert cut(tokens) == (tokens, [])


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(0, 30))
def test_halves_make_the_whole_and_are_even(tokens: list[int], computed: int) -> None:
    step = Step([part(count, computed=computed) for count in tokens], more=False)
    halves = split_step(step)
    counts = [sum(p.tokens for p in half.parts) for half in halves]
    assert sum(counts) == sum(tokens)
    assert counts[0] == pytest.approx(sum(tokens) / 2, abs=max(1, 0.02 * sum(tokens)))
    whole = build_batch(step, block_size=PAGE, device=torch.device("cpu"))
    batches = [build_batch(half, block_size=PAGE, device=torch.device("cpu")) for half in halves]
    for name in ("token_ids_T", "position_T", "slot_T"):
        assert torch.equal(torch.cat([getattr(batch, name) for batch in batches]), getattr(whole, name))
    shifted = torch.cat([batches[0].logit_row_N, batches[1].logit_row_N + counts[0]])
    assert torch.equal(shifted, whole.logit_row_N)
    assert [s.sequence for half in halves for s in half.parts if s.samples] == [p.sequence for p in step.parts]


def test_a_piece_of_a_chunk_is_no_decoded_token() -> None:
    chunk = part(2, computed=100, pending=2)
    assert [p.decodes for half in split_step(Step([chunk], more=False)) for p in half.parts] == [False, False]
    assert [p.samples for half in split_step(Step([chunk], more=False)) for p in half.parts] == [False, True]
    decoding = part(1, computed=100)
    assert split_step(Step([decoding], more=False))[0].parts[0].decodes


@pytest.fixture(scope="module", params=[0, 24], ids=["without a shared expert", "with a shared expert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab": 64, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "expert_dim": 16}
    write_checkpoint(folder, Shape(**sizes, experts=6, top_k=2, shared_expert_dim=request.param, seed=5))
    placement = linear_placement(layers=3, experts=6, ranks=1)
    return load_model(folder, device="cpu", placement=placement, rank=0)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=9),
)
def test_rows_are_cut_in_halves_that_make_the_whole(rows_of_slot: list[int]) -> None:
    offsets = [0, *accumulate(rows_of_slot)]
    x_RD = torch.arange(offsets[-1])[:, None]
    halves = cut_rows(x_RD, offsets)
    assert torch.equal(torch.cat([rows for rows, _ in halves]), x_RD)
    for slot in range(len(rows_of_slot)):
        pieces = [rows[offset[slot] : offset[slot + 1]] for rows, offset in halves]
        assert torch.equal(torch.cat(pieces), x_RD[offsets[slot] : offsets[slot + 1]]), "rows stay in their slots"
    assert min(len(rows) for rows, _ in halves) >= int(0.4 * offsets[-1])


def serve(model: CausalLM, order: OverlapOrder | None) -> tuple[list[torch.Tensor], list[tuple[int, int, int]]]:
    """Serve prompts of several lengths to their ends; return every step's logits and what was told of KV."""
    placement = linear_placement(layers=3, experts=6, ranks=1)
    exchange = CommunicationThread(LocalExchange(placement), device=torch.device("cpu"))
    geometry = model.kv_geometry(BLOCKS, PAGE)
    runner = StepRunner(model, torch.zeros(geometry.layers, 2, BLOCKS, PAGE, geometry.kv_heads, geometry.head_dim))
    limits = Limits(chunk_tokens=13, max_running=8, max_length=60, block_size=PAGE, eos_ids=frozenset())
    scheduler = Scheduler(BlockPool(BLOCKS, prefix_cache=False), limits)
    for number, prompt in enumerate((30, 3, 17, 1)):
        tokens = [(7 * number + 3 * i) % 64 for i in range(prompt)]
        scheduler.submit(Sequence(number, tokens, prompt, Sampling(max_tokens=6, ignore_eos=True)))
    outputs: list[torch.Tensor] = []
    told: list[tuple[int, int, int]] = []

    def on_kv(step: Step) -> object:
        rows = [(p.sequence.sequence_id, p.first + i) for p in step.parts for i in range(p.tokens)]

        def tell(layer: int, k_THd: torch.Tensor, v_THd: torch.Tensor) -> None:
            assert k_THd.shape == v_THd.shape
            assert len(rows) == k_THd.shape[0]
            told.extend((layer, *row) for row in rows)

        return tell

    while True:
        scheduler.admit()
        scheduler.make_room()
        step = scheduler.schedule()
        exchange.begin_step(len(outputs), more=step.more)
        outputs.append(runner.run(step, exchange, placement, order=order, on_kv=on_kv))  # type: ignore[arg-type]
        if not step.parts:
            exchange.close()
            return outputs, told
        scheduler.commit(step, outputs[-1].argmax(dim=-1).tolist())


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_two_streams_give_bit_for_bit_the_logits_of_one(model: CausalLM, order: OverlapOrder) -> None:
    alone, told_alone = serve(model, None)
    dual, told_dual = serve(model, order)
    assert len(alone) == len(dual) > 8
    assert all(torch.equal(a, b) for a, b in zip(alone, dual, strict=True))
    assert sorted(told_dual) == sorted(told_alone)
    assert len(set(told_dual)) == len(told_dual), "KV of each token of each layer is told once"


@pytest.mark.parametrize("order", [None, *ORDERS.values()], ids=["single", *ORDERS])
def test_a_trace_has_every_stage_of_each_stream(model: CausalLM, order: OverlapOrder | None) -> None:
    placement = linear_placement(layers=3, experts=6, ranks=1)
    exchange = CommunicationThread(LocalExchange(placement), device=torch.device("cpu"))
    geometry = model.kv_geometry(BLOCKS, PAGE)
    kv_LQBShd = torch.zeros(geometry.layers, 2, BLOCKS, PAGE, geometry.kv_heads, geometry.head_dim)
    exchange.trace = trace = StageTrace(model.stages(), model.config.moe_layers)
    exchange.begin_step(0, more=False)
    step = Step([part(11, prompt=11)], more=False)
    StepRunner(model, kv_LQBShd, trace).run(step, exchange, placement, order=order)
    exchange.close()
    stages = model.stages(cut_experts=order is not None and order.cut_experts)
    for stream in range(1 if order is None else 2):
        computed = [(s.layer, s.name) for s in trace.spans if s.kind == "compute" and s.stream == stream]
        assert computed == [(stage.layer, stage.computes) for stage in stages]
        sent = [(s.layer, s.name) for s in trace.spans if s.kind == "communicate" and s.stream == stream]
        assert sent == ([] if order is None else [(layer, n) for layer in range(3) for n in ("dispatch", "combine")])
