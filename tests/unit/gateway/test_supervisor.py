"""The supervisor with real processes, a real hub, and ranks that follow a script instead of a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scripted_rank

from fourlane.engine.channel import Hub
from fourlane.engine.rank_config import control_endpoint, rank_configs
from fourlane.engine.seal import Secret
from fourlane.errors import EngineError, EnvironmentMissing
from fourlane.gateway.process_state import is_stopped
from fourlane.gateway.rank_group import GroupTimes
from fourlane.gateway.restarts import Restarts
from fourlane.gateway.run_dir import RunDir
from fourlane.gateway.supervisor import Manner, Supervisor
from fourlane.spec.deployment import Deployment, Gateway, Pool
from fourlane.units import Duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fourlane.engine.messages import Hello

pytestmark = pytest.mark.anyio

TIMES = GroupTimes(load_s=20, silence_s=1.0, broken_silence_s=1.0, settle_s=0.1, join_s=5, exchange_s=2)
PATIENCE_S = 20.0
TARGET = "scripted_rank:run_rank"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _scripted_rank_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(scripted_rank.__file__).parent))


class Events:
    """Keep what the supervisor tells."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.generations: dict[str, int] = {}

    def rank_ready(self, name: str, hello: Hello) -> None:
        self.told.append(("ready", name))
        self.generations[name] = hello.generation

    def rank_lost(self, name: str, reason: str) -> None:
        self.told.append(("lost", name, reason))

    def rank_paused(self, name: str, reason: str) -> None:
        self.told.append(("paused", name, reason))

    def rank_resumed(self, name: str) -> None:
        self.told.append(("resumed", name))

    def pool_failed(self, role: str, reason: str) -> None:
        self.told.append(("failed", role, reason))

    def of(self, kind: str) -> list[tuple[str, ...]]:
        return [each for each in self.told if each[0] == kind]


class Running:
    """A supervisor and what is around it."""

    def __init__(self, deployment: Deployment, run_dir: RunDir, *, target: str = TARGET) -> None:
        self.run_dir = run_dir
        self.events = Events()
        self.progress: list[tuple[str, str]] = []
        self.hub = Hub(Secret.create(run_dir.path / "secret"))
        self.hub.bind(control_endpoint(deployment, run_dir.path))
        manner = Manner(progress=lambda name, text: self.progress.append((name, text)), target=target, times=TIMES)
        configs = rank_configs(deployment, run_dir.path)
        self.supervisor = Supervisor(deployment, configs, run_dir, self.hub, self.events, manner)
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self.supervisor.handle(*await self.hub.recv())

    def order(self, name: str, order: str) -> None:
        (self.run_dir.path / f"order-{name}").write_text(order)

    def forget(self, name: str) -> None:
        (self.run_dir.path / f"order-{name}").unlink(missing_ok=True)

    def pid(self, name: str) -> int:
        pid = next(row.pid for row in self.supervisor.rows() if row.name == name)
        assert pid is not None
        return pid

    def phases(self) -> list[str]:
        return [row.phase for row in self.supervisor.rows()]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        await self.supervisor.stop()
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self.hub.close()
        self.run_dir.remove()


@contextlib.asynccontextmanager
async def running(*, ready_timeout: str = "20s", target: str = TARGET, **pools: Pool) -> AsyncIterator[Running]:
    gateway = Gateway(ready_timeout=Duration.parse(ready_timeout))
    made = Running(Deployment(gateway=gateway, **pools), RunDir(), target=target)
    try:
        yield made
    finally:
        await made.end()


async def test_all_ranks_come_up_and_nothing_is_left_after_the_end() -> None:
    async with running(prefill=Pool(ranks=2), decode=Pool()) as service:
        await service.supervisor.start()
        assert sorted(service.events.of("ready")) == [
            ("ready", name) for name in ("decode-0", "prefill-0", "prefill-1")
        ]
        assert service.phases() == ["ready"] * 3
        assert ("prefill-1", "loading") in service.progress
        pids = [row.pid for row in service.supervisor.rows()]
        nursery = service.supervisor.nursery_pid
    for pid in [*pids, nursery]:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not service.run_dir.path.exists()
    assert service.events.of("lost") == []


async def test_a_killed_rank_of_a_pool_without_expert_parallelism_is_replaced() -> None:
    async with running(unified=Pool(ranks=2, expert_parallel=1)) as service:
        await service.supervisor.start()
        first = service.pid("unified-1")
        os.kill(first, signal.SIGKILL)
        await service.until(lambda: service.events.of("ready").count(("ready", "unified-1")) == 2)
        assert service.events.of("lost") == [("lost", "unified-1", "killed by SIGKILL")]
        assert service.events.of("paused") == []
        assert service.pid("unified-1") != first
        assert [row.restarts for row in service.supervisor.rows()] == [0, 1]


