"""Flows between a lab's hosts, as experiments need them: bulk in the background, ping-pong and incast in front."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Self

from fourlane.lab.probes import SILENCE_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from fourlane.lab.namespaces import Call
    from fourlane.lab.network import Lab
    from fourlane.spec.cluster import NetworkName
    from fourlane.units import Rate

__all__ = ["FRAME", "PAYLOAD", "Bulk", "PingPong", "goodput_limit", "ideal_s", "incast", "percentile"]

HEARD_S = 15.0
"""How long a probe may take to start or to end, on a busy machine."""
FRAME, PAYLOAD = 1514, 1448
"""Bytes of a full Ethernet frame as the queues count it, and of the TCP payload in it (with timestamps)."""
HEADERS = FRAME - PAYLOAD
PROBES = "fourlane.lab.probes:"


def goodput_limit(rate: Rate) -> float:
    """Return the most payload a line carries, in bit/s: 0.956 of its rate."""
    return rate * PAYLOAD / FRAME


def ideal_s(size: int, rate: Rate, *, mtu: int = 1500) -> float:
    """Return how long a line is busy with a message of `size` bytes."""
    packets = -(-size // (mtu + FRAME - 1500 - HEADERS))
    return (size + packets * HEADERS) * 8 / rate


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Bulk:
    """Flows that send as much as the network takes, from one or more hosts to one, until `close`.

    Args:
        senders: hosts; each sends `flows` flows.
        ports: the flows' own port and that of the receiver, one pair a flow of each sender; any if None.
    """

    def __init__(
        self,
        lab: Lab,
        senders: Sequence[str],
        receiver: str,
        network: NetworkName,
        *,
        dscp: int,
        flows: int = 1,
        ports: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        wanted = ports or [(0, 0)] * flows
        self._sinks: list[Call] = []
        self._sources: list[Call] = []
        listening = []
        for _, port in wanted if ports else [(0, 0)]:
            sink = lab.call(receiver, PROBES + "receive", port=port, dscp=dscp)
            self._sinks.append(sink)
            listening.append(sink.heard(HEARD_S))
        for sender in senders:
            source = lab.call(
                sender,
                PROBES + "send",
                to=lab.address(receiver, network),
                ports=listening if ports else listening * flows,
                dscp=dscp,
                source_ports=[own for own, _ in wanted] if ports else None,
            )
            self._sources.append(source)
        for source in self._sources:
            source.heard(HEARD_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for call in (*self._sources, *self._sinks):
            call.close()

    def end(self) -> Tally:
        """End the flows and return what came."""
        for source in self._sources:
            source.stop().result(HEARD_S)
        return Tally([sink.stop().result(HEARD_S) for sink in self._sinks])


class Tally:
    """How many bytes had come in by when."""

    def __init__(self, marks: Sequence[Sequence[tuple[float, int]]]) -> None:
        self._marks = [([at for at, _ in each], [total for _, total in each]) for each in marks]

    def rate(self, begin: float, end: float) -> float:
        """Return the payload that came between two times of CLOCK_MONOTONIC, in bit/s."""
        received = sum(_at(*each, end) - _at(*each, begin) for each in self._marks)
        return received * 8 / (end - begin)


def _at(times: Sequence[float], totals: Sequence[int], when: float) -> float:
    """Return the bytes at a time, between two marks in proportion."""
    after = bisect_right(times, when)
    if after == 0:
        return 0.0
    if after == len(times):
        return float(totals[-1])
    before = after - 1
    share = (when - times[before]) / (times[after] - times[before])
    return totals[before] + share * (totals[after] - totals[before])


class PingPong:
    """Messages from one host to another, each after the (one-byte) answer to the one before."""

    def __init__(self, lab: Lab, source: str, target: str, network: NetworkName, *, dscp: int, size: int) -> None:
        self._echo = lab.call(target, PROBES + "echo", port=0, dscp=dscp, size=size)
        self._port = self._echo.heard(HEARD_S)
        self._settings = {"to": lab.address(target, network), "port": self._port, "dscp": dscp, "size": size}
        self._lab, self._source = lab, source

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._echo.close()

    def run(self, seconds: float) -> tuple[list[float], tuple[float, float]]:
        """Play for some seconds.

        Returns:
            Seconds that each message took, and when the game began and ended.
        """
        call = self._lab.call(self._source, PROBES + "ping", **self._settings, count=0)
        call.heard(HEARD_S)
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        return call.stop().result(SILENCE_S + HEARD_S), (began, ended)

    def count(self, messages: int, *, pause_s: float = 0.0) -> list[float]:
        """Play so many messages, with a pause before each."""
        call = self._lab.call(self._source, PROBES + "ping", **self._settings, count=messages, pause_s=pause_s)
        call.heard(HEARD_S)
        return call.result(SILENCE_S + HEARD_S)


def incast(
    lab: Lab, middle: str, peers: Sequence[str], network: NetworkName, *, dscp: int, size: int, rounds: int
) -> list[float]:
    """Let peers answer one request at once, again and again; return the seconds each round took."""
    answers = [lab.call(peer, PROBES + "answer", port=0, dscp=dscp, size=size) for peer in peers]
    try:
        ends = [(lab.address(peer, network), call.heard(HEARD_S)) for peer, call in zip(peers, answers, strict=True)]
        call = lab.call(middle, PROBES + "ask_all", peers=ends, dscp=dscp, size=size, count=rounds)
        call.heard(HEARD_S)
        return call.result(SILENCE_S + HEARD_S)
    finally:
        for call in answers:
            call.close()
