"""What the whole service does when parts of it die, hang or are told to end: real ranks, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import pytest
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, generate_all

from fourlane.engine.messages import Sampling
from fourlane.engine.seal import Secret
from fourlane.gateway.service import running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.gateway.service import Service

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PATIENCE_S = 60.0
FOURLANE = [sys.executable, "-m", "fourlane"]
LONG = Sampling(max_tokens=240, temperature=0.0, ignore_eos=True)
SHORT = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shape = Shape(
        vocab=512,
        hidden=64,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        experts=8,
        top_k=2,
        expert_dim=32,
        max_positions=512,
        seed=5,
    )
    write_checkpoint(folder, shape)
    return folder


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(11)
    return [[draw.randrange(5, 512) for _ in range(draw.randint(20, 60))] for _ in range(count)]


def pid_of(service: Service, name: str) -> int:
    pid = next(row.pid for row in service.rows if row.name == name)
    assert pid is not None
    return pid


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def decoding(service: Service, *, at_least: int) -> Callable[[], bool]:
    return lambda: service.state.metrics.generated_tokens >= at_least


async def strike(service: Service, name: str, number: signal.Signals) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of a load undisturbed, and of the same load with a rank struck in its midst."""
    asked = prompts(12)
    calm = await generate_all(service.router, asked, LONG)
    before = service.state.metrics.generated_tokens
    load = asyncio.create_task(generate_all(service.router, asked, LONG))
    await until(decoding(service, at_least=before + 100))
    assert not load.done(), "the load must last until the rank is struck"
    os.kill(pid_of(service, name), number)
    return calm, await load


def whole(service: Service) -> bool:
    return all(row.phase == "ready" for row in service.rows)