async def test_a_killed_rank_of_a_group_is_replaced_and_the_group_formed_anew() -> None:
    async with running(unified=Pool(ranks=3)) as service:
        await service.supervisor.start()
        survivors = [service.pid("unified-0"), service.pid("unified-2")]
        os.kill(service.pid("unified-1"), signal.SIGKILL)
        await service.until(lambda: service.events.of("ready").count(("ready", "unified-1")) == 2)
        assert {name for _, name in service.events.of("resumed")} == {"unified-0", "unified-2"}
        assert [service.pid("unified-0"), service.pid("unified-2")] == survivors
        assert service.events.generations["unified-1"] == 1


async def test_a_stopped_rank_is_named_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with running(unified=Pool(ranks=2)) as service:
        await service.supervisor.start()
        first = service.pid("unified-0")
        os.kill(first, signal.SIGSTOP)
        await service.until(lambda: is_stopped(first))
        await service.until(lambda: service.events.of("ready").count(("ready", "unified-0")) == 2)
        assert "unified-0 has said nothing for" in caplog.text
        assert service.pid("unified-0") != first


async def test_a_rank_that_hangs_without_being_stopped_is_replaced_too() -> None:
    async with running(unified=Pool()) as service:
        await service.supervisor.start()
        first = service.pid("unified-0")
        assert not is_stopped(first)
        service.order("unified-0", "hang")
        await service.until(lambda: service.events.of("lost"))
        service.forget("unified-0")
        await service.until(lambda: service.phases() == ["ready"])
        assert service.pid("unified-0") != first


async def test_a_reported_loss_without_a_death_forms_the_group_anew() -> None:
    async with running(unified=Pool(ranks=2)) as service:
        await service.supervisor.start()
        service.order("unified-1", "lose a peer")
        await service.until(lambda: len(service.events.of("resumed")) == 2)
        assert service.events.of("lost") == []


async def test_a_pool_in_a_crash_loop_is_given_up_with_the_last_words_of_a_rank(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(unified=Pool()) as service:
        await service.supervisor.start()
        service.order("unified-0", "exit 9")
        await service.until(lambda: service.events.of("failed"))
        assert len(service.events.of("lost")) == Restarts.MOST
        assert "unified-0 last: exit code 9" in service.supervisor.failed["unified"]
        assert "unified-0 begins" in caplog.text


async def test_when_the_nursery_is_killed_all_ranks_are_started_anew() -> None:
    async with running(unified=Pool(ranks=2)) as service:
        await service.supervisor.start()
        nursery = service.supervisor.nursery_pid
        assert nursery is not None
        os.kill(nursery, signal.SIGKILL)
        await service.until(lambda: len(service.events.of("ready")) == 4)
        assert len(service.events.of("lost")) == 2
        assert service.phases() == ["ready"] * 2


async def test_a_rank_that_refuses_to_start_ends_the_start_with_its_reason() -> None:
    async with running(unified=Pool(ranks=2)) as service:
        service.order("unified-1", "fail at start")
        with pytest.raises(
            EnvironmentMissing, match=r"(?s)unified-1 ended while it loaded: exit code 3.*enough memory"
        ):
            await service.supervisor.start()


async def test_a_rank_that_is_not_ready_in_time_is_named_with_the_end_of_its_log() -> None:
    async with running(unified=Pool(ranks=2), ready_timeout="1500ms") as service:
        service.order("unified-1", "hang")
        with pytest.raises(EngineError, match=r"(?s)not ready within 1.5 s .*unified-1 begins"):
            await service.supervisor.start()


async def test_external_ranks_that_do_not_come_are_named() -> None:
    async with running(unified=Pool(launch="external"), ready_timeout="200ms") as service:
        with pytest.raises(EngineError, match=r"unified-0 \(absent\); start it with fourlane worker"):
            await service.supervisor.start()
        assert service.supervisor.nursery_pid is None


async def test_a_target_that_cannot_be_imported_is_told_with_what_to_install() -> None:
    async with running(unified=Pool(), target="a_module_nobody_has:run") as service:
        with pytest.raises(EnvironmentMissing, match="'a_module_nobody_has', which is not installed: pip install"):
            await service.supervisor.start()


async def test_a_rank_that_ignores_shutdown_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourlane.gateway.supervisor.EXIT_S", 0.3)
    async with running(unified=Pool()) as service:
        await service.supervisor.start()
        service.order("unified-0", "stubborn")
        pid = service.pid("unified-0")
        await service.supervisor.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_killing_at_once_ends_everything_without_waiting() -> None:
    async with running(unified=Pool(ranks=2)) as service:
        await service.supervisor.start()
        pids = [service.pid("unified-0"), service.pid("unified-1")]
        service.supervisor.kill_now()
        await service.until(lambda: all(is_stopped(pid) for pid in pids))
