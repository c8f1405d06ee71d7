"""What every exchange keeps, as cases that run among the ranks of a group; which ones: `exchanges` in tests/support.

A case gets the group as one of its ranks sees it and raises if something is wrong. Cases leave the group
as they found it, so that they run one after the other in one group, whose reuse is tested thereby.
What becomes of a group that loses a rank: `faults`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from split_cases import random_placement

from fourlane.engine.exchange.contract import Agreement, Received
from fourlane.engine.exchange.local import LocalExchange
from fourlane.policy.placement import Placement, linear_placement
from fourlane.policy.token_split import split_equally, split_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from exchanges import AnyExchange, Implementation, Joining

    from fourlane.engine.exchange.contract import Pending

__all__ = ["CASES", "EXPERTS", "FEW", "LAYERS", "Group", "Tokens", "tokens_of"]

EXPERTS, TOP_K, LAYERS = 10, 3, 2


@dataclass(frozen=True)
class Tokens:
    """A batch: activations, the experts each token goes to, and their weights."""

    x_TD: torch.Tensor
    topk_TK: torch.Tensor
    weights_TK: torch.Tensor


def tokens_of(count: int, seed: int, *, dim: int, experts: int = EXPERTS, top_k: int = TOP_K) -> Tokens:
    """Draw a batch; the same on every rank for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(count, dim, generator=generator)
    topk_TK = torch.rand(count, experts, generator=generator).topk(top_k).indices
    return Tokens(x_TD, topk_TK, torch.rand(count, top_k, generator=generator))


@dataclass
class Group:
    """A group as one of its ranks sees it.

    Args:
        exchange: of this rank.
        kind: what it promises.
        joining: what was wanted of it.
    """

    exchange: AnyExchange
    kind: Implementation
    joining: Joining
    placement: Placement = field(init=False)
    steps: int = -1

    def __post_init__(self) -> None:
        self.placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=self.ranks)

    @property
    def rank(self) -> int:
        """Return this rank."""
        return self.exchange.rank

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return self.exchange.ranks

    def step(self, *, more: bool = False, staged: int = 0, refused: int = 0, outlook: tuple[int, ...] = ()) -> int:
        """Begin the next step; return its number."""
        self.steps += 1
        self.exchange.begin_step(self.steps, more=more, staged=staged, refused=refused, outlook=outlook)
        return self.steps

    def tokens(self, count: int, seed: int, **options: int) -> Tokens:
        """Draw a batch of a width and dtype this group takes."""
        drawn = tokens_of(count, seed, dim=self.kind.dim, **options)
        if torch.float32 in self.kind.dtypes:
            return drawn
        return Tokens(drawn.x_TD.to(self.kind.dtypes[0]), drawn.topk_TK, drawn.weights_TK)

    def travelled(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Return activations as experts see them: as they come out of the form in which they travel."""
        payload = self.joining.payload
        return payload.unpack(payload.pack(x_TD), x_TD.shape[1], x_TD.dtype)

    def dispatch(self, tokens: Tokens, layer: int = 0, placement: Placement | None = None) -> Pending[Received]:
        """Begin to send a batch to its experts."""
        placement = placement or self.placement
        return self.exchange.dispatch(tokens.x_TD, tokens.topk_TK, tokens.weights_TK, placement, layer=layer)

    def compute(self, received: Received, layer: int = 0, placement: Placement | None = None) -> torch.Tensor:
        """Do what this rank's experts do: each multiplies by a number of its own."""
        experts = (placement or self.placement).experts_of(self.rank, layer).tolist()
        return scaled_by_expert(received, experts)

    def pair(self, tokens: Tokens, layer: int = 0, placement: Placement | None = None) -> torch.Tensor:
        """Send a batch to its experts and back."""
        received = self.dispatch(tokens, layer, placement).wait()
        return self.exchange.combine(self.compute(received, layer, placement), received).wait()

    def check(self, found: torch.Tensor, tokens: Tokens, layer: int = 0) -> None:
        """Hold a batch's result against what one process gives.

        To the last bit, or where the library sums, within what rounding its terms may come to.
        """
        x_TD = self.travelled(tokens.x_TD)
        expected = alone(Tokens(x_TD, tokens.topk_TK, tokens.weights_TK), layer)
        if self.kind.exact:
            assert torch.equal(found, expected), (self.rank, self.steps)
        else:
            bound = 2**-5 * alone(Tokens(x_TD.abs(), tokens.topk_TK, tokens.weights_TK), layer).float()
            assert ((found.float() - expected.float()).abs() <= bound).all(), (self.rank, self.steps)


def scaled_by_expert(received: Received, experts: list[int]) -> torch.Tensor:
    """Return each slot's rows times a number of its expert's."""
    y_RD = received.x_RD.clone()
    for slot, expert in enumerate(experts):
        y_RD[received.offset_S1[slot] : received.offset_S1[slot + 1]] *= expert + 1.5
    return y_RD


def alone(tokens: Tokens, layer: int = 0) -> torch.Tensor:
    """Return what one process with all experts gives."""
    placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=1)
    exchange = LocalExchange(placement)
    exchange.begin_step(0, more=False)
    received = exchange.dispatch(tokens.x_TD, tokens.topk_TK, tokens.weights_TK, placement, layer=layer).wait()
    return exchange.combine(scaled_by_expert(received, list(range(EXPERTS))), received).wait()


