"""Climb the ladder: one service, one load, and a network that gets better under it.

Two services are up, equal but for the network of their KV, and one of them at a time is under load; so the
steps can be taken in turns, again and again, and what the machine does besides falls on all of them alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

import msgspec

from fourlane.errors import LabError
from fourlane.lab.bpf import why_not_loadable
from fourlane.lab.ecn_marker import EcnMarker
from fourlane.lab.histogram import percentile_of, read_histogram, since
from fourlane.lab.kv_flows import OBJECT_TIMEOUT_S, KvTally
from fourlane.lab.ladder import (
    DECODE,
    GATEWAY,
    KV_SOURCES,
    KV_TARGETS,
    PREFILL,
    ladder_steps,
    ladder_topology,
)
from fourlane.lab.ladder_results import LadderResult, Sample, doubts, sum_up, this_machine
from fourlane.lab.network import Lab
from fourlane.lab.queues import one_fifo
from fourlane.lab.service import LabService, Placement, put_first
from fourlane.lab.topology import LEAVES
from fourlane.lab.verdict import Watch
from fourlane.lanes.render.host import host_queues
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from fourlane.lab.ladder import LadderSettings, LadderStep
    from fourlane.lab.namespaces import Call
    from fourlane.lab.topology import NetworkName, Port
    from fourlane.lanes.render.host import HostQueues

__all__ = ["Climb", "climb"]

NETWORKS: tuple[NetworkName, ...] = ("hpn", "dcn")
PORT_OF: dict[NetworkName, int] = {"hpn": 20_000, "dcn": 30_000}
WARM_UP_REQUESTS = 6
REPORT_S = 0.5
"""Busy ranks report five times a second: after this the last step is in the gateway's figures."""
REQUEST_TIMEOUT_S = 60
CALL_S = 10.0
CALIBRATION_S = 1.5
REDRAW_S = 0.5
"""How long a draw of the hash stands in step 1."""
FRAME, PAYLOAD = 1514, 1448
"""Bytes of a full Ethernet frame as queues count it, and of the TCP payload in it."""
_EXCHANGE = "fourlane_step_exchange_seconds"


