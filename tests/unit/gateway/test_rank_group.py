"""What becomes of a group of ranks in every course of events, without a process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fourlane.engine.messages import Hello
from fourlane.engine.rank_config import rank_configs
from fourlane.gateway.rank_group import GroupTimes, Killed, Lost, Paused, RankGroup, Ready, Regrouping, Resumed
from fourlane.gateway.restarts import Restarts
from fourlane.spec.deployment import Deployment, Pool

if TYPE_CHECKING:
    from fourlane.gateway.rank_group import Action

TIMES = GroupTimes(load_s=60, silence_s=10, broken_silence_s=6, settle_s=0.3, join_s=20, exchange_s=30)
A = TypeVar("A")


@dataclass
class World:
    """A group, a clock, and what the group asked for."""

    ranks: int
    external: bool = False
    now: float = 100.0
    stopped: set[int] = field(default_factory=set)
    actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        pool = Pool(ranks=self.ranks, launch="external" if self.external else "local")
        configs = rank_configs(Deployment(unified=pool), Path("/run"))
        self.group = RankGroup(configs, TIMES, stopped=self.stopped.__contains__, external=self.external)
        self.pids = {name: index for index, name in enumerate(self.group.members)}

    def do(self, actions: list[Action]) -> list[Action]:
        self.actions += actions
        return actions

    def hello(self, name: str, generation: int = 0) -> list[Action]:
        self.pids[name] += 1000
        return self.do(self.group.said_hello(name, hello(name, self.pids[name], generation), self.now))

    def start_all(self, generation: int = 0) -> None:
        for name in self.group.members:
            self.group.started(name, self.now)
            self.hello(name, generation)

    def replace(self, name: str) -> list[Action]:
        """Start a rank anew and have it say that it is in no group."""
        self.group.started(name, self.now)
        return self.hello(name, -1)

    def all_report(self, *but: str) -> list[Action]:
        names = [name for name in self.group.members if name not in but]
        return [action for name in names for action in self.do(self.group.heard(name, self.now))]

    def after(self, seconds: float, *silent: str) -> list[Action]:
        """Let time pass in seconds, with everybody but the silent reporting; return what was asked for meanwhile."""
        asked: list[Action] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            asked += self.all_report(*silent)
            asked += self.do(self.group.tick(self.now))
        return asked

    def of(self, kind: type[A]) -> list[A]:
        return [action for action in self.actions if isinstance(action, kind)]


def hello(name: str, pid: int, generation: int) -> Hello:
    role, rank = name.split("-")
    return Hello(
        role=msgspec.convert(role, str),
        rank=int(rank),
        pid=pid,
        host="here",
        generation=generation,
        kv_blocks=8,
        block_size=16,
        max_length=128,
        kv_endpoint=None,
        memory_bytes=1,
        weights_bytes=1,
        load_seconds=0.0,
        experts=4,
        layers=1,
    )


@pytest.fixture
def alone() -> World:
    world = World(ranks=1)
    world.start_all()
    return world


@pytest.fixture
def three() -> World:
    world = World(ranks=3)
    world.start_all()
    return world


def test_a_group_is_ready_when_all_its_ranks_have_said_hello() -> None:
    world = World(ranks=2)
    for name in world.group.members:
        world.group.started(name, world.now)
    assert not world.group.ready
    assert [type(action) for action in world.hello("unified-0")] == [Ready]
    assert not world.group.ready
    world.hello("unified-1")
    assert world.group.ready


def test_a_lone_rank_that_dies_is_lost_and_ready_again_after_its_next_hello(alone: World) -> None:
    assert alone.do(alone.group.died("unified-0", "killed", alone.now)) == [Lost("unified-0", "killed")]
    assert [type(action) for action in alone.replace("unified-0")] == [Ready]
    assert alone.group.ready


def test_survivors_are_paused_and_regrouped_when_the_new_rank_has_loaded_and_all_were_heard(three: World) -> None:
    actions = three.group.died("unified-1", "killed", three.now)
    assert actions[0] == Lost("unified-1", "killed")
    assert {action.name for action in actions[1:] if isinstance(action, Paused)} == {"unified-0", "unified-2"}
    three.now += 0.5
    assert three.replace("unified-1") == []
    assert three.do(three.group.heard("unified-0", three.now)) == []
    assert three.do(three.group.heard("unified-2", three.now)) == [
        Regrouping(("unified-0", "unified-1", "unified-2"), 1)
    ]
    three.group.regrouped("unified-0", 1, three.now)
    three.group.regrouped("unified-1", 1, three.now)
    assert not three.group.ready
    done = three.group.regrouped("unified-2", 1, three.now)
    assert three.group.ready
    assert [type(action) for action in done] == [Resumed, Ready, Resumed]
    assert done[1].hello.generation == 1


def test_several_deaths_at_once_lead_to_one_regrouping(three: World) -> None:
    three.do(three.group.died("unified-0", "killed", three.now))
    three.now += 0.1
    three.do(three.group.died("unified-1", "killed", three.now))
    three.now += 1
    three.replace("unified-0")
    three.replace("unified-1")
    three.after(2)
    assert three.of(Regrouping) == [Regrouping(("unified-0", "unified-1", "unified-2"), 1)]


def test_a_survivor_that_is_silent_after_a_loss_is_killed_as_well(three: World) -> None:
    three.do(three.group.died("unified-0", "killed", three.now))
    three.replace("unified-0")
    three.after(7.5, "unified-2")
    assert three.of(Killed) == [Killed("unified-2", "has said nothing for 7 s")]
    assert three.of(Regrouping) == []


def test_a_hung_rank_whose_peers_still_speak_is_killed_after_the_silence(three: World) -> None:
    assert [type(action) for action in three.after(9.5, "unified-1")] == []
    assert [action.name for action in three.after(3, "unified-1") if isinstance(action, Killed)] == ["unified-1"]


def test_ranks_that_wait_for_a_hung_one_are_not_killed_for_their_silence(three: World) -> None:
    everybody = tuple(three.group.members)
    three.after(30, *everybody)
    assert three.of(Killed) == []
    for name in ("unified-0", "unified-2"):
        three.do(three.group.lost_peer(name, 0, "timeout", three.now))
    three.after(8, "unified-1")
    assert [killed.name for killed in three.of(Killed)] == ["unified-1"]


def test_among_silent_ranks_the_one_the_kernel_has_stopped_is_killed_at_once(three: World) -> None:
    three.stopped.add(three.pids["unified-2"])
    three.after(12, *three.group.members)
    assert [killed.name for killed in three.of(Killed)] == ["unified-2"]


def test_a_group_that_is_silent_beyond_the_exchanges_timeout_is_killed_whole(three: World) -> None:
    three.after(60, *three.group.members)
    assert {killed.name for killed in three.of(Killed)} == set(three.group.members)


def test_nobody_is_killed_twice_for_one_silence(alone: World) -> None:
    alone.after(40, "unified-0")
    assert len(alone.of(Killed)) == 1


def test_a_lone_hung_rank_is_killed(alone: World) -> None:
    alone.after(12, "unified-0")
    assert [killed.name for killed in alone.of(Killed)] == ["unified-0"]


def test_loading_is_no_silence_but_has_a_limit_of_its_own() -> None:
    world = World(ranks=1)
    world.group.started("unified-0", world.now)
    for _ in range(59):
        world.now += 1
        assert world.group.tick(world.now) == []
    world.now += 2
    assert world.group.tick(world.now) == [Killed("unified-0", "has not loaded within 60 s")]


def test_a_false_alarm_regroups_the_group_without_a_death(three: World) -> None:
    three.do(three.group.lost_peer("unified-0", 0, "timeout", three.now))
    assert len(three.of(Paused)) == 3
    three.after(2)
    assert [regrouping.generation for regrouping in three.of(Regrouping)] == [1]


def test_a_report_about_a_generation_that_is_over_changes_nothing(three: World) -> None:
    three.do(three.group.lost_peer("unified-0", 0, "timeout", three.now))
    three.after(2)
    for name in three.group.members:
        three.do(three.group.regrouped(name, 1, three.now))
    assert three.do(three.group.lost_peer("unified-1", 0, "late news", three.now)) == []
    assert three.group.ready


def test_when_a_rank_dies_while_the_group_joins_those_stuck_in_the_join_are_killed(three: World) -> None:
    three.do(three.group.lost_peer("unified-0", 0, "timeout", three.now))
    three.after(2)
    actions = three.do(three.group.died("unified-1", "killed", three.now))
    assert {action.name for action in actions if isinstance(action, Killed)} == {"unified-0", "unified-2"}


def test_a_join_that_does_not_end_is_ended_by_killing_whom_the_kernel_stopped(three: World) -> None:
    three.do(three.group.lost_peer("unified-0", 0, "timeout", three.now))
    three.after(2)
    three.stopped.add(three.pids["unified-1"])
    three.after(21, *three.group.members)
    assert [killed.name for killed in three.of(Killed)] == ["unified-1"]


def test_external_ranks_come_in_no_group_and_meet_when_all_are_there() -> None:
    world = World(ranks=2, external=True)
    assert world.hello("unified-1", -1) == []
    assert world.hello("unified-0", -1) == [Regrouping(("unified-0", "unified-1"), 1)]
    for name in world.group.members:
        world.do(world.group.regrouped(name, 1, world.now))
    assert world.group.ready


def test_an_external_rank_that_was_only_slow_is_taken_back_when_it_speaks_again() -> None:
    world = World(ranks=1, external=True)
    world.hello("unified-0", 0)
    world.do(world.group.died("unified-0", "has said nothing for 11 s", world.now))
    assert [type(action) for action in world.all_report()] == [Ready]


def test_the_hello_of_another_process_says_that_the_one_before_is_gone() -> None:
    world = World(ranks=1, external=True)
    world.hello("unified-0", 0)
    assert [type(action) for action in world.hello("unified-0", 0)] == [Lost, Ready]


def test_restarts_come_later_and_later_and_a_crash_loop_is_given_up() -> None:
    restarts = Restarts()
    assert [restarts.died(now) for now in (0.0, 1.0, 2.0, 3.0)] == [0.1, 0.2, 0.4, 0.8]
    assert restarts.died(4.0) is None


def test_deaths_that_are_a_minute_ago_are_forgiven() -> None:
    restarts = Restarts()
    assert [restarts.died(now * 61.0) for now in range(20)] == [0.1] * 20


class AnyCourseOfEvents(RuleBasedStateMachine):
    """A supervisor that does what the group asks for, and ranks that die, hang and report at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ranks=3)
        self.hung: set[str] = set()
        self.to_start: set[str] = set()
        self.loading: set[str] = set()
        self.world.start_all()

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Lost(name=name):
                    self.to_start.add(name)
                case Killed(name=name):
                    self.die(name)
                case _:
                    pass

    def die(self, name: str) -> None:
        self.hung.discard(name)
        self.loading.discard(name)
        self.obey(self.world.group.died(name, "killed", self.world.now))

    @rule(name=st.sampled_from(["unified-0", "unified-1", "unified-2"]))
    def a_rank_dies(self, name: str) -> None:
        if name not in self.to_start:
            self.die(name)

    @rule(name=st.sampled_from(["unified-0", "unified-1", "unified-2"]))
    def a_rank_hangs(self, name: str) -> None:
        if self.world.group.members[name].alive:
            self.hung.add(name)

    @rule(name=st.sampled_from(["unified-0", "unified-1", "unified-2"]))
    def an_exchange_fails(self, name: str) -> None:
        if self.world.group.members[name].alive and name not in self.hung:
            self.obey(self.world.group.lost_peer(name, self.world.group.generation, "timeout", self.world.now))

    @precondition(lambda self: self.to_start)
    @rule()
    def a_rank_is_started(self) -> None:
        name = min(self.to_start)
        self.to_start.discard(name)
        self.world.group.started(name, self.world.now)
        self.loading.add(name)

    @rule(seconds=st.floats(0.1, 5))
    def time_passes(self, seconds: float) -> None:
        self.step(seconds)

    def step(self, seconds: float) -> None:
        self.world.now += seconds
        for name in sorted(self.loading):
            self.loading.discard(name)
            self.obey(self.world.replace(name))
        for name, member in self.world.group.members.items():
            if member.alive and name not in self.hung:
                self.obey(self.world.group.heard(name, self.world.now))
        joining = self.world.group._joining_since is not None
        if joining and not self.hung and all(member.alive for member in self.world.group.members.values()):
            for name in self.world.group.members:
                self.obey(self.world.group.regrouped(name, self.world.group.generation, self.world.now))
        self.obey(self.world.group.tick(self.world.now))

    @invariant()
    def a_rank_that_is_to_be_started_is_absent(self) -> None:
        assert all(self.world.group.members[name].phase == "absent" for name in self.to_start)

    def teardown(self) -> None:
        """Whatever came before: left alone, the group is whole again within two minutes."""
        for _ in range(240):
            while self.to_start:
                self.a_rank_is_started()
            self.step(0.5)
            if self.world.group.ready and not self.hung:
                return
        raise AssertionError(f"not whole: {self.world.group.members}, hung {self.hung}")


AnyCourseOfEvents.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyCourseOfEvents = AnyCourseOfEvents.TestCase