def retries(service: Service) -> int:
    found = re.search(rb"^fourlane_retries_total (\d+)", service.state.metrics.render(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("victim", "exchange"),
    [
        ("decode-1", "torch_all_to_all"),
        ("prefill-0", "shared_memory"),
        ("decode-1", "tcp"),
        ("decode-1", "shared_memory"),
    ],
)
def test_a_rank_killed_under_load_costs_nobody_a_token(
    checkpoint: Path, victim: str, exchange: Literal["torch_all_to_all", "tcp", "shared_memory"]
) -> None:
    async def run() -> None:
        async with running_service(deployment(checkpoint, prefill=2, decode=2, exchange=exchange)) as service:
            pids = {row.name: row.pid for row in service.rows}
            calm, struck = await strike(service, victim, signal.SIGKILL)
            assert struck == calm
            await until(lambda: whole(service) and pid_of(service, victim) != pids[victim])
            changed = {row.name for row in service.rows if row.pid != pids[row.name]}
            assert changed == {victim}, "the survivors keep their processes"
            assert retries(service) < 12, "the survivors keep their sequences"
            assert await generate_all(service.router, prompts(4), SHORT) == [tokens[:4] for tokens in calm[:4]]

    asyncio.run(run())


def test_with_one_rank_a_phase_a_killed_rank_is_waited_for(checkpoint: Path) -> None:
    async def run() -> None:
        async with running_service(deployment(checkpoint, prefill=1, decode=1)) as service:
            calm, struck = await strike(service, "decode-0", signal.SIGKILL)
            assert struck == calm
            # all tokens may have been computed, though not yet told, when it was killed: then nobody waited
            await until(lambda: [row.restarts for row in service.rows] == [0, 1])

    asyncio.run(run())


def test_a_stopped_rank_is_named_and_replaced_and_every_request_answered(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with running_service(deployment(checkpoint, prefill=1, decode=2)) as service:
            stopped = pid_of(service, "decode-1")
            calm, struck = await strike(service, "decode-1", signal.SIGSTOP)
            assert struck == calm
            assert "decode-1 has said nothing for" in caplog.text
            await until(lambda: whole(service))
            with pytest.raises(ProcessLookupError):
                os.kill(stopped, 0)

    asyncio.run(run())


class Serving:
    """`fourlane serve` in a process of its own."""

    def __init__(self, tmp: Path, *arguments: str) -> None:
        self.tmp = tmp
        self.process = subprocess.Popen(
            [*FOURLANE, "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp)},
        )
        try:
            said = self._until_it_serves()
        except BaseException:
            self.close()
            raise
        self.url = re.findall(r"is served at (http://\S+)/v1", said)[0]
        self.pids = [int(pid) for pid in re.findall(r"\(group \d\)\s+(\d+)", said)]

    def _until_it_serves(self) -> str:
        """Return what it printed up to the line with its address."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = ""
        while "is served at" not in said:
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.process.stderr.read()}"
            said += line
        return said

    def stream(self, tokens: int) -> Iterator[str]:
        """Yield a completion's events as they come."""
        body = {"model": self.model, "prompt": "tell", "max_tokens": tokens, "stream": True, "ignore_eos": True, "n": 4}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield line.removeprefix("data: ")

    @property
    def model(self) -> str:
        return httpx.get(f"{self.url}/v1/models", timeout=PATIENCE_S).json()["data"][0]["id"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)

    def left_over(self) -> list[object]:
        """Return the processes and files that are there still, having waited a little for none to be."""
        deadline = time.monotonic() + 15
        while True:
            left = [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]
            left += [path for path in self.tmp.iterdir() if path.name.startswith("fourlane")]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)


@pytest.fixture
def serving(checkpoint: Path, tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path, "--set", "gateway.port=0", "--set", f"model.path={checkpoint}")
    yield made
    made.close()


def test_sigterm_lets_an_open_stream_end_and_refuses_new_requests(serving: Serving) -> None:
    model = serving.model
    events = serving.stream(480)
    next(events)
    serving.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    body = {"model": model, "prompt": "late", "max_tokens": 1}
    late = httpx.post(f"{serving.url}/v1/completions", json=body, timeout=PATIENCE_S)
    rest = list(events)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
    assert late.status_code == 503
    assert "shutting down" in late.json()["error"]["message"]
    assert "retry-after" in late.headers
    assert serving.process.wait(PATIENCE_S) == 0
    assert serving.left_over() == []


def test_two_ctrl_c_end_everything_at_once_with_code_130(serving: Serving) -> None:
    events = serving.stream(400)
    next(events)
    serving.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    began = time.monotonic()
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(PATIENCE_S) == 130
    assert time.monotonic() - began < 5
    assert serving.left_over() == []


def test_nothing_is_left_of_a_gateway_that_was_killed(serving: Serving) -> None:
    events = serving.stream(400)
    next(events)
    serving.process.kill()
    assert serving.left_over() == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class ByHand:
    """A decode pool of two ranks that are started with `fourlane worker`, and the file that says so."""

    def __init__(self, checkpoint: Path, tmp: Path) -> None:
        self.secret, self.file, self.tmp = tmp / "secret", tmp / "split.toml", tmp
        Secret.create(self.secret)
        self.gateway = f"tcp://127.0.0.1:{free_port()}"
        self.master_port = free_port()
        self.file.write_text(
            f'[model]\npath = "{checkpoint}"\n[gateway]\nport = 0\ncontrol = "{self.gateway}"\n'
            '[prefill]\n[decode]\nranks = 2\nlaunch = "external"\n'
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    def worker(self, rank: int) -> subprocess.Popen[bytes]:
        launch = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.master_port}
        command = [*FOURLANE, "worker", str(self.file), "--role", "decode", "--gateway", self.gateway]
        with (self.tmp / f"worker-{rank}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--secret-file", str(self.secret)],
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.tmp), **{name: str(value) for name, value in launch.items()}},
            )
        self.processes.append(process)
        return process

    def serve(self) -> Serving:
        return Serving(self.tmp, str(self.file), "--secret-file", str(self.secret))


@pytest.fixture
def by_hand(checkpoint: Path, tmp_path: Path) -> Iterator[ByHand]:
    made = ByHand(checkpoint, tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait(PATIENCE_S)


def until_recovered(service: Serving) -> None:
    """Wait until a rank was replaced and every rank serves."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = httpx.get(f"{service.url}/stats", timeout=PATIENCE_S).json()
        restarts = sum(rank["restarts"] for pool in found["pools"] for rank in pool["ranks"])
        if restarts and found["status"] == "ok":
            return
        time.sleep(0.1)
    raise AssertionError(f"not recovered: {found}")


def test_ranks_started_by_hand_serve_and_one_that_dies_can_be_started_again(by_hand: ByHand) -> None:
    by_hand.worker(0)
    victim = by_hand.worker(1)
    service = by_hand.serve()
    try:
        assert list(service.stream(20))[-1] == "[DONE]"
        victim.kill()
        victim.wait(PATIENCE_S)
        by_hand.worker(1)
        until_recovered(service)
        assert list(service.stream(20))[-1] == "[DONE]"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
        outlived = [process.poll() for process in by_hand.processes if process is not victim]
        assert outlived == [None, None], "external ranks wait for the next gateway"
        assert list(by_hand.tmp.glob("fourlane-*")) == []
        service.close()
        service = by_hand.serve()
        assert list(service.stream(20))[-1] == "[DONE]"
    finally:
        service.close()