class Climb:
    """Lab and services, from construction until `close`.

    Args:
        settings: sizes.
        progress: told what is going on while things come up.

    Raises:
        EnvironmentMissing: this machine cannot hold a lab.
        LabError: the service did not come up.
    """

    def __init__(self, settings: LadderSettings, *, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.no_ecn = why_not_loadable()
        self._stack = ExitStack()
        self._spread = False
        self._markers: list[EcnMarker] = []
        with self._stack:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fourlane-ladder-")))
            progress("hosts and switches")
            self.lab = self._stack.enter_context(Lab(ladder_topology(settings)))
            networks = [network for network in NETWORKS if any(step.kv == network for step in self.steps())]
            self._services = {network: self._service(network) for network in networks}
            self._targets = {network: self._receivers(network) for network in networks}
            for network, service in self._services.items():
                service.wait_ready(progress=lambda missing: progress(f"ranks ({missing})"))
                progress("warming up")
                self._load(network, requests=WARM_UP_REQUESTS, seed=1)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End services and lab."""
        self._stack.close()

    def steps(self) -> list[LadderStep]:
        """Return the steps that were asked for and that this machine can take: without eBPF not those that mark."""
        only = self.settings.only
        steps = [step for step in ladder_steps(self.settings) if not only or step.name in ("1", *only)]
        return [step for step in steps if step.expert_ecn is None or self.no_ecn is None]

    def measure(self, step: LadderStep, *, repeat: int) -> Sample:
        """Make the network what the step says, send the load, and return what was seen.

        Raises:
            LabError: a process ended or did not answer.
        """
        self._make(step)
        service, settings = self._services[step.kv], self.settings
        before = service.get("/metrics")
        senders = [self._send_kv(source, step.kv, seed=100 * repeat + n) for n, source in enumerate(KV_SOURCES)]
        redraws = [] if step.spread else self._redraw(first=1 + 100 * repeat)
        with Watch(self.lab) as watch:
            try:
                records = self._load(step.kv, requests=settings.requests, seed=repeat)
            finally:
                for call in (*redraws, *senders):
                    call.stop()
            watched = watch.end()
        tallies = [msgspec.convert(sender.result(3 * CALL_S), KvTally) for sender in senders]
        time.sleep(REPORT_S)
        after = service.get("/metrics")
        answered = [record for record in records if record["error"] is None]
        offered = sum(tally.offered_bytes for tally in tallies)
        return Sample(
            step=step.name,
            repeat=repeat,
            ttft_s=[record["ttft_s"] or 0.0 for record in answered],
            tpot_s=[_tpot(record) for record in answered],
            failed=len(records) - len(answered),
            exchange_s=_exchange("decode", before, after),
            prefill_exchange_s=_exchange("prefill", before, after),
            kv_share=[share for tally in tallies for share in tally.shares(settings.rate)],
            kv_sent_of_offered=sum(tally.sent_bytes for tally in tallies) / offered if offered else 1.0,
            draws=sum(call.result(CALL_S) for call in redraws),
            uplink_share=self._uplink_share(),
            dropped=self._dropped(),
            marked=self._marked_share(),
            idle=watched.idle,
            lateness_s=watched.lateness_p99_s,
        )

    def calibrate(self) -> float:
        """Return how much longer than its ideal time a KV object takes across an idle network; 1.0 is ideal."""
        self._make(self.steps()[0])
        settings = self.settings
        source = self._send_kv(KV_SOURCES[0], "hpn", seed=1, targets=self._targets["hpn"][1:2], load=0.5)
        time.sleep(CALIBRATION_S)
        tally = msgspec.convert(source.stop().result(3 * CALL_S), KvTally)
        ideal_s = settings.kv_object * FRAME / PAYLOAD / settings.rate.bytes_per_second
        return median(tally.seconds or [OBJECT_TIMEOUT_S]) / ideal_s

    # bringing up

    def _service(self, network: NetworkName) -> LabService:
        folder = self._folder / network
        folder.mkdir()
        placement = Placement(gateway=GATEWAY, prefill=PREFILL, decode=DECODE, kv=network, port=PORT_OF[network])
        # Every step sends the same prompts: with a prefix cache only the first would compute them.
        overrides = (f"exchange.implementation={self.settings.exchange}", "prefill.prefix_cache=false")
        return self._stack.enter_context(LabService(self.lab, placement, folder=folder, overrides=overrides))

    def _receivers(self, network: NetworkName) -> list[tuple[str, int]]:
        targets = []
        for host in KV_TARGETS:
            address = self.lab.address(host, network)
            call = self.lab.call(host, "fourlane.lab.kv_flows:receive_objects", address=address)
            targets.append((address, call.heard(10)))
            self._stack.callback(call.stop)
        return targets

    # the network

    def _make(self, step: LadderStep) -> None:
        for marker in self._markers:
            marker.close()
        self._markers.clear()
        if step.spread != self._spread:
            self.lab.spread("hpn", on=step.spread)
            self._spread = step.spread
        self.lab.lanes(lambda port: self._queues(step, port))
        marking = step.expert_ecn
        if marking is not None:
            for port in self._switch_ports():
                space = Path(f"/proc/{self.lab.spaces.holders[port.namespace]}/ns/net")
                dscp = TrafficClass.EXPERT.dscp
                queues = self._queues(step, port)
                rate = queues.guaranteed(queues.queue(TrafficClass.EXPERT))
                self._markers.append(EcnMarker(space, port.interface, dscp=dscp, thresholds=marking, line=rate))

    def _redraw(self, *, first: int) -> list[Call]:
        """Let both leaves draw their hash anew all the time, from numbered seeds."""
        calls = [
            self.lab.call(leaf, "fourlane.lab.hashing:redraw", interval_s=REDRAW_S, first=first + 50 * number)
            for number, leaf in enumerate(self.lab.topology.switches("hpn")[:LEAVES])
        ]
        for call in calls:
            call.heard(CALL_S)
        return calls

    def _queues(self, step: LadderStep, port: Port) -> HostQueues:
        rate, buffer = self.settings.rate, self.settings.buffer
        if step.plan is None:
            return one_fifo(port.network, rate, buffer=buffer)
        networks: set[NetworkName] = {"hpn", step.kv}
        if port.network not in networks:
            return one_fifo(port.network, rate, buffer=buffer)
        return host_queues(step.plan, port.network, rate, buffer=buffer)

    def _switch_ports(self) -> list[Port]:
        return [port for port in self.lab.topology.ports("hpn") if port.kind != "nic"]

    # the load

    def _send_kv(
        self,
        source: str,
        network: NetworkName,
        *,
        seed: int,
        load: float | None = None,
        targets: list[tuple[str, int]] | None = None,
    ) -> Call:
        settings = self.settings
        call = self.lab.call(
            source,
            "fourlane.lab.kv_flows:send_objects",
            source=self.lab.address(source, network),
            targets=targets or self._targets[network],
            size=int(settings.kv_object),
            per_s=(load or settings.kv_load) * settings.rate.bytes_per_second / settings.kv_object,
            seed=seed,
        )
        call.heard(10)
        return call

    def _load(self, network: NetworkName, *, requests: int, seed: int) -> list[dict[str, float | None]]:
        """Send requests by `fourlane bench serve`, in the gateway's host; return a record of each."""
        settings, report = self.settings, self._folder / "load.json"
        report.unlink(missing_ok=True)
        url = self._services[network].url
        words = [sys.executable, "-m", "fourlane", "bench", "serve", "--url", url]
        words += ["--requests", str(requests), "--rate", str(settings.request_rate), "--warmup", "0"]
        words += ["--input-len", str(settings.prompt), "--output-len", str(settings.output)]
        words += ["--seed", str(seed), "--timeout", f"{REQUEST_TIMEOUT_S}s", "--json", str(report)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = self.lab.start(GATEWAY, words, **pipes, text=True, start_new_session=True)
        put_first(process.pid)
        try:
            said, _ = process.communicate(timeout=requests / settings.request_rate + REQUEST_TIMEOUT_S + 30)
        except subprocess.TimeoutExpired:
            raise LabError(f"lab: the load generator did not end: {requests} requests to {url}") from None
        finally:
            process.kill()
            process.wait(10)
        if not report.exists():
            self._services[network].check()
            raise LabError(f"lab: the load generator measured nothing: {said.strip()[-500:]}")
        return json.loads(report.read_text(encoding="utf-8"))["requests"]

    # what was seen

    def _uplink_share(self) -> float:
        ups = [port for port in self.lab.topology.ports("hpn") if port.kind == "up" and port.namespace == "hpn-leaf0"]
        sent = [sum(lane.sent_bytes for lane in self.lab.count(port).values()) for port in ups]
        return max(sent) / sum(sent) if sum(sent) else 0.0

    def _dropped(self) -> int:
        return sum(lane.dropped for port in self._switch_ports() for lane in self.lab.count(port).values())

    def _marked_share(self) -> float | None:
        counts = [marker.counts() for marker in self._markers]
        packets = sum(count.packets for count in counts)
        return sum(count.marked for count in counts) / packets if packets else None


def _tpot(record: dict[str, float | None]) -> float:
    tokens = record["output_tokens"] or 0
    return ((record["e2e_s"] or 0.0) - (record["ttft_s"] or 0.0)) / max(1, tokens - 1)


def _exchange(pool: str, before: str, after: str) -> tuple[float, float]:
    """Return p50 and p99 of the seconds that a pool's steps waited for the exchange between two scrapes."""
    waits = since(read_histogram(after, _EXCHANGE, pool=pool), read_histogram(before, _EXCHANGE, pool=pool))
    return percentile_of(waits, 0.50) or 0.0, percentile_of(waits, 0.99) or 0.0


def climb(settings: LadderSettings, *, progress: Callable[[str, int, int], None]) -> LadderResult:
    """Bring everything up, take every step `settings.repeats` times in turn, and sum up.

    Args:
        settings: sizes.
        progress: told what is going on, and how many measurements of how many are done.

    Raises:
        EnvironmentMissing: this machine cannot hold a lab.
        LabError: something in it failed or was late.
    """
    with Climb(settings, progress=lambda text: progress(f"bringing up: {text}", 0, 1)) as ladder:
        steps = ladder.steps()
        total = settings.repeats * len(steps)
        progress("calibrating", 0, total)
        stretch = ladder.calibrate()
        samples: list[Sample] = []
        for repeat in range(settings.repeats):
            for step in steps:
                progress(f"step {step.name}: {step.title}", len(samples), total)
                samples.append(ladder.measure(step, repeat=repeat))
        progress("done", total, total)
    results = sum_up(steps, samples)
    marking = [step.name for step in ladder_steps(settings) if step.expert_ecn is not None]
    return LadderResult(
        machine=this_machine(),
        settings=settings,
        steps=results,
        skipped={} if ladder.no_ecn is None else dict.fromkeys(marking, ladder.no_ecn),
        stretch=stretch,
        doubts=doubts(results, stretch=stretch),
        samples=samples,
    )
