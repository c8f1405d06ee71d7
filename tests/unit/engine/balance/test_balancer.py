"""What the step loop announces, commits and drops, and when its watchdog bites."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fourlane.engine.balance import balancer
from fourlane.engine.balance.balancer import Balancer
from fourlane.engine.balance.thread import MigrationState
from fourlane.engine.exchange.contract import Agreement
from fourlane.engine.rank_config import RankBalance, RankConfig
from fourlane.lanes.connections import LaneBook
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Iterator

BEFORE = linear_placement(layers=2, experts=4, ranks=2)
AFTER = BEFORE.with_layer(1, [0, 2, 1, 3])
LOAD = np.zeros((2, 4), dtype=np.int64)
TIMEOUT_S = 5.0


class FakeThread:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.state: MigrationState | None = None
        self.told: list[tuple[str, int]] = []
        self.windows: list[tuple[list[int], list[int], int]] = []

    def committed(self, number: int, placement: object) -> None:
        assert placement is AFTER
        self.told.append(("committed", number))

    def dropped(self, number: int) -> None:
        self.told.append(("dropped", number))

    def add_window(self, load_LE: np.ndarray, batch_LE: np.ndarray, steps: int) -> None:
        self.windows.append((load_LE[0].tolist(), batch_LE[0].tolist(), steps))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(balancer, "time", made)
    return made


class Rank:
    """A balancer with a thread that does as told, and steps that say what the others said."""

    def __init__(self, **settings: Any) -> None:
        self.old = object()
        self.model = SimpleNamespace(moe_blocks=[SimpleNamespace(experts=self.old) for _ in range(2)])
        config = RankConfig(
            role="decode", rank=0, ranks=2, group_size=2, model_path="", control_endpoint="", secret_file="",
            run_dir="", balance=RankBalance(migration_timeout_s=TIMEOUT_S, **settings),
        )  # fmt: skip
        self.balancer = Balancer(config, self.model, BEFORE, lanes=LaneBook(), secret=None)  # type: ignore[arg-type]
        self.thread = self.balancer._thread = FakeThread()  # type: ignore[assignment]

    def reach(self, stage: str, number: int = 1, reason: str = "") -> None:
        move = SimpleNamespace(
            experts=f"experts {number}", experts_received=3, bytes_received=70, progress=lambda: "1 of 3 experts"
        )
        self.thread.state = MigrationState(number, 1, stage, move, AFTER, reason)  # type: ignore[arg-type]

    def step(self, *, staged: int = 0, refused: int = 0) -> tuple[int, int]:
        """Run a step in which the others announced this; return what this rank announced."""
        mine = self.balancer.announcement()
        said = Agreement(step=0, more=True, staged=min(mine[0], staged), refused=max(mine[1], refused))
        self.placement = self.balancer.end_step(said, LOAD)
        return mine


@pytest.mark.usefixtures("clock")
def test_experts_and_placement_change_together_in_the_step_in_which_all_have_staged_them() -> None:
    rank = Rank()
    rank.reach("moving")
    assert rank.step(staged=1) == (0, 0)
    rank.reach("staged")
    assert rank.step(staged=0) == (1, 0)
    assert rank.placement is BEFORE
    assert rank.model.moe_blocks[1].experts is rank.old
    assert rank.step(staged=1) == (1, 0)
    assert rank.placement is AFTER
    assert rank.model.moe_blocks[1].experts == "experts 1"
    assert rank.model.moe_blocks[0].experts is rank.old
    assert rank.thread.told == [("committed", 1)]
    stats = rank.balancer.stats()
    assert (stats.placement_version, stats.layers_migrated, stats.experts_moved, stats.migration_bytes) == (1, 1, 3, 70)
    assert rank.step(staged=1) == (1, 0), "once is enough"
    assert rank.thread.told == [("committed", 1)]


@pytest.mark.usefixtures("clock")
def test_what_another_rank_refuses_is_dropped_though_all_have_staged_it() -> None:
    rank = Rank()
    rank.reach("staged")
    assert rank.step(staged=1, refused=1) == (1, 0)
    assert rank.placement is BEFORE
    assert rank.model.moe_blocks[1].experts is rank.old
    assert rank.thread.told == [("dropped", 1)]
    assert rank.step(staged=1) == (1, 0), "the number is behind us"
    assert rank.balancer.stats().migrations_failed == 1


@pytest.mark.usefixtures("clock")
def test_what_the_thread_gives_up_is_refused_with_the_reason_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    rank = Rank()
    rank.reach("given up", reason="lost the connection to rank 1")
    assert rank.step() == (0, 1)
    assert rank.thread.told == [("dropped", 1)]
    (line,) = caplog.messages
    assert line == (
        "decode-0: gave up moving experts of layer 1, they stay where they are: lost the connection to rank 1"
    )


def test_a_migration_that_takes_too_long_is_refused_with_its_progress(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rank = Rank()
    rank.reach("moving")
    for _ in range(6):
        assert rank.step() == (0, 0)
        clock.now += 0.9
    for _ in range(2):
        clock.now += 0.9
        found = rank.step()
    assert found == (1, 1)
    (line,) = caplog.messages
    assert "it took longer than 5 s: 1 of 3 experts" in line


def test_a_group_that_sleeps_is_not_late(clock: Clock) -> None:
    rank = Rank()
    rank.reach("staged")
    rank.step(staged=0)
    clock.now += 3600
    assert rank.step(staged=1) == (1, 0)
    assert rank.placement is AFTER


@pytest.mark.usefixtures("clock")
def test_the_leader_is_handed_every_window_and_the_last_batch_of_it() -> None:
    rank = Rank(window_steps=3)
    rank.balancer._leader = SimpleNamespace(forecast=None, realised=None)  # type: ignore[assignment]
    total_LE = np.zeros((2, 4), dtype=np.int64)
    for step in range(7):
        total_LE[0] += step
        rank.balancer.end_step(Agreement(step=step, more=True), total_LE)
    assert rank.thread.windows == [([6] * 4, [3] * 4, 3), ([15] * 4, [6] * 4, 3)]
