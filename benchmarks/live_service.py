"""A service in a process of its own, as benchmarks need it: started, told to end, never forgotten.

Run as a script it brings up a deployment, prints its URL and pid, and ends when standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Live", "live_service"]

STOP_S = 60


@dataclass(frozen=True)
class Live:
    """A running service: where it answers, and the pid of its gateway."""

    base_url: str
    pid: int


@contextmanager
def live_service(overrides: Sequence[str]) -> Iterator[Live]:
    """Bring up a deployment ("path=value" texts) for the time of the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), *overrides]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)}: the service did not come up (its messages are above)")
        said = json.loads(line)
        yield Live(base_url=said["base_url"], pid=said["pid"])
    finally:
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


async def _serve(overrides: Sequence[str]) -> None:
    from fourlane.gateway.service import running_service
    from fourlane.spec.load import load_deployment

    deployment = load_deployment(None, overrides=["gateway.port=0", *overrides])
    async with running_service(deployment) as service:
        print(json.dumps({"base_url": service.base_url, "pid": os.getpid()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