def ragged_batches(group: Group) -> None:
    """Batches of unlike sizes, also empty ones, give what one process gives."""
    for turn in range(6):
        group.step(more=group.rank == 0 and turn < 3)
        tokens = group.tokens([7, 0, 1, 30][(group.rank + turn) % 4], seed=100 * group.rank + turn)
        for layer in range(LAYERS):
            group.check(group.pair(tokens, layer), tokens, layer)
        assert group.exchange.agreement().more == (turn < 3)


def no_tokens_at_all(group: Group) -> None:
    """A step in which nobody has a token goes through; so does the next, with tokens."""
    for count in (0, 0, 5):
        group.step()
        tokens = group.tokens(count, seed=group.rank)
        group.check(group.pair(tokens), tokens)


def one_rank_has_all_tokens(group: Group) -> None:
    """One rank after the other has all tokens."""
    for owner in range(min(group.ranks, 4)):
        group.step()
        tokens = group.tokens(24 * int(group.rank == owner), seed=owner)
        group.check(group.pair(tokens), tokens)


def all_tokens_go_to_one_rank(group: Group) -> None:
    """Every token of every rank goes to one expert: its rank computes all, the others nothing."""
    for expert in (0, EXPERTS - 1):
        group.step()
        drawn = group.tokens(20, seed=group.rank, top_k=1)
        tokens = Tokens(drawn.x_TD, torch.full_like(drawn.topk_TK, expert), drawn.weights_TK)
        received = group.dispatch(tokens).wait()
        holds = expert in group.placement.experts_of(group.rank, 0)
        assert received.x_RD.shape[0] == (20 * group.ranks if holds else 0)
        group.check(group.exchange.combine(group.compute(received), received).wait(), tokens)


def few_hot_experts(group: Group) -> None:
    """Every token of every rank goes to the same experts."""
    group.step()
    tokens = group.tokens(20, seed=group.rank, experts=TOP_K)
    group.check(group.pair(tokens), tokens)
    assert group.exchange.agreement().step == group.steps


