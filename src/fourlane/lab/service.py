"""A fourlane service inside a lab: the gateway in one host, every rank in a host of its own.

The processes are those a person would start on as many machines: `fourlane serve` with external ranks, and
`fourlane worker` for each. They end with the service, and with this process however it ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import msgspec

from fourlane.errors import LabError
from fourlane.lab.keeper import NICE
from fourlane.lab.topology import NetworkName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from fourlane.lab.keeper import Channel
    from fourlane.lab.network import Lab

__all__ = ["LabService", "Placement", "fetch", "put_first"]

READY_S = 90.0
END_S = 3.0
FETCH_S = 10.0
_POLL_S = 0.2
_LOG_LINES = 5
_GROUP_PORTS = 2000
"""A group takes up to 1000 ports above its master port; so the next one's is this much higher."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a service runs: the host of its gateway, and a host a rank; and which network carries KV.

    Experts' tokens, control and HTTP are on the hpn. `port` is the gateway's; ports above it are taken too, so
    two services in one lab need ports 10,000 apart.
    """

    gateway: str
    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    kv: NetworkName = "hpn"
    port: int = 20_000


class LabService:
    """A running service, from construction until `close`; `wait_ready` before the first request.

    Args:
        lab: that it runs in.
        placement: where in it.
        folder: for its secret and its logs.
        overrides: "path=value" texts for the deployment, on top of what the placement says.
    """

    def __init__(self, lab: Lab, placement: Placement, *, folder: Path, overrides: Sequence[str] = ()) -> None:
        self.lab, self.placement = lab, placement
        self.url = f"http://{lab.address(placement.gateway, 'hpn')}:{placement.port}"
        self._folder = folder
        self._control = f"tcp://{lab.address(placement.gateway, 'hpn')}:{placement.port + 1}"
        self._secret = folder / "secret"
        self._secret.touch(mode=0o600)
        self._secret.write_text(secrets.token_hex(32), encoding="ascii")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start(overrides)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self, *, timeout_s: float = READY_S, progress: Callable[[str], None] | None = None) -> None:
        """Wait until every rank serves.

        Args:
            timeout_s: how long.
            progress: told now and then how many ranks there are.

        Raises:
            LabError: a process ended, with the end of its log; or the time was over, with who was missing.
        """
        deadline, missing = time.monotonic() + timeout_s, "the gateway does not answer yet"
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(LabError):
                health = json.loads(self.get("/health"))
                if health["status"] == "ok":
                    return
                pools = health["pools"].values()
                missing = "; ".join(f"{rank}: {what}" for pool in pools for rank, what in pool["problems"].items())
            if progress is not None:
                progress(missing)
            time.sleep(_POLL_S)
        tails = [f"{name}: {line}" for name in self._processes for line in self._last_words(name, 1)]
        raise LabError("\n".join([f"lab: {self.url}: not ready after {timeout_s:.0f} s: {missing}", *tails]))

    def check(self) -> None:
        """See that every process is alive.

        Raises:
            LabError: one ended; with the end of its log.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                tail = self._last_words(name, _LOG_LINES)
                raise LabError("\n".join([f"lab: {name} ended with status {process.returncode}:", *tail]))

    def get(self, path: str) -> str:
        """Return what the gateway answers to GET, from within its host.

        Raises:
            LabError: it does not answer, or not with 200 (503 counts where it says how the service is).
        """
        call = self.lab.call(self.placement.gateway, "fourlane.lab.service:fetch", url=self.url + path)
        status, text = call.result(FETCH_S + 5)
        if status != 200 and not (status == 503 and path == "/health"):
            raise LabError(f"lab: {self.url}{path}: status {status}: {text[:200]}")
        return text

    def close(self) -> None:
        """End all processes: first politely, then not, for there is nothing to save."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + END_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_S)
        self._processes.clear()

    def _start(self, overrides: Sequence[str]) -> None:
        placed, lab = self.placement, self.lab
        common = [
            f"prefill.ranks={len(placed.prefill)}",
            f"decode.ranks={len(placed.decode)}",
            "prefill.launch=external",
            "decode.launch=external",
            "kv_transfer.transport=tcp",
            f"gateway.host={lab.address(placed.gateway, 'hpn')}",
            f"gateway.port={placed.port}",
            f"gateway.control={self._control}",
            *overrides,
        ]
        self._launch("gateway", placed.gateway, ["serve"], common)
        for number, (role, hosts) in enumerate((("prefill", placed.prefill), ("decode", placed.decode)), start=1):
            master = [
                "--master-addr",
                lab.address(hosts[0], "hpn"),
                "--master-port",
                str(placed.port + number * _GROUP_PORTS),
            ]
            for rank, host in enumerate(hosts):
                own = [f"exchange.address={lab.address(host, 'hpn')}"]
                own.append(f"kv_transfer.address={lab.address(host, placed.kv)}")
                command = ["worker", "--role", role, "--gateway", self._control, "--rank", str(rank)]
                command += ["--world-size", str(len(hosts)), *master]
                self._launch(f"{role}-{rank}", host, command, [*common, *own])

    def _launch(self, name: str, host: str, command: Sequence[str], settings: Sequence[str]) -> None:
        words = [sys.executable, "-m", "fourlane", *command, "--secret-file", str(self._secret)]
        for setting in settings:
            words += ["--set", setting]
        with self._log(name).open("wb") as log:
            self._processes[name] = self.lab.start(
                host,
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for who started the lab
            )
        put_first(self._processes[name].pid)

    def _last_words(self, name: str, lines: int) -> list[str]:
        return self._log(name).read_text(errors="replace").strip().splitlines()[-lines:]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def put_first(pid: int) -> None:
    """Let a process come before what else this machine does, where this user may say so.

    Where the kernel shares processors out by session first (autogroups), its session is put first too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE), encoding="ascii")


def fetch(channel: Channel, *, url: str) -> tuple[int, str]:
    """GET a URL from within a host; return status and body."""
    del channel
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=FETCH_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()
