"""One running service: hub, supervisor, router, HTTP, put together and taken apart in order.

Used by `fourlane serve`, the demo, benchmarks and tests alike:

    async with running_service(deployment) as service:
        print(service.base_url)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.channel import Hub
from fourlane.engine.model.config import resolve_model_path
from fourlane.engine.nursery import DEFAULT_TARGET
from fourlane.engine.rank_config import control_endpoint, rank_configs
from fourlane.engine.seal import Secret
from fourlane.errors import EnvironmentMissing, RankDied, SpecError
from fourlane.gateway.app import EmbeddedServer, create_app
from fourlane.gateway.lanes import unlike_marks
from fourlane.gateway.metrics import Metrics
from fourlane.gateway.nursery_client import missing_module
from fourlane.gateway.ranks import rank_name
from fourlane.gateway.router import Limits, Router
from fourlane.gateway.run_dir import RunDir
from fourlane.gateway.state import GatewayState, ModelFacts
from fourlane.gateway.supervisor import Manner, Supervisor
from fourlane.gateway.tokenizer import ModelTokenizer
from fourlane.lanes.connections import LaneBook
from fourlane.lanes.live import deployment_plan, lane_cautions, plan_marks
from fourlane.spec.load import cautions
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from fourlane.engine.messages import Hello, ToRank
    from fourlane.gateway.supervision import RankRow
    from fourlane.spec.deployment import Deployment

__all__ = ["Service", "listen", "running_service", "serve_forever"]

_log = logging.getLogger(__name__)

HTTP_CLOSE_S = 2
"""How long answers may take to leave once the router has ended every request."""


@contextlib.asynccontextmanager
async def running_service(
    deployment: Deployment,
    *,
    progress: Callable[[str, str], None] | None = None,
    run_dir: Path | None = None,
    secret_file: Path | None = None,
    target: str = DEFAULT_TARGET,
) -> AsyncIterator[Service]:
    """Bring a service up, yield it when every rank can serve, take it down and leave nothing behind.

    Args:
        deployment: what shall run; `gateway.port` 0 takes any free port.
        progress: called with a rank's name (or "nursery", "gateway") and what it does.
        run_dir: folder for sockets and logs; None: a temporary one. Removed in the end.
        secret_file: the secret that external ranks hold as well; None: one is drawn.
        target: what a rank's process runs; tests put something else here.

    Raises:
        EnvironmentMissing: no torch, or the port is taken.
        CheckpointError, EngineError: ranks did not come up; the message has the end of their logs.
    """
    _check_engine(deployment, target)
    service = Service(deployment, progress=progress, run_dir=run_dir, secret_file=secret_file, target=target)
    try:
        await service.start()
        yield service
    finally:
        await service.stop()


async def serve_forever(
    deployment: Deployment,
    *,
    on_ready: Callable[[Service], None],
    progress: Callable[[str, str], None] | None = None,
    secret_file: Path | None = None,
) -> int:
    """Run a service until SIGINT or SIGTERM; return the exit code.

    The first signal ends it in order, within `gateway.shutdown_deadline` and a few seconds; a second
    one kills every process at once and ends this one with code 130. A signal while ranks still load
    gives 130 as well.
    """
    _check_engine(deployment, DEFAULT_TARGET)
    service = Service(deployment, progress=progress, secret_file=secret_file)
    with _signals(service) as stop:
        try:
            if not await _unless(stop, service.start()):
                return 130
            on_ready(service)
            await stop.wait()
        finally:
            await service.stop()
    return 0


class Service:
    """A service from its start to its end. Use `running_service`, which never forgets the end."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        progress: Callable[[str, str], None] | None = None,
        run_dir: Path | None = None,
        secret_file: Path | None = None,
        target: str = DEFAULT_TARGET,
    ) -> None:
        _check_secret(deployment, secret_file)
        self.deployment = deployment
        self._plan = deployment_plan(deployment)
        marks = plan_marks(self._plan)
        self._manner = Manner(progress=progress or (lambda _name, _text: None), target=target)
        model = ModelFacts.read(resolve_model_path(deployment.model.path), deployment)
        tokenizer = ModelTokenizer.read(model.folder)
        self._socket = listen(deployment.gateway.host, deployment.gateway.port)
        try:
            self.run_dir = RunDir(run_dir)
        except BaseException:
            self._socket.close()
            raise
        self._secret_file = secret_file
        self._names = {
            f"{role}-{index}": rank_name(role, index)
            for role, pool in deployment.pools().items()
            for index in range(pool.ranks)
        }
        self._hub: Hub | None = None
        metrics = Metrics(model.name)
        self.router = Router(self, deployment, Limits.of(deployment), metrics)
        lanes = LaneBook(marks, owner="gateway")
        self.state = GatewayState(deployment, model, tokenizer, self.router, metrics, lanes)
        self._supervisor: Supervisor | None = None
        self._server: EmbeddedServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._stopped = False

    # what callers read

    @property
    def port(self) -> int:
        """Return the port HTTP is served on."""
        return self._socket.getsockname()[1]

    @property
    def base_url(self) -> str:
        """Return the service's address as a client on this host uses it, without a path."""
        host = self.deployment.gateway.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def api_key(self) -> str | None:
        """Return the key clients must send; None if there is none."""
        return self.deployment.gateway.api_key

    @property
    def supervisor(self) -> Supervisor:
        """Return what watches the ranks; there from `start` on."""
        assert self._supervisor is not None, "start comes first"
        return self._supervisor

    @property
    def rows(self) -> list[RankRow]:
        """Return what is known of every rank."""
        return self.supervisor.rows()

    # the course of things

    async def start(self) -> None:
        """Serve HTTP (503 at first), start every rank, return when all can serve.

        Raises:
            CheckpointError, EnvironmentMissing, EngineError: see `running_service`; call `stop` then.
        """
        for caution in [*cautions(self.deployment), *lane_cautions(self.deployment, self._plan)]:
            _log.warning("%s", caution)
        secret_file = self._secret_file or self.run_dir.path / "secret"
        secret = Secret.read(secret_file) if self._secret_file is not None else Secret.create(secret_file)
        self._hub = Hub(secret, lane=self.state.lanes.end(TrafficClass.CONTROL))
        endpoint = self._hub.bind(control_endpoint(self.deployment, self.run_dir.path))
        here = _local_endpoint(endpoint)
        configs = rank_configs(
            self.deployment, self.run_dir.path, secret_file=secret_file, marks=self.state.lanes.marks
        )
        configs = [msgspec.structs.replace(config, control_endpoint=here) for config in configs]
        self._supervisor = Supervisor(self.deployment, configs, self.run_dir, self._hub, self, self._manner)
        self.router.start()
        self._server = EmbeddedServer(create_app(self.state), close_after_s=HTTP_CLOSE_S)
        self._tasks = [
            asyncio.create_task(self._listen(), name="hub listener"),
            asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http"),
        ]
        await self._supervisor.start()
        self._ready = True

    async def stop(self) -> None:
        """Refuse new requests, let open ones end within the deadline, end ranks, remove the folder. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        try:
            await self._stop_requests()
            if self._supervisor is not None:
                await self._supervisor.stop()
            await self._stop_tasks()
        finally:
            if self._hub is not None:
                self._hub.close(linger_s=0.2)
            self._socket.close()
            self.run_dir.remove()

    def kill_now(self) -> None:
        """Kill every process of the service and remove its folder, waiting for nothing."""
        if self._supervisor is not None:
            self._supervisor.kill_now()
        self.run_dir.remove()

    async def _stop_requests(self) -> None:
        if self._tasks:
            await self.router.stop(self.deployment.gateway.shutdown_deadline.seconds if self._ready else 0)

    async def _stop_tasks(self) -> None:
        if not self._tasks or self._server is None:
            return
        listener, http = self._tasks
        self._server.should_exit = True
        await asyncio.wait([http], timeout=HTTP_CLOSE_S + 3)
        for task in (listener, http):
            task.cancel()
        await asyncio.gather(listener, http, return_exceptions=True)

    async def _listen(self) -> None:
        assert self._hub is not None
        assert self._supervisor is not None
        while True:
            name, message = await self._hub.recv()
            try:
                self._supervisor.handle(name, message)
                if name in self._names:
                    self.router.handle(self._names[name], message)
            except Exception:  # noqa: BLE001 - one bad message must not end the service
                _log.exception("a %s of %s could not be handled", type(message).__name__, name)

    # the router's way to the ranks (RankLink)

    def send(self, rank_name: str, message: ToRank) -> None:
        """Queue a message to a rank; a rank that is gone swallows it."""
        if self._hub is not None:
            with contextlib.suppress(RankDied):
                self._hub.send(rank_name.replace("/", "-"), message)

    # what the supervisor tells (RankEvents)

    def rank_ready(self, name: str, hello: Hello) -> None:
        """Let the router use a rank."""
        if unlike := unlike_marks(hello, self.state.lanes.marks):
            _log.warning(
                "%s marks its traffic by another lane plan than the gateway's (%s); give both the same file as lanes",
                name,
                unlike,
            )
        self.router.rank_ready(self._names[name], hello)

    def rank_lost(self, name: str, reason: str) -> None:
        """Have the router try a lost rank's sequences elsewhere."""
        self.router.rank_lost(self._names[name], reason)

    def rank_paused(self, name: str, reason: str) -> None:
        """Have the router give a rank nothing new for now."""
        self.router.rank_paused(self._names[name], reason)

    def rank_resumed(self, name: str) -> None:
        """Let the router use a rank again."""
        self.router.rank_resumed(self._names[name])

    def pool_failed(self, role: str, reason: str) -> None:
        """Have the router refuse all requests: without a pool there is no service."""
        self.router.pool_failed(role, reason)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket, so that a port that is taken is known before anything starts.

    Raises:
        EnvironmentMissing: the port is taken, or not ours to take.
        SpecError: no such host here.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise SpecError(f"gateway.host: {host}: {error}; expected an address of this machine") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            why = "is in use" if error.errno == errno.EADDRINUSE else "may not be taken by this user"
            raise EnvironmentMissing(
                f"gateway.port: port {port} at {host} {why}; end what listens there (ss -ltnp 'sport = :{port}'), or "
                "take another: --set gateway.port=8001, or --set gateway.port=0 for any free one"
            ) from error
        raise SpecError(f"gateway.host: {host}: {error.strerror}; expected an address of this machine") from error
    return made