def one_expert_on_every_rank(group: Group) -> None:
    """All tokens, of one rank, go to an expert that every rank holds: every rank computes as many."""
    rest = [1 + np.arange(EXPERTS - 1)[rank :: group.ranks] for rank in range(group.ranks)]
    rows = [np.r_[0, held, [-1] * EXPERTS][:EXPERTS] for held in rest]
    placement = Placement(np.tile(np.concatenate(rows), (LAYERS, 1)), experts=EXPERTS, ranks=group.ranks)
    group.step()
    x_TD = group.tokens(15 * group.ranks * int(group.rank == 0), seed=group.rank).x_TD
    tokens = Tokens(x_TD, torch.zeros(x_TD.shape[0], 1, dtype=torch.int64), torch.ones(x_TD.shape[0], 1))
    received = group.dispatch(tokens, 0, placement).wait()
    assert received.x_RD.shape[0] == 15
    group.check(group.exchange.combine(group.compute(received, 0, placement), received).wait(), tokens)


def any_placement(group: Group) -> None:
    """Replicas, empty slots, and another placement in each step leave no trace in the results."""
    rng = np.random.default_rng(group.ranks)  # the same on all ranks
    counters = group.exchange.counters
    before = counters.max_split_L.copy(), counters.max_equal_L.copy()
    fullest, if_equal = np.zeros(LAYERS, dtype=np.int64), np.zeros(LAYERS, dtype=np.int64)
    for placement in _placements(rng, group.ranks):
        step = group.step()
        counts = [40, 0, 7, 1, 25]
        everyones = [group.tokens(counts[(r + step) % 5], seed=100 * r + step) for r in range(group.ranks)]
        for layer in range(LAYERS):
            fullest[layer] += _check_layer(group, placement, everyones, layer).max()
            count_GE = np.stack([torch.bincount(t.topk_TK.reshape(-1), minlength=EXPERTS) for t in everyones])
            if_equal[layer] += split_equally(count_GE, placement, layer).tokens_G.max()
    assert (counters.max_split_L - before[0] == fullest).all()
    assert (counters.max_equal_L - before[1] == if_equal).all()


