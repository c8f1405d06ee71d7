"""Layers move between ranks of one process, over socket pairs: whole, damaged, halted, refused."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from fourlane.engine.balance import mesh, thread
from fourlane.engine.balance.frames import Order, Piece, pack
from fourlane.engine.balance.thread import BalanceThread, MigrationState
from fourlane.engine.model.cpu_kernels import PackedExperts
from fourlane.engine.model.moe import TorchExperts
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.model.moe import MovableExperts

EXPERTS, RANKS, LAYERS, DIM, HIDDEN = 6, 3, 2, 24, 40
PATIENCE_S = 10.0


def weights_of(layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 * layer + expert)
    shapes = ((HIDDEN, DIM), (HIDDEN, DIM), (DIM, HIDDEN))
    gate, up, down = (torch.randn(shape, generator=draw) for shape in shapes)
    return gate, up, down


def packed(layer: int, experts: list[int]) -> PackedExperts:
    made = PackedExperts(len(experts), DIM, HIDDEN, dtype=torch.bfloat16)
    for slot, expert in enumerate(experts):
        if expert >= 0:
            made.load(slot, *weights_of(layer, expert))
    return made


def in_torch(layer: int, experts: list[int]) -> TorchExperts:
    made = TorchExperts(torch.zeros(len(experts), 2 * HIDDEN, DIM), torch.zeros(len(experts), DIM, HIDDEN))
    for slot, expert in enumerate(experts):
        if expert >= 0:
            gate, up, down = weights_of(layer, expert)
            made.gate_up_SFD[slot, :HIDDEN], made.gate_up_SFD[slot, HIDDEN:] = gate, up
            made.down_SDF[slot] = down
    return made


def assert_holds(found: MovableExperts, wanted: MovableExperts, experts: list[int]) -> None:
    for slot, expert in enumerate(experts):
        if expert >= 0:
            for mine, other in zip(found.slot_bytes(slot), wanted.slot_bytes(slot), strict=True):
                assert mine.tobytes() == other.tobytes(), f"slot {slot}"


class OneMove:
    """A leader that wants one thing after the other, whatever the load."""

    def __init__(self, *wanted: tuple[int, list[int]]) -> None:
        self.wanted = list(wanted)
        self.number = 0
        self.ends: list[tuple[int, bool]] = []
        self._under_way = False

    def add_window(self, load_LE: np.ndarray, batch_LE: np.ndarray, steps: int, placement: Placement) -> None:
        """Take no notice."""

    def next_layer(self, placement: Placement) -> tuple[int, int, list[int]] | None:
        del placement
        if self._under_way or not self.wanted:
            return None
        self._under_way = True
        self.number += 1
        return (self.number, *self.wanted.pop(0))

    def ended(self, number: int, *, committed: bool) -> None:
        self._under_way = False
        self.ends.append((number, committed))


class Group:
    """The balancing threads of a group, and a loop that does what steps would."""

    def __init__(self, leader: OneMove, make: Callable[[int, list[int]], Any] = packed) -> None:
        self.leader = leader
        self.make = make
        self.placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=RANKS, redundant=3)
        self.serving = [
            [make(layer, self.placement.experts_of(rank, layer).tolist()) for layer in range(LAYERS)]
            for rank in range(RANKS)
        ]
        self.sockets: list[list[socket.socket | None]] = [[None] * RANKS for _ in range(RANKS)]
        for one in range(RANKS):
            for other in range(one):
                self.sockets[one][other], self.sockets[other][one] = socket.socketpair()
        self.threads = [self._thread(rank) for rank in range(RANKS)]

    def _thread(self, rank: int) -> BalanceThread:
        return BalanceThread(
            self.sockets[rank],
            rank,
            placement=(self.placement, 0),
            experts_of=lambda layer: self.serving[rank][layer],
            leader=self.leader if rank == 0 else None,  # type: ignore[arg-type]
            bulk_rate=None,
        )

    def begin(self) -> None:
        for each in self.threads:
            each.start()
        self.wake()

    def wake(self) -> None:
        load_LE = np.ones((LAYERS, EXPERTS), dtype=np.int64)
        self.threads[0].add_window(load_LE, load_LE, 1)

    def until(self, stages: set[str], number: int = 1) -> list[MigrationState]:
        """Wait until every rank's migration is in one of these stages."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            states = [each.state for each in self.threads]
            if all(state is not None and state.number >= number and state.stage in stages for state in states):
                return [state for state in states if state is not None]
            time.sleep(0.002)
        raise AssertionError(f"still {[each.state for each in self.threads]}")

    def until_given_up(self) -> list[str]:
        """Wait until some rank has given up; return the reasons."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            states = [each.state for each in self.threads]
            if reasons := [state.reason for state in states if state is not None and state.stage == "given up"]:
                return reasons
            time.sleep(0.002)
        raise AssertionError(f"still {[each.state for each in self.threads]}")

    def commit(self, states: list[MigrationState], *, order: tuple[int, ...] = (0, 1, 2), pause_s: float = 0.0) -> None:
        """End a step in which all had it staged, on one rank after the other."""
        placement = states[0].placement
        assert placement is not None
        self.placement = placement
        for rank in order:
            move = states[rank].move
            assert move is not None
            self.serving[rank][states[rank].layer] = move.experts
            self.threads[rank].committed(states[rank].number, placement)
            time.sleep(pause_s)

    def assert_ends(self, *wanted: tuple[int, bool]) -> None:
        """The leader hears how each migration ended."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.leader.ends) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert self.leader.ends == list(wanted)

    def assert_serves(self) -> None:
        """Every rank holds the weights that the placement says."""
        for rank in range(RANKS):
            for layer in range(LAYERS):
                experts = self.placement.experts_of(rank, layer).tolist()
                assert_holds(self.serving[rank][layer], self.make(layer, experts), experts)

    def end(self) -> None:
        for each in self.threads:
            assert each.stop(patience_s=PATIENCE_S)


