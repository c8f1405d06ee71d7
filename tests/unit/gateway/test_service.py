"""The service as a whole, over HTTP, with ranks that follow a script instead of a model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import scripted_rank

from fourlane.errors import CheckpointError, EnvironmentMissing, SpecError
from fourlane.gateway.service import listen, running_service
from fourlane.spec.deployment import Deployment, Gateway, Model, Pool
from fourlane.units import Duration

pytestmark = pytest.mark.anyio

TARGET = "scripted_rank:run_rank"
PATIENCE_S = 20.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _scripted_rank_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(scripted_rank.__file__).parent))


def deployment(model_folder: Path, *, ranks: int = 2, shutdown: str = "5s") -> Deployment:
    return Deployment(
        model=Model(path=str(model_folder)),
        gateway=Gateway(port=0, shutdown_deadline=Duration.parse(shutdown)),
        unified=Pool(ranks=ranks, expert_parallel=1),
    )


async def ask(url: str, tokens: int) -> httpx.Response:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        model = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        return await client.post(f"{url}/v1/completions", json={"model": model, "prompt": "abc", "max_tokens": tokens})


async def until_health(url: str, status: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE_S):
        while (await client.get(f"{url}/health")).json()["status"] != status:
            await asyncio.sleep(0.02)


async def test_a_service_answers_and_leaves_nothing_behind(model_folder: Path) -> None:
    async with running_service(deployment(model_folder), target=TARGET) as service:
        answer = await ask(service.base_url, 3)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 3
        run_dir, url = service.run_dir.path, service.base_url
        pids = [row.pid for row in service.rows]
    assert not run_dir.exists()
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(httpx.ConnectError):
        await ask(url, 1)


async def test_two_services_run_side_by_side(model_folder: Path) -> None:
    async with (
        running_service(deployment(model_folder, ranks=1), target=TARGET) as one,
        running_service(deployment(model_folder, ranks=1), target=TARGET) as other,
    ):
        answers = await asyncio.gather(ask(one.base_url, 2), ask(other.base_url, 2))
        assert [answer.status_code for answer in answers] == [200, 200]


async def test_requests_on_a_killed_rank_are_finished_by_another(model_folder: Path) -> None:
    async with running_service(deployment(model_folder), target=TARGET) as service:
        asked = [asyncio.create_task(ask(service.base_url, 20)) for _ in range(8)]
        await asyncio.sleep(0.4)
        pid = service.rows[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200] * 8
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [20] * 8
        await until_health(service.base_url, "ok")


async def test_requests_under_way_are_finished_before_the_end(model_folder: Path) -> None:
    async with running_service(deployment(model_folder), target=TARGET) as service:
        asked = asyncio.create_task(ask(service.base_url, 20))
        await asyncio.sleep(0.3)
    assert (await asked).json()["usage"]["completion_tokens"] == 20


async def test_requests_that_do_not_end_by_the_deadline_get_an_error(model_folder: Path) -> None:
    began = time.monotonic()
    async with running_service(deployment(model_folder, shutdown="500ms"), target=TARGET) as service:
        asked = asyncio.create_task(ask(service.base_url, 400))
        await asyncio.sleep(0.5)
    answer = await asked
    assert answer.status_code == 503
    assert "shutting down" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 10


async def test_a_pool_in_a_crash_loop_makes_the_service_unavailable_and_requests_get_503(model_folder: Path) -> None:
    async with running_service(deployment(model_folder, ranks=1), target=TARGET) as service:
        (service.run_dir.path / "order-unified-0").write_text("exit 9")
        async with asyncio.timeout(PATIENCE_S):
            while not service.supervisor.failed:
                await asyncio.sleep(0.02)
        answer = await ask(service.base_url, 3)
        assert answer.status_code == 503
        assert "the unified pool was given up" in answer.json()["error"]["message"]
        assert "retry-after" in answer.headers
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{service.base_url}/health")).status_code == 503


async def test_a_start_that_fails_leaves_nothing_behind(model_folder: Path) -> None:
    run_dir = Path("/tmp") / f"fourlane-test-{os.getpid()}"
    with pytest.raises(EnvironmentMissing, match="not installed"):
        async with running_service(deployment(model_folder), target="nobody_has_this:run", run_dir=run_dir):
            pytest.fail("it cannot have come up")
    assert not run_dir.exists()


async def test_a_port_that_is_taken_is_refused_before_anything_starts(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = Deployment(model=Model(path=str(model_folder)), gateway=Gateway(port=port), unified=Pool())
        with pytest.raises(EnvironmentMissing, match=rf"port {port} at 127.0.0.1 is in use; .*--set gateway.port"):
            async with running_service(wanted, target=TARGET):
                pytest.fail("it cannot have come up")


async def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; give a checkpoint folder"):
        async with running_service(deployment(tmp_path / "absent"), target=TARGET):
            pytest.fail("it cannot have come up")


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(SpecError, match="expected an address of this machine"):
        listen("192.0.2.1", 0)


async def test_a_service_that_others_can_reach_without_a_key_is_warned_of(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(host="0.0.0.0", port=0)
    wanted = Deployment(model=Model(path=str(model_folder)), gateway=gateway, unified=Pool())
    async with running_service(wanted, target=TARGET) as service:
        assert "gateway.api_key is not set, so anyone there can use the service" in caplog.text
        assert service.base_url.startswith("http://127.0.0.1:")


async def test_external_pools_need_an_address_and_a_secret(model_folder: Path) -> None:
    pool = Pool(launch="external")
    model = Model(path=str(model_folder))
    with pytest.raises(SpecError, match=r"gateway.control: expected an address that external ranks \(unified\)"):
        async with running_service(Deployment(model=model, unified=pool)):
            pytest.fail("it cannot have come up")
    gateway = Gateway(port=0, control="tcp://127.0.0.1:0")
    with pytest.raises(SpecError, match="--secret-file: external ranks"):
        async with running_service(Deployment(model=model, gateway=gateway, unified=pool)):
            pytest.fail("it cannot have come up")


GATEWAY = """
import asyncio, sys
from pathlib import Path
from fourlane.gateway.service import running_service
from fourlane.spec.deployment import Deployment, Gateway, Model, Pool

async def main():
    wanted = Deployment(model=Model(path=sys.argv[1]), gateway=Gateway(port=0), unified=Pool(ranks=2))
    async with running_service(wanted, target="scripted_rank:run_rank") as service:
        pids = [service.supervisor.nursery_pid, *(row.pid for row in service.rows)]
        print(service.run_dir.path, *pids, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nothing_is_left_when_the_gateway_is_killed(model_folder: Path) -> None:
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(model_folder)], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    run_dir, *pids = gateway.stdout.readline().split()
    gateway.kill()
    gateway.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (
        Path(run_dir).exists() or any(Path(f"/proc/{pid}").exists() for pid in pids)
    ):
        time.sleep(0.02)
    assert not Path(run_dir).exists()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