def _placements(rng: np.random.Generator, ranks: int) -> list[Placement]:
    """Return placements with and without replicas and empty slots, of several widths; some differ in a layer only."""
    least = -(-EXPERTS // ranks)
    placements = [linear_placement(layers=LAYERS, experts=EXPERTS, ranks=ranks)]
    few = ranks > 4  # drawing and checking for so many ranks takes longest
    for held in {min(EXPERTS, least + more) for more in ((1,) if few else (0, 1, 3))}:
        for empty in {3} if few else {0, min(3, ranks * held - EXPERTS)}:
            layers = [
                random_placement(rng, ranks=ranks, experts=EXPERTS, held=held, empty=empty) for _ in range(LAYERS + 1)
            ]
            *rows, other = (layer.slot_of_LP[0] for layer in layers)
            placement = Placement(np.stack(rows), experts=EXPERTS, ranks=ranks)
            placements += [placement, placement.with_layer(int(rng.integers(LAYERS)), other), placement]
    return placements


def _check_layer(group: Group, placement: Placement, everyones: list[Tokens], layer: int) -> np.ndarray:
    tokens = everyones[group.rank]
    received = group.dispatch(tokens, layer, placement).wait()
    y_RD = group.compute(received, layer, placement)
    if group.joining.split:
        nodes = group.kind.nodes(group.ranks)
        chosen = split_tokens(received.count_GE, placement, layer, nodes=nodes)
    else:
        chosen = split_equally(received.count_GE, placement, layer)
    _assert_slots_hold_what_the_split_says(group, received, placement, chosen.quota_GP, everyones, layer)
    group.check(group.exchange.combine(y_RD, received).wait(), tokens, layer)
    return chosen.tokens_G


def _assert_slots_hold_what_the_split_says(
    group: Group, received: Received, placement: Placement, quota_GP: np.ndarray, everyones: list[Tokens], layer: int
) -> None:
    """Each slot has of each rank's tokens those behind what lower slots of the same expert took."""
    row_P = placement.slot_of_LP[layer]
    first = group.rank * placement.slots_per_rank
    for local, slot in enumerate(range(first, first + placement.slots_per_rank)):
        held = received.x_RD[received.offset_S1[local] : received.offset_S1[local + 1]]
        expected = [torch.empty(0, group.kind.dim)]
        for source, tokens in enumerate(everyones):
            rows = (tokens.topk_TK == row_P[slot]).any(dim=1).nonzero()[:, 0]
            begin = quota_GP[source, :slot][row_P[:slot] == row_P[slot]].sum()
            expected.append(tokens.x_TD[rows[begin : begin + quota_GP[source, slot]]])
        assert torch.equal(held, group.travelled(torch.cat(expected))), (layer, slot)
    assert received.x_RD.shape[0] == received.offset_S1[-1]


def every_dtype(group: Group) -> None:
    """What is sent arrives bit for bit, whatever its dtype; what experts compute in is summed as in one process."""
    for dtype in group.kind.dtypes:
        group.step()
        everyones = [_as_dtype(group.tokens(6, seed=rank), dtype) for rank in range(group.ranks)]
        received = group.dispatch(everyones[group.rank]).wait()
        assert received.x_RD.dtype == dtype
        _assert_rows_are_those_sent(group, received, everyones)
        if dtype.is_floating_point and dtype.itemsize > 1:
            group.check(group.exchange.combine(group.compute(received), received).wait(), everyones[group.rank])


def _as_dtype(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    return Tokens((tokens.x_TD * 16).to(dtype), tokens.topk_TK, tokens.weights_TK)


def _assert_rows_are_those_sent(group: Group, received: Received, everyones: list[Tokens]) -> None:
    expected = [torch.empty(0, everyones[0].x_TD.shape[1] * received.x_RD.dtype.itemsize, dtype=torch.uint8)]
    for expert in group.placement.experts_of(group.rank, 0).tolist():
        for tokens in everyones:
            rows = (tokens.topk_TK == expert).any(dim=1).nonzero()[:, 0]
            expected.append(tokens.x_TD[rows].view(torch.uint8))
    assert torch.equal(received.x_RD.view(torch.uint8), torch.cat(expected)), received.x_RD.dtype


def results_stay(group: Group) -> None:
    """What combine returned stays as it is, and what was given in may be overwritten, while the group goes on."""
    group.step()
    batches = [group.tokens(12, seed=7 * group.rank + turn) for turn in range(5)]
    results = []
    for tokens in batches:
        x_TD = tokens.x_TD.clone()
        received = group.dispatch(Tokens(x_TD, tokens.topk_TK, tokens.weights_TK)).wait()
        x_TD.fill_(torch.nan)
        y_RD = group.compute(received)
        received.x_RD.fill_(torch.nan)
        results.append(group.exchange.combine(y_RD, received).wait())
        y_RD.fill_(torch.nan)
    for tokens, result in zip(batches, results, strict=True):
        group.check(result, tokens)


def outputs_may_stand_in_the_rows_place(group: Group) -> None:
    """Experts may compute in place: the rows received, changed, are what combine sends."""
    group.step()
    tokens = group.tokens(9, seed=group.rank)
    received = group.dispatch(tokens).wait()
    received.x_RD.copy_(group.compute(received))
    group.check(group.exchange.combine(received.x_RD, received).wait(), tokens)


def two_micro_batches(group: Group) -> None:
    """Two batches under way at once do not mix, in whichever order they are waited for."""
    a, b = group.tokens(9, seed=group.rank), group.tokens(4 * (group.rank % 2), seed=50 + group.rank)
    for combine_first, wait_first in ((0, 0), (0, 1), (1, 0), (1, 1)):
        group.step()
        pending = [group.dispatch(tokens) for tokens in (a, b)]
        received = [one.wait() for one in pending]
        outputs = [group.compute(one) for one in received]
        back: list[Pending[torch.Tensor] | None] = [None, None]
        for index in (combine_first, 1 - combine_first):
            back[index] = group.exchange.combine(outputs[index], received[index])
        for index in (wait_first, 1 - wait_first):
            one = back[index]
            assert one is not None
            group.check(one.wait(), (a, b)[index])


def two_streams_through_many_layers(group: Group) -> None:
    """Two streams take turns at each thing they wait for, for many layers."""
    group.step()
    sizes = [(11, 3), (0, 8), (5, 0)][group.rank % 3]
    streams = [_stream(group, size, seed=10 * group.rank + which) for which, size in enumerate(sizes)]
    waiting = [next(stream) for stream in streams]
    while streams:
        for stream in list(streams):
            index = streams.index(stream)
            result = waiting[index].wait()
            try:
                waiting[index] = stream.send(result)
            except StopIteration:
                del streams[index], waiting[index]


def _stream(group: Group, count: int, *, seed: int) -> Generator[Pending, object, None]:
    for turn in range(8):
        tokens = group.tokens(count, seed=1000 * turn + seed)
        received = yield group.dispatch(tokens, turn % LAYERS)
        assert isinstance(received, Received)
        result = yield group.exchange.combine(group.compute(received, turn % LAYERS), received)
        assert isinstance(result, torch.Tensor)
        group.check(result, tokens, turn % LAYERS)


def ranks_agree(group: Group) -> None:
    """What all have staged is the least anybody announced, what somebody refused all hear of, outlooks too."""
    last = group.ranks - 1
    announced = [(int(group.rank != last), 0), (1, 0), (1 + int(group.rank == 0), 2 * int(group.rank == last)), (2, 0)]
    expected = [(0, 0), (1, 0), (1 + int(last == 0), 2), (2, 0)]
    for (staged, refused), agreed in zip(announced, expected, strict=True):
        step = group.step(staged=staged, refused=refused)
        group.pair(group.tokens(group.rank, seed=step))
        assert group.exchange.agreement() == Agreement(step=step, more=False, staged=agreed[0], refused=agreed[1])
    step = group.step(more=True, outlook=(group.rank, -7, 2**62))
    group.pair(group.tokens(2, seed=group.rank))
    assert group.exchange.agreement() == Agreement(step=step, more=True), "announcements last for a step"
    told = group.exchange.agreement().outlook_GO.tolist()
    assert told == [[rank, -7, 2**62, 0, 0, 0, 0, 0] for rank in range(group.ranks)]


def loads_are_counted(group: Group) -> None:
    """Tokens an expert are counted: of all ranks, and this rank's own by phase."""
    counters = group.exchange.counters
    before = counters.load_LE.copy(), counters.prefill_LE.copy(), counters.decode_LE.copy()
    everyones = [group.tokens(5 + rank, seed=rank) for rank in range(group.ranks)]
    own = everyones[group.rank]
    decode_rows = torch.tensor([0, 3])
    group.step()
    group.exchange.dispatch(
        own.x_TD, own.topk_TK, own.weights_TK, group.placement, layer=1, decode_rows=decode_rows
    ).wait()
    count_GE = np.stack([torch.bincount(t.topk_TK.reshape(-1), minlength=EXPERTS) for t in everyones])
    decode_E = torch.bincount(own.topk_TK[decode_rows].reshape(-1), minlength=EXPERTS).numpy()
    assert (counters.load_LE - before[0] == [np.zeros(EXPERTS), count_GE.sum(axis=0)]).all()
    assert (counters.decode_LE - before[2] == [np.zeros(EXPERTS), decode_E]).all()
    assert (counters.prefill_LE - before[1] == [np.zeros(EXPERTS), count_GE[group.rank] - decode_E]).all()


FEW = [ragged_batches, all_tokens_go_to_one_rank, any_placement]
"""Those that say most about a layout."""
CASES: list[Callable[[Group], None]] = [
    ragged_batches,
    no_tokens_at_all,
    one_rank_has_all_tokens,
    all_tokens_go_to_one_rank,
    few_hot_experts,
    one_expert_on_every_rank,
    any_placement,
    every_dtype,
    results_stay,
    outputs_may_stand_in_the_rows_place,
    two_micro_batches,
    two_streams_through_many_layers,
    ranks_agree,
    loads_are_counted,
]
