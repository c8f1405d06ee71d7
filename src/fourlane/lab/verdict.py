"""Whether what a lab shows can be believed: a self-check before a run, a watch during it, and a verdict.

The self-check: every lane's class counts a packet with its mark and no other; a message of 256 KiB takes the time
the line needs for it; short messages on an idle line are quick. The watch: how late timers rang (queues send when a
timer says so, so a processor with too much to do shows there), how much of the processor other machines took. What else
this machine does is no fault by itself: the lab's processes go first where this user may say so.
"""

from __future__ import annotations

import socket
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

import msgspec

from fourlane.lab.flows import HEARD_S, PROBES, PingPong, ideal_s, percentile
from fourlane.spec.traffic import TrafficClass, dscp_to_tos

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from fourlane.lab.keeper import Channel
    from fourlane.lab.network import Lab
    from fourlane.spec.cluster import NetworkName

__all__ = ["Calibration", "Verdict", "Watch", "calibrate", "judge", "send_marked"]

MESSAGE = 256 << 10
MESSAGES = 15
MOST_OFF = 0.05
"""How far from its ideal time a message of 256 KiB may be."""
MOST_IDLE_P99_S = 1e-3
MOST_LATENESS_S = 2e-3
MOST_STOLEN = 0.05
MARKED = 20
CLOCK_TICKS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-check found: `miscounts` and `untimely` say what is wrong with lanes and with times, if anything.

    Units:
        stretch: time of a 256 KiB message over the line's ideal; idle_p99_s: seconds of a 64-byte round trip.
    """

    stretch: float
    idle_p99_s: float
    miscounts: tuple[str, ...] = ()
    untimely: tuple[str, ...] = ()


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did during a run: shares of processor time, p99 of timers' lateness, packets dropped."""

    idle: float
    stolen: float
    lateness_p99_s: float
    dropped: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a run counts, and if not, why not."""

    valid: bool
    reasons: tuple[str, ...]
    calibration: Calibration
    watched: Watched

    def __str__(self) -> str:
        """Say it in a line."""
        if not self.valid:
            return "invalid: " + "; ".join(self.reasons)
        return (
            f"valid (256 KiB take {self.calibration.stretch:.3f} of their ideal time; timers at most "
            f"{self.watched.lateness_p99_s * 1e6:.0f} us late in 99 % of cases)"
        )


def calibrate(lab: Lab, source: str, target: str, network: NetworkName = "hpn") -> Calibration:
    """Check a lab whose interfaces have lanes: counters, the time of a long message, that of a short one."""
    miscounts = _counter_faults(lab, source, target, network)
    untimely = []
    rate = lab.topology.network(network).rate
    with PingPong(lab, source, target, network, dscp=TrafficClass.EXPERT.dscp, size=MESSAGE) as game:
        # One right after the other: the credit that an idle queue collects is then spent by the second.
        took = median(game.count(MESSAGES)[3:])
    stretch = took / ideal_s(MESSAGE, rate)
    if abs(stretch - 1) > MOST_OFF:
        untimely.append(f"a message of 256 KiB takes {stretch:.2f} of its ideal time, expected 0.95 to 1.05")
    with PingPong(lab, source, target, network, dscp=TrafficClass.EXPERT.dscp, size=64) as game:
        idle = percentile(game.count(300), 0.99)
    if idle > MOST_IDLE_P99_S:
        untimely.append(f"1 % of round trips on an idle line take over {idle * 1e3:.1f} ms, expected at most 1 ms")
    return Calibration(stretch=stretch, idle_p99_s=idle, miscounts=tuple(miscounts), untimely=tuple(untimely))


def _counter_faults(lab: Lab, source: str, target: str, network: NetworkName) -> list[str]:
    """Send marked packets lane by lane and see which classes count them, at the NIC and at the switch."""
    faults = []
    for port in (lab.topology.nic(source, network), lab.topology.switch_port(target, network)):
        queues = lab.read_back(port)
        for queue in queues.queues:
            before = lab.count(port)
            lab.call(
                source, f"{__name__}:send_marked", to=lab.address(target, network), dscp=queue.dscps[0], count=MARKED
            ).result(HEARD_S)
            moved = {kind: counted.since(before[kind]).sent_packets for kind, counted in lab.count(port).items()}
            # The default lane carries ARP as well.
            wrong = [
                f"{kind.value} {packets}"
                for kind, packets in moved.items()
                if kind is not queues.default and packets != (MARKED if kind is queue.traffic_class else 0)
            ]
            if wrong or moved[queue.traffic_class] < MARKED:
                counted = ", ".join(wrong) or f"{queue.traffic_class.value} {moved[queue.traffic_class]}"
                faults.append(
                    f"{port.namespace}: {port.interface}: {MARKED} packets of {queue.traffic_class.value} were "
                    f"counted as {counted}"
                )
    return faults


def send_marked(channel: Channel, *, to: str, dscp: int, count: int) -> None:
    """Send UDP packets with a mark; nobody needs to listen. Runs inside a host."""
    del channel
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp_to_tos(dscp))
        for _ in range(count):
            sock.sendto(bytes(64), (to, 9))


class Watch:
    """Watch the machine while a run goes on; `end` says what was seen."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._timers = lab.call(lab.topology.hosts[0], PROBES + "timers")
        self._timers.heard(HEARD_S)
        self._ticks = _ticks()
        self._dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timers.close()

    def note_drops(self) -> int:
        """Add up what queues have dropped since they were made; call before they are replaced."""
        ports = self._lab.topology.ports()
        dropped = sum(counted.dropped for port in ports for counted in self._lab.count(port).values())
        self._dropped += dropped
        return dropped

    def end(self) -> Watched:
        """Stop and return what was seen."""
        late = self._timers.stop().result(HEARD_S)
        spent = {name: after - before for name, before, after in zip(CLOCK_TICKS, self._ticks, _ticks(), strict=True)}
        total = max(1, sum(spent.values()))
        return Watched(
            idle=(spent["idle"] + spent["iowait"]) / total,
            stolen=spent["steal"] / total,
            lateness_p99_s=percentile(late, 0.99) if late else 0.0,
            dropped=self._dropped,
        )


def judge(
    calibration: Calibration,
    watched: Watched,
    *,
    doubts: Sequence[str] = (),
    most_late_s: float | None = MOST_LATENESS_S,
) -> Verdict:
    """Say whether a run counts.

    Args:
        doubts: what the experiment itself found wrong.
        most_late_s: how late timers may be (p99): 2 ms where latencies are claimed, more where only throughput over a
            second is; None where no times are claimed, so that none need have been kept.
    """
    reasons = [*calibration.miscounts, *doubts]
    if most_late_s is not None:
        reasons += calibration.untimely
        if watched.lateness_p99_s > most_late_s:
            late, most = watched.lateness_p99_s * 1e3, most_late_s * 1e3
            reasons.append(f"1 % of timers were over {late:.1f} ms late, expected at most {most:.0f} ms")
        if watched.stolen > MOST_STOLEN:
            reasons.append(f"other machines took {watched.stolen:.0%} of the processors, expected at most 5 %")
    return Verdict(valid=not reasons, reasons=tuple(reasons), calibration=calibration, watched=watched)


def _ticks() -> list[int]:
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return [int(field) for field in line.split()[1 : 1 + len(CLOCK_TICKS)]]
