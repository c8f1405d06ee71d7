"""The supervisor: starts ranks, waits for them, replaces those that die or hang, ends them.

It lives in the gateway's asyncio loop. What a group of ranks does after a loss is decided in
`rank_group`; processes are forked by the nursery (`nursery_client`). It tells a `RankEvents` (the
router) what becomes of ranks. Ranks of external pools come by themselves (`fourlane worker`): they
are watched, never started or killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.messages import Hello, PeerLostReport, Regroup, Regrouped, Shutdown
from fourlane.engine.nursery import DEFAULT_TARGET, Exited, Spawned
from fourlane.engine.rank_config import group_store
from fourlane.errors import CheckpointError, EngineError, EnvironmentMissing, FourlaneError, RankDied
from fourlane.gateway.nursery_client import NurseryClient
from fourlane.gateway.process_state import is_stopped
from fourlane.gateway.rank_group import (
    GroupTimes,
    Killed,
    Lost,
    Paused,
    RankGroup,
    Ready,
    Regrouping,
    Resumed,
)
from fourlane.gateway.restarts import Restarts
from fourlane.gateway.supervision import RankRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.messages import FromRank, ToRank
    from fourlane.engine.nursery import FromNursery
    from fourlane.engine.rank_config import RankConfig
    from fourlane.gateway.rank_group import Action, Member
    from fourlane.gateway.run_dir import RunDir
    from fourlane.gateway.supervision import ControlLink, RankEvents
    from fourlane.spec.deployment import Deployment

__all__ = ["Manner", "Supervisor"]

_log = logging.getLogger(__name__)

TICK_S = 1.0
SETTLE_TICK_S = 0.1
"""How often is looked while a group is broken or ranks load."""
EXIT_S = 5.0
"""How long ranks may take to end after `Shutdown`."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a supervisor goes about its work.

    Args:
        progress: called with a rank's name (or "nursery") and what it does: "loading", "ready" ...
        target: what a rank's process runs, "module:function".
        times: how long to wait for what; None: as the deployment says.
    """

    progress: Callable[[str, str], None] = lambda _name, _text: None
    target: str = DEFAULT_TARGET
    times: GroupTimes | None = None


class Supervisor:
    """Keep the ranks of one deployment running.

    Args:
        deployment: what shall run.
        configs: its ranks, from `rank_configs`.
        run_dir: the service's folder.
        link: the way to the ranks.
        events: told what becomes of ranks.
        manner: how it goes about it.
    """

    def __init__(
        self,
        deployment: Deployment,
        configs: list[RankConfig],
        run_dir: RunDir,
        link: ControlLink,
        events: RankEvents,
        manner: Manner,
    ) -> None:
        self._deployment = deployment
        self._run_dir = run_dir
        self._link = link
        self._events = events
        self._progress = manner.progress
        self._target = manner.target
        self._times = manner.times or _times_of(deployment)
        self._groups = self._make_groups(configs)
        self._group_of = {name: group for group in self._groups for name in group.members}
        self._pids: dict[str, int] = {}
        self._restarts = {role: Restarts() for role in deployment.pools()}
        self._restart_counts = dict.fromkeys(self._group_of, 0)
        self._failed: dict[str, str] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._nursery: NurseryClient | None = None
        self._nursery_ready = False
        self._reviving: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._fatal: FourlaneError | None = None
        self._starting = True
        self._stopping = False

    # what is known

    @property
    def failed(self) -> dict[str, str]:
        """Return the pools that were given up, and why."""
        return dict(self._failed)

    @property
    def nursery_pid(self) -> int | None:
        """Return the nursery's process id; None if there is none."""
        return self._nursery.pid if self._nursery is not None else None

    def rows(self) -> list[RankRow]:
        """Return what is known of every rank, in the deployment's order."""
        return [self._row(member) for group in self._groups for member in group.members.values()]

    # the start

    async def start(self) -> None:
        """Start every rank and wait until all can serve.

        Raises:
            CheckpointError, EnvironmentMissing: a rank says that it can never serve here.
            EngineError: a rank ended, or was not ready in time; the message has its log's end.
        """
        timeout_s = self._deployment.gateway.ready_timeout.seconds
        self._watcher = asyncio.create_task(self._watch(), name="supervisor watch")
        try:
            async with asyncio.timeout(timeout_s):
                if self._local_names():
                    await self._start_nursery(timeout_s)
                    self._spawn_all()
                await self._until_ready()
        except TimeoutError:
            raise EngineError(self._who_is_missing(timeout_s)) from None
        self._starting = False

    async def _start_nursery(self, timeout_s: float) -> None:
        self._progress("nursery", "importing torch")
        nursery = NurseryClient(
            self._run_dir, on_event=self._on_nursery, on_lost=self._on_nursery_lost, target=self._target
        )
        self._nursery = nursery
        ready = await nursery.start(timeout_s=timeout_s)
        self._nursery_ready = True
        self._progress("nursery", f"ready in {ready.seconds:.1f} s")

    def _spawn_all(self) -> None:
        for name in self._local_names():
            self._spawn(name)

    async def _until_ready(self) -> None:
        while not all(group.ready for group in self._groups):
            self._changed.clear()
            await self._changed.wait()
            if self._fatal is not None:
                raise self._fatal

    def _who_is_missing(self, timeout_s: float) -> str:
        missing = [member for group in self._groups for member in group.members.values() if member.phase != "ready"]
        said = []
        for member in missing:
            tail = self._run_dir.tail_of(member.name, lines=5)
            log = f"; its log ends:\n{tail}" if tail else "; its log is empty"
            external = self._is_external(member.name)
            said.append(f"{member.name} ({member.phase})" + ("; start it with fourlane worker" if external else log))
        return f"not ready within {timeout_s:g} s (gateway.ready_timeout): " + "\n".join(said)

    # what ranks say

    def handle(self, name: str, message: FromRank) -> None:
        """Take a message from a rank; the router gets them all as well."""
        group = self._group_of.get(name)
        if group is None:
            _log.warning(
                "a rank called %s said %s, but the deployment has none of that name; it is ignored; "
                "does it run with another deployment file?",
                name,
                type(message).__name__,
            )
            return
        now = self._now()
        match message:
            case Hello():
                if self._hello_fits(name, message):
                    self._progress(name, f"loaded in {message.load_seconds:.1f} s")
                    self._perform(group.said_hello(name, message, now))
            case PeerLostReport(generation=generation, detail=detail):
                _log.warning("%s lost its group in step %d: %s", name, message.step, detail)
                self._perform(group.lost_peer(name, generation, detail, now))
            case Regrouped(generation=generation):
                self._perform(group.regrouped(name, generation, now))
            case _:
                self._perform(group.heard(name, now))

    def _hello_fits(self, name: str, hello: Hello) -> bool:
        wanted = self._deployment.kv_cache.block_size
        if f"{hello.role}-{hello.rank}" == name and hello.block_size == wanted:
            return True
        _log.error(
            "rank %s calls itself %s-%d and has pages of %d tokens, but the deployment's have %d; it is not "
            "used; give it the deployment file of the gateway",
            name,
            hello.role,
            hello.rank,
            hello.block_size,
            wanted,
        )
        return False

    # what the nursery says

    def _on_nursery(self, message: FromNursery) -> None:
        match message:
            case Spawned(name=name, pid=pid):
                self._pids[name] = pid
            case Exited(name=name, pid=pid, status=status):
                if self._pids.get(name) == pid:
                    del self._pids[name]
                    self._on_exit(name, status)
            case _:
                pass

    def _on_exit(self, name: str, status: int) -> None:
        self._changed.set()
        if self._stopping:
            return
        how = _ending(status)
        member = self._group_of[name].members[name]
        self._link.retire(name)
        if self._starting:
            self._fatal = self._fatal or self._startup_error(name, status, how)
            return
        _log.error(
            "%s (process %s) ended: %s%s",
            name,
            member.hello.pid if member.hello else "?",
            how,
            _indented(self._run_dir.tail_of(name)),
        )
        self._perform(self._group_of[name].died(name, how, self._now()))

    def _startup_error(self, name: str, status: int, how: str) -> FourlaneError:
        kind = {CheckpointError.exit_code: CheckpointError, EnvironmentMissing.exit_code: EnvironmentMissing}
        return kind.get(status, EngineError)(
            f"{name} ended while it loaded: {how}{_indented(self._run_dir.tail_of(name))}"
        )

    def _on_nursery_lost(self) -> None:
        """The nursery was killed; so were the ranks it had forked."""
        self._nursery_ready = False
        self._changed.set()
        if self._stopping:
            return
        if self._starting:
            self._fatal = EngineError(f"the nursery was killed{_indented(self._run_dir.tail_of('nursery'))}")
            return
        _log.error(
            "the nursery was killed, and with it all local ranks; starting anew%s",
            _indented(self._run_dir.tail_of("nursery")),
        )
        self._pids.clear()
        self._reviving = asyncio.create_task(self._revive(), name="supervisor revive")
        for name in self._local_names():
            self._link.retire(name)
            self._perform(self._group_of[name].died(name, "the nursery was killed", self._now()))

    async def _revive(self) -> None:
        try:
            await self._start_nursery(self._times.load_s)
        except FourlaneError as error:
            for role, pool in self._deployment.pools().items():
                if pool.launch == "local":
                    self._fail_pool(role, f"the nursery cannot be started again: {error}")
            return
        for name in self._local_names():
            if self._group_of[name].members[name].phase == "absent":
                self._spawn(name)

    # doing what a group wants

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Ready(name=name, hello=hello):
                    _log.info("%s is ready (process %d)", name, hello.pid)
                    self._progress(name, "ready")
                    self._events.rank_ready(name, hello)
                case Lost(name=name, reason=reason):
                    self._events.rank_lost(name, reason)
                    self._schedule_restart(name, reason)
                case Paused(name=name, reason=reason):
                    self._events.rank_paused(name, reason)
                case Resumed(name=name):
                    _log.info("%s goes on", name)
                    self._events.rank_resumed(name)
                case Killed(name=name, reason=reason):
                    self._kill(name, reason)
                case Regrouping(names=names, generation=generation):
                    self._send_regroup(names, generation)
        if actions:
            self._changed.set()

    def _schedule_restart(self, name: str, reason: str) -> None:
        if self._is_external(name) or self._stopping:
            return
        role = self._config(name).role
        delay = self._restarts[role].died(self._now())
        if delay is None:
            self._fail_pool(
                role, f"its ranks died {Restarts.MOST} times within {Restarts.WINDOW_S:g} s, {name} last: {reason}"
            )
        elif role not in self._failed:
            self._after(delay, lambda: self._spawn(name))

    def _fail_pool(self, role: str, reason: str) -> None:
        if role not in self._failed:
            self._failed[role] = reason
            _log.critical("the %s pool is given up: %s; end the service, mend the cause, start it again", role, reason)
            self._events.pool_failed(role, reason)

    def _spawn(self, name: str) -> None:
        group = self._group_of[name]
        member = group.members[name]
        if not self._nursery_ready or self._nursery is None or self._stopping or member.phase != "absent":
            return
        config = member.config
        if not self._starting:
            self._restart_counts[name] += 1
            # It says Hello in no group; `Regroup` follows when the survivors were heard from.
            config = msgspec.structs.replace(config, store="", generation=group.generation)
        group.started(name, self._now())
        self._progress(name, "loading")
        self._nursery.spawn(config)

    def _kill(self, name: str, reason: str) -> None:
        _log.error("%s %s and is %s", name, reason, "given up" if self._is_external(name) else "killed")
        if self._is_external(name):
            self._perform(self._group_of[name].died(name, reason, self._now()))
        elif name in self._pids and self._nursery is not None:
            self._nursery.kill(self._pids[name])

    def _send_regroup(self, names: tuple[str, ...], generation: int) -> None:
        group = self._group_of[names[0]]
        store = self._store_of(group, generation)
        _log.info("forming the group of %s anew (generation %d)", ", ".join(names), generation)
        for name in names:
            self._send(name, Regroup(generation=generation, store=store))

    def _store_of(self, group: RankGroup, generation: int) -> str:
        first = next(iter(group.members.values()))
        if not group.external:
            return group_store(self._run_dir.path, first.config.role, first.config.group, generation)
        offered = first.hello.rendezvous if first.hello is not None else None
        host, _, port = (offered or "127.0.0.1:29500").rpartition(":")
        return f"{host}:{int(port) + 1 + generation % 1000}"

    def _send(self, name: str, message: ToRank) -> None:
        try:
            self._link.send(name, message)
        except RankDied as error:
            _log.warning("%s cannot be told %s: %s", name, type(message).__name__, error)

    # time

    async def _watch(self) -> None:
        while True:
            settling = not all(group.ready for group in self._groups)
            await asyncio.sleep(SETTLE_TICK_S if settling else TICK_S)
            now = self._now()
            for group in self._groups:
                self._perform(group.tick(now))

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(handle)
            act()

        handle = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(handle)

    # the end

    async def stop(self) -> None:
        """End all local ranks: ask, wait, kill; then end the nursery. External ranks stay. May be called again."""
        self._stopping = True
        for task in (self._watcher, self._reviving):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for timer in self._timers:
            timer.cancel()
        for name in self._pids:
            if self._group_of[name].members[name].alive:
                self._send(name, Shutdown())
        try:
            async with asyncio.timeout(EXIT_S):
                await self._until_gone()
        except TimeoutError:
            _log.warning("%s did not end within %g s after Shutdown; killing", ", ".join(self._pids), EXIT_S)
        if self._nursery is not None:
            await self._nursery.close()

    async def _until_gone(self) -> None:
        while self._nursery_ready and any(self._group_of[name].members[name].alive for name in self._pids):
            self._changed.clear()
            await self._changed.wait()

    def kill_now(self) -> None:
        """Kill every local process at once and wait for nothing."""
        self._stopping, self._nursery_ready = True, False
        if self._nursery is not None:
            self._nursery.kill_now()

    # small things

    def _make_groups(self, configs: list[RankConfig]) -> list[RankGroup]:
        keys = dict.fromkeys((config.role, config.group) for config in configs)
        pools = self._deployment.pools()
        return [
            RankGroup(
                [config for config in configs if (config.role, config.group) == (role, index)],
                self._times,
                stopped=is_stopped if pools[role].launch == "local" else lambda _pid: False,
                external=pools[role].launch == "external",
                first_generation=int(time.time()) if pools[role].launch == "external" else 0,
            )
            for role, index in keys
        ]

    def _config(self, name: str) -> RankConfig:
        return self._group_of[name].members[name].config

    def _is_external(self, name: str) -> bool:
        return self._group_of[name].external

    def _local_names(self) -> list[str]:
        return [name for name, group in self._group_of.items() if not group.external]

    def _row(self, member: Member) -> RankRow:
        hello = member.hello if member.alive else None
        return RankRow(
            name=member.name,
            role=member.config.role,
            group=member.config.group,
            phase=member.phase,
            pid=hello.pid if hello else self._pids.get(member.name),
            host=hello.host if hello else None,
            memory_bytes=hello.memory_bytes if hello else None,
            kv_blocks=hello.kv_blocks if hello else None,
            load_s=hello.load_seconds if hello else None,
            restarts=self._restart_counts[member.name],
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _times_of(deployment: Deployment) -> GroupTimes:
    return GroupTimes(load_s=deployment.gateway.ready_timeout.seconds, exchange_s=deployment.exchange.timeout.seconds)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _indented(tail: str) -> str:
    if not tail:
        return ""
    return "; its log ends:\n" + "\n".join(f"    {line}" for line in tail.splitlines())
