"""Launch files, launched: two units on this machine serve the bundled model, and end when they are told to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from launches import rendered, twin, written

from fourlane.engine.seal import Secret
from fourlane.spec.twin import Experts, TwinPool, Workload
from fourlane.units import Size

if TYPE_CHECKING:
    from pathlib import Path

READY_S = 90


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def on_free_ports(files: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return the files with ports that nobody has on this machine, and where requests go."""
    http, control, prefill, decode = free_ports(4)
    changed = {}
    for path, text in files.items():
        for old, new in (("port = 9000", f"port = {http}"), (":7600", f":{control}")):
            text = text.replace(old, new)  # noqa: PLW2901
        changed[path] = text.replace("((12000 +", f"(({prefill} +").replace("((22000 +", f"(({decode} +")
    return changed, f"http://127.0.0.1:{http}"


@pytest.mark.soak
@pytest.mark.distributed
@pytest.mark.timeout(240)
def test_units_started_by_their_scripts_answer_and_end_with_them(tmp_path: Path) -> None:
    if shutil.which("torchrun") is None or shutil.which("ip") is None:
        pytest.skip("needs torchrun and ip")
    pool = TwinPool(units=1, ranks=2, chunk_tokens=256, max_running=32, kv_memory=Size(64 << 20))
    load = Workload(concurrency=2, requests=4, input_len="32", output_len="8")
    here = twin("bundled", "lab", prefill=pool, decode=pool, workload=load, experts=Experts(placement="linear"))
    made = rendered(here, "fourlane")
    files, url = on_free_ports(made.files)
    made.files.update(files)
    folder = written(made, tmp_path)
    (folder / "servers.txt").write_text("127.0.0.1\nlocalhost\n", encoding="utf-8")
    Secret.create(folder / "fourlane.secret")
    place = {**os.environ, "EXPERT_ADDRESS": "127.0.0.1", "KV_ADDRESS": "127.0.0.1"}
    scripts = [("start-router.sh",), ("start.sh", "0"), ("start.sh", "1")]
    parts = [
        subprocess.Popen(["bash", *words], cwd=folder, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for words in scripts
    ]
    try:
        body = {"model": "bundled", "prompt": "In the beginning", "max_tokens": 8}
        assert answer(url, body)["usage"]["completion_tokens"] == 8
        done = subprocess.run(
            ["bash", "benchmark.sh"],
            cwd=folder,
            env={**place, "URL": url, "MODEL": "bundled"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "4 of 4" in done.stdout
    finally:
        for part in parts:
            part.send_signal(signal.SIGTERM)
        codes = [part.wait(timeout=60) for part in parts]
    assert codes[1:] == [143, 143]  # as a shell says SIGTERM
    assert not list((folder / "run").iterdir())


def answer(url: str, body: dict[str, object]) -> dict[str, dict[str, int]]:
    """Ask until the service is there."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            found = httpx.post(f"{url}/v1/completions", json=body, timeout=30)
        except httpx.TransportError:
            found = None
        if found is not None and found.status_code == 200:
            data: dict[str, dict[str, int]] = found.json()
            return data
        assert time.monotonic() < deadline, "the service did not come up"
        time.sleep(0.5)