def _check_engine(deployment: Deployment, target: str) -> None:
    local = any(pool.launch == "local" for pool in deployment.pools().values())
    if local and target == DEFAULT_TARGET:
        for module in ("torch", "safetensors"):
            if importlib.util.find_spec(module) is None:
                raise missing_module(module)


def _check_secret(deployment: Deployment, secret_file: Path | None) -> None:
    external = [role for role, pool in deployment.pools().items() if pool.launch == "external"]
    if external and deployment.gateway.control is None:
        raise SpecError(
            f"gateway.control: expected an address that external ranks ({', '.join(external)}) can reach, such as "
            '"tcp://10.0.0.1:7600", but it is missing'
        )
    if external and secret_file is None:
        raise SpecError(
            f"--secret-file: external ranks ({', '.join(external)}) must hold the same secret as the gateway, but none "
            "was given; make one with `(umask 077; openssl rand -hex 32 > fourlane.secret)` and copy it to every host"
        )


def _local_endpoint(endpoint: str) -> str:
    return endpoint.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:").replace("tcp://[::]:", "tcp://[::1]:")


@contextlib.contextmanager
def _signals(service: Service):  # noqa: ANN202 - yields the event of the first signal
    """Turn the first SIGINT, SIGTERM or SIGHUP into an event, the second into the end of everything."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal(number: int) -> None:
        if stop.is_set():
            service.kill_now()
            os._exit(128 + number)
        _log.warning("%s: shutting down; once more to end at once", signal.Signals(number).name)
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _unless(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await work unless the event comes first; tell whether the work was done."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for each in (task, waiter):
            each.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)
