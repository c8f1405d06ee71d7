"""What becomes of an expert-parallel group as its ranks load, die, hang and return: a state machine.

Pure: events and times go in, `Action`s come out. It starts no process and sends nothing (`supervisor`
does), so that every course of events can be tested. A rank that shares its experts with nobody is a
group of one.

The group meets for the first time at the store its ranks were started with. After a loss the survivors
keep what they have and wait; the new rank loads, says `Hello` in no group (generation -1), and when
every member has been heard from since the loss, all are sent `Regroup` with the next generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.engine.messages import Hello
    from fourlane.engine.rank_config import RankConfig

__all__ = ["Action", "GroupTimes", "Killed", "Lost", "Member", "Paused", "RankGroup", "Ready", "Regrouping", "Resumed"]


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank can serve."""

    name: str
    hello: Hello


@dataclass(frozen=True, slots=True)
class Lost:
    """A rank is gone, with its sequences; it has to be started again, if it is ours to start."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """A rank keeps its sequences but cannot step, since its group lacks a member."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A paused rank goes on."""

    name: str


@dataclass(frozen=True, slots=True)
class Regrouping:
    """These ranks are to be sent `Regroup`."""

    names: tuple[str, ...]
    generation: int


@dataclass(frozen=True, slots=True)
class Killed:
    """A rank hangs and has to be killed; its death is then an event like any other."""

    name: str
    reason: str


Action = Ready | Lost | Paused | Resumed | Regrouping | Killed


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """How long a group waits for what.

    Units:
        *_s: seconds. `exchange_s` is the timeout of an exchange: ranks that wait for a hung peer are
        as silent as the peer for that long.
    """

    load_s: float = 300.0
    silence_s: float = 10.0
    broken_silence_s: float = 6.0
    settle_s: float = 0.3
    join_s: float = 20.0
    exchange_s: float = 30.0


@dataclass(slots=True)
class Member:
    """One rank of a group.

    phase: absent (no process, or none that has come), loading (started, no `Hello` yet), waiting
        (alive, not in the group as it is now), ready.
    """

    config: RankConfig
    phase: Literal["absent", "loading", "waiting", "ready"] = "absent"
    hello: Hello | None = None
    heard_at: float = 0.0
    started_at: float = 0.0
    fresh: bool = True
    """It was heard from since the group broke."""
    condemned: bool = False
    announced: bool = False

    @property
    def name(self) -> str:
        """Return the rank's name."""
        return self.config.name

    @property
    def alive(self) -> bool:
        """Tell whether it has said `Hello` and is not known to be gone."""
        return self.phase in {"waiting", "ready"}