@pytest.fixture
def group_of() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(*wanted: tuple[int, list[int]], **options: Any) -> Group:
        made.append(Group(OneMove(*wanted), **options))
        return made[-1]

    yield make
    for group in made:
        group.end()


FIRST = (1, [5, 3, 4, 1, 0, 2, 0, 5, 4])
SECOND = (1, [0, 1, 2, 3, 4, 5, 0, 1, -1])
THIRD = (0, [4, 5, 0, 1, 2, 3, 0, -1, 5])


@pytest.mark.parametrize("make", [packed, in_torch])
def test_layer_after_layer_arrives_whole_and_the_old_experts_stay_as_they_were(
    make: Callable[[int, list[int]], Any], group_of: Callable[..., Group]
) -> None:
    group = group_of(FIRST, SECOND, THIRD, make=make)
    before = [list(layers) for layers in group.serving]
    kept = [[part.copy() for part in layers[1].slot_bytes(0)] for layers in before]
    group.begin()
    for number in (1, 2, 3):
        group.commit(group.until({"staged"}, number))
        group.assert_serves()
    for layers, parts in zip(before, kept, strict=True):
        for now, then in zip(layers[1].slot_bytes(0), parts, strict=True):
            assert (now == then).all(), "experts that served were written to"
    group.assert_ends((1, True), (2, True), (3, True))


class SlowLeader(OneMove):
    """A leader that takes longer over a window than windows take to come."""

    steps = 0

    def add_window(self, load_LE: np.ndarray, batch_LE: np.ndarray, steps: int, placement: Placement) -> None:
        """Count the steps, slowly."""
        del batch_LE, placement
        assert load_LE[0, 0] == steps, "windows counted together have all their tokens"
        self.steps += steps
        time.sleep(0.02)