class RankGroup:
    """Track one group.

    Args:
        configs: its ranks, in order of group_rank.
        times: how long to wait for what.
        stopped: tells whether a process is certainly not running (stopped by a signal, a zombie).
        external: the ranks were not started by us, so one that was given up for its silence may come back.
        first_generation: where to count from. Ranks that outlive a gateway follow only to generations
            above theirs, so the next gateway must begin above all those before it.
    """

    def __init__(
        self,
        configs: Sequence[RankConfig],
        times: GroupTimes,
        *,
        stopped: Callable[[int], bool],
        external: bool = False,
        first_generation: int = 0,
    ) -> None:
        self.external = external
        self.members = {config.name: Member(config) for config in configs}
        self.generation = first_generation
        self._times = times
        self._stopped = stopped
        self._broken_at: float | None = None
        self._joining_since: float | None = None
        self._joined: set[str] = set()

    @property
    def ready(self) -> bool:
        """Tell whether every member is ready."""
        return all(member.phase == "ready" for member in self.members.values())

    def started(self, name: str, now: float) -> None:
        """Note that a rank's process was started."""
        member = self.members[name]
        member.phase, member.started_at, member.condemned = "loading", now, False

    def said_hello(self, name: str, hello: Hello, now: float) -> list[Action]:
        """Note that a rank has loaded; another process id than before means that the old one is gone."""
        member = self.members[name]
        actions: list[Action] = []
        if member.alive and member.hello is not None and member.hello.pid != hello.pid:
            actions = self.died(name, "replaced by a new process", now)
        member.hello = hello
        self._hear(member, now)
        if member.phase == "ready":
            return actions
        if len(self.members) == 1 or (hello.generation == self.generation and self._joining_since is None):
            member.phase = "ready"
            return [*actions, self._announce(member)]
        member.phase = "waiting"
        return actions + self._regroup_if_whole(now)

    def heard(self, name: str, now: float) -> list[Action]:
        """Note any other message of a rank. One that was given up, but only was slow, is taken back."""
        member = self.members[name]
        self._hear(member, now)
        if member.phase == "absent" and member.hello is not None and self.external:
            generation = 0 if len(self.members) == 1 else -1
            return self.said_hello(name, msgspec.structs.replace(member.hello, generation=generation), now)
        return self._regroup_if_whole(now)

    def lost_peer(self, name: str, generation: int, detail: str, now: float) -> list[Action]:
        """Note that an exchange, or a join, failed in a rank; the whole group has to meet again."""
        member = self.members[name]
        self._hear(member, now)
        if generation < self.generation:
            return []
        self._joining_since = None
        paused = self._break(f"{name}: {detail}", now)
        member.fresh = True
        return paused

    def regrouped(self, name: str, generation: int, now: float) -> list[Action]:
        """Note that a rank is in the group's new generation."""
        member = self.members[name]
        self._hear(member, now)
        if generation != self.generation or self._joining_since is None:
            return []
        self._joined.add(name)
        if len(self._joined) < len(self.members):
            return []
        self._joining_since = self._broken_at = None
        return [self._enter(member) for member in self.members.values()]

    def died(self, name: str, reason: str, now: float) -> list[Action]:
        """Note that a rank's process is gone."""
        member = self.members[name]
        was_joining = self._joining_since is not None
        member.phase, member.announced = "absent", False
        actions: list[Action] = [Lost(name, reason)]
        if len(self.members) == 1:
            return actions
        self._joining_since = None
        actions += self._break(f"{name} was lost ({reason})", now)
        if was_joining:  # the others are blocked in the join, for long; a fresh start is quicker
            stuck = [other for other in self.members.values() if other.alive and other.name not in self._joined]
            actions += [self._kill(other, f"was joining a group with {name}, which died") for other in stuck]
        return actions

    def tick(self, now: float) -> list[Action]:
        """Look for what has taken too long, and regroup if the time has come. Call about once a second."""
        actions: list[Action] = []
        for member in self.members.values():
            reason = self._fault(member, now) if not member.condemned else None
            if reason is not None:
                actions.append(self._kill(member, reason))
        return actions + self._regroup_if_whole(now)

    def _hear(self, member: Member, now: float) -> None:
        member.heard_at, member.fresh = now, True

    def _fault(self, member: Member, now: float) -> str | None:
        """Return why a member has to be killed, if it has to."""
        times = self._times
        if member.phase == "loading" and now - member.started_at > times.load_s:
            return f"has not loaded within {times.load_s:g} s"
        if not member.alive:
            return None
        if self._joining_since is not None:
            late = member.name not in self._joined and now - self._joining_since > times.join_s
            return f"has not joined its group within {times.join_s:g} s" if late and self._to_blame(member) else None
        return self._silence(member, now)

    def _silence(self, member: Member, now: float) -> str | None:
        times = self._times
        broken = self._broken_at is not None
        silent_s = now - max(member.heard_at, self._broken_at or 0.0)
        limit = times.broken_silence_s if broken else times.silence_s
        if silent_s <= limit:
            return None
        others = [other for other in self.members.values() if other.alive and other is not member]
        explained = not broken and others and all(now - other.heard_at > limit for other in others)
        if explained and not self._process_stopped(member) and silent_s <= limit + times.exchange_s + 5:
            return None  # they may all be waiting for one of them; the exchange's timeout will tell
        return f"has said nothing for {silent_s:.0f} s"

    def _to_blame(self, member: Member) -> bool:
        """Tell whether a late member is the one the others wait for, as far as one can know."""
        late = [other for other in self.members.values() if other.name not in self._joined]
        culprits = [other for other in late if self._process_stopped(other)]
        return member in (culprits or late)

    def _process_stopped(self, member: Member) -> bool:
        return member.hello is not None and self._stopped(member.hello.pid)

    def _kill(self, member: Member, reason: str) -> Action:
        member.condemned = True
        return Killed(member.name, reason)

    def _break(self, why: str, now: float) -> list[Action]:
        """Take every member out of the group, as one of them is missing."""
        if self._broken_at is None:
            self._broken_at = now
            for member in self.members.values():
                member.fresh = False
        paused: list[Action] = []
        for member in self.members.values():
            if member.phase == "ready":
                member.phase = "waiting"
                paused.append(Paused(member.name, why))
        return paused

    def _regroup_if_whole(self, now: float) -> list[Action]:
        """Begin the next generation once all are alive and were heard from since the loss."""
        members = self.members.values()
        if len(members) == 1 or self._joining_since is not None or not all(member.alive for member in members):
            return []
        if all(member.phase == "ready" for member in members):
            return []
        broken_at = self._broken_at
        if broken_at is not None and (
            now - broken_at < self._times.settle_s or not all(member.fresh for member in members)
        ):
            return []
        self.generation += 1
        self._joining_since = now
        self._joined = set()
        return [Regrouping(tuple(self.members), self.generation)]

    def _enter(self, member: Member) -> Action:
        member.phase = "ready"
        return Resumed(member.name) if member.announced else self._announce(member)

    def _announce(self, member: Member) -> Ready:
        assert member.hello is not None, "a rank says Hello before it is ready"
        member.announced = True
        member.hello = msgspec.structs.replace(member.hello, generation=self.generation)
        return Ready(member.name, member.hello)