def test_windows_that_come_quicker_than_the_leader_counts_hold_up_no_layer(group_of: Callable[..., Group]) -> None:
    group = group_of(FIRST, SECOND)
    slow = group.leader = SlowLeader(FIRST, SECOND)
    group.threads[0]._leader = slow  # type: ignore[assignment]
    fed, enough = 0, threading.Event()

    def feed() -> None:
        nonlocal fed
        while not enough.wait(0.002):
            group.wake()
            fed += 1

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for each in group.threads:
            each.start()
        for number in (1, 2):
            group.commit(group.until({"staged"}, number))
    finally:
        enough.set()
        feeder.join(PATIENCE_S)
    group.assert_serves()
    deadline = time.monotonic() + PATIENCE_S
    while slow.steps < fed and time.monotonic() < deadline:
        time.sleep(0.002)
    assert slow.steps == fed, "no window is lost"


def test_ranks_whose_step_ends_late_take_the_next_layer_only_after_it(group_of: Callable[..., Group]) -> None:
    group = group_of(FIRST, SECOND)
    group.begin()
    group.commit(group.until({"staged"}), order=(0, 2, 1), pause_s=0.05)
    group.commit(group.until({"staged"}, 2), order=(2, 0, 1), pause_s=0.05)
    group.assert_serves()


def test_weights_damaged_on_the_way_are_refused_and_the_next_layer_goes_through(
    group_of: Callable[..., Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged: list[Piece] = []

    def damaging(head: Order | Piece, payload: memoryview) -> bytes:
        if isinstance(head, Piece) and not damaged:
            damaged.append(head)
            return pack(head, bytes(len(payload)))
        return pack(head, payload)

    monkeypatch.setattr(mesh, "pack", damaging)
    group = group_of(FIRST, FIRST)
    group.begin()
    (reason,) = group.until_given_up()
    assert f"weights of expert {damaged[0].expert} from rank" in reason
    assert "were damaged on the way" in reason
    for each in group.threads:
        each.dropped(1)
    group.commit(group.until({"staged"}, 2))
    group.assert_serves()
    group.assert_ends((1, False), (2, True))


def test_a_rank_that_is_gone_is_named_and_whoever_needs_it_gives_up(group_of: Callable[..., Group]) -> None:
    group = group_of(FIRST)
    sock = group.sockets[2][1]
    assert sock is not None
    sock.close()
    group.sockets[2][1] = None
    group.threads[2] = group._thread(2)
    group.begin()
    (reason,) = group.until_given_up()
    assert "rank 2" in reason
    assert "closed the connection" in reason


def test_a_thread_that_hangs_says_how_far_it_has_come_to_whoever_asks(
    group_of: Callable[..., Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    real = thread.layer_moves
    stuck: list[int] = []

    def hang(*rows: np.ndarray, ranks: int) -> Any:
        if threading.current_thread() is group.threads[2]._thread:
            stuck.append(1)
            released.wait(PATIENCE_S)
        return real(*rows, ranks=ranks)

    monkeypatch.setattr(thread, "layer_moves", hang)
    group = group_of(FIRST, SECOND)
    group.begin()
    deadline = time.monotonic() + PATIENCE_S
    while not stuck and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.1)
    states = group.until({"moving", "staged"})
    assert states[0].move is not None
    assert states[0].move.progress() == "2 of 3 experts, 17408 bytes, had come; waiting for rank 2"
    for each in group.threads:
        each.dropped(1)
    released.set()
    group.commit(group.until({"staged"}, 2))
    group.assert_serves()


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        (Order(number=1, version=0, layer=9, slots=FIRST[1]), "no placement"),
        (Order(number=1, version=0, layer=1, slots=[0] * 9), "no placement"),
        (Order(number=1, version=0, layer=1, slots=[1, 2]), "no placement"),
        (Order(number=1, version=0, layer=1, slots=[2**70] * 9), "no placement"),
    ],
)
def test_an_order_that_makes_no_placement_is_given_up(
    order: Order, complaint: str, group_of: Callable[..., Group]
) -> None:
    group = group_of((order.layer, order.slots))
    group.begin()
    assert all(complaint in reason for reason in group.until_given_up())
    group.assert_serves()
