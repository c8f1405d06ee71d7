"""Mark ECN at a port: a phantom queue a class, in eBPF, where the kernel has neither RED nor CoDel.

The program runs for every packet a port is about to queue (clsact egress). For packets of one DSCP
it keeps the backlog that a queue drained at a little under line rate would have; between `kmin` and
`kmax` it marks with a probability that rises to `pmax`, above `kmax` always, as WRED does. Only
packets that say they understand ECN (ECT) can be marked; nothing is ever dropped here. IPv4 only,
like the lab. Filter and program go with the port.

Source: phantom queues: Alizadeh et al., "Less is More" (HULL), NSDI 2012, section 3.1.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.lab.bpf import ArrayMap, Assembler, load_classifier
from fourlane.lab.traffic_control import add_classifier, remove_classifier

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.plan import Ecn
    from fourlane.units import Rate

__all__ = ["EcnCounts", "EcnMarker"]

DRAIN = 0.98
"""The phantom queue is drained a little slower than the real one, so that it fills first."""
LONGEST = 4
"""The phantom backlog stops growing at this many `kmax`, so that it empties soon after a burst."""

_FIXED_POINT_BITS = 16
_ENTRY = struct.Struct("<QQQQ")  # when the phantom queue will be empty; packets; over the threshold; marked
_EMPTY_AT, _PACKETS, _OVER, _MARKED = 0, 8, 16, 24
_PROTOCOL, _WIRE_LENGTH = 16, 160  # offsets in struct __sk_buff
_TOS_OFFSET = 15  # Ethernet's 14 bytes, then IPv4's version and length
_IPV4_SWAPPED = 0x0008  # htons(ETH_P_IP)
_LOOK_UP, _CLOCK_NS, _RANDOM_32, _SET_CE = 1, 5, 7, 97  # helpers of the kernel
_CONTINUE = -1  # TC_ACT_UNSPEC: go on to the next filter


@dataclass(frozen=True, slots=True)
class EcnCounts:
    """What a marker saw: packets of its class, those over the threshold, those it marked (they were ECT)."""

    packets: int
    over: int
    marked: int


class EcnMarker:
    """Marks one class at one port, from construction until `close`, or until the port or its namespace goes.

    Args:
        namespace: the network namespace of the port, such as /proc/PID/ns/net; None for this process's.
        device: the port.
        dscp: of the class.
        thresholds: from the lane plan.
        line: rate of the port, or what of it the class is guaranteed; the phantom queue is drained at `DRAIN` of it.

    Raises:
        EnvironmentMissing: eBPF may not be loaded here, or the filter was refused.
    """

    def __init__(self, namespace: Path | None, device: str, *, dscp: int, thresholds: Ecn, line: Rate) -> None:
        self._namespace, self._device, self._order = namespace, device, 100 + dscp
        self._map = ArrayMap(_ENTRY.size)
        try:
            code = phantom_queue(self._map.descriptor, dscp=dscp, thresholds=thresholds, line=line)
            program = load_classifier(code, f"ecn_dscp_{dscp}")
            try:
                add_classifier(namespace, device, program, name=f"ecn-dscp-{dscp}", order=self._order)
            finally:
                os.close(program)
        except BaseException:
            self._map.close()
            raise

    def counts(self) -> EcnCounts:
        """Return the counts since the beginning."""
        _, packets, over, marked = _ENTRY.unpack(self._map.read())
        return EcnCounts(packets, over, marked)

    def close(self) -> None:
        """Stop marking.

        Raises:
            EnvironmentMissing: the port is gone already.
        """
        self._map.close()
        remove_classifier(self._namespace, self._device, order=self._order)


def phantom_queue(map_descriptor: int, *, dscp: int, thresholds: Ecn, line: Rate) -> bytes:
    """Assemble the program: r6 packet, r7 map entry, r8 now, r9 backlog; times in ns.

    Without locks: the moment the queue will be empty is one 64-bit word. It is first brought up to
    now (compare and exchange: whoever comes first), then moved on by the packet's time (fetch and
    add), so that no packet is lost from the sum when two processors send at once.
    """
    ns = _Times(thresholds, line)
    program = Assembler()
    program.move(6, register=1)
    program.load(0, 6, _PROTOCOL, width=4)
    program.jump_if(0, "!=", "done", value=_IPV4_SWAPPED)
    program.load_packet_byte(_TOS_OFFSET)
    program.compute(0, "&", value=0xFC)
    program.jump_if(0, "!=", "done", value=dscp << 2)
    _find_entry(program, map_descriptor)
    _count(program, _PACKETS)
    program.call(_CLOCK_NS)
    program.move(8, register=0)
    _enqueue(program, ns)
    _choose(program, ns)
    program.label("mark")
    _count(program, _OVER)
    program.move(1, register=6)
    program.call(_SET_CE)
    program.jump_if(0, "==", "done", value=0)  # not ECT: cannot be marked
    _count(program, _MARKED)
    program.label("done")
    program.move(0, value=_CONTINUE)
    program.exit()
    return program.assemble()


class _Times:
    """Thresholds as times at the phantom queue's rate, and constants for integer arithmetic."""

    def __init__(self, thresholds: Ecn, line: Rate) -> None:
        ns_per_byte = 8e9 / (DRAIN * line)
        self.per_byte = round(ns_per_byte * (1 << _FIXED_POINT_BITS))
        self.kmin = round(thresholds.kmin * ns_per_byte)
        self.kmax = max(round(thresholds.kmax * ns_per_byte), self.kmin + 1)
        self.longest = self.kmax * LONGEST
        self.slope = round(thresholds.pmax * (1 << 32) * 256 / (self.kmax - self.kmin))
        """Of the probability, in 2^-32 a ns, times 256."""


def _find_entry(program: Assembler, map_descriptor: int) -> None:
    """Write r7 = the map's only entry."""
    program.store(10, -4, 0, width=4)
    program.map_address(1, map_descriptor)
    program.move(2, register=10)
    program.compute(2, "+", value=-4)
    program.call(_LOOK_UP)
    program.jump_if(0, "==", "done", value=0)
    program.move(7, register=0)


def _enqueue(program: Assembler, ns: _Times) -> None:
    """Write r9 = phantom backlog after this packet."""
    program.load(0, 7, _EMPTY_AT, width=8)
    program.jump_if(0, ">=", "busy", register=8)
    program.move(1, register=8)
    program.atomic_compare_exchange(7, _EMPTY_AT, 1)
    program.label("busy")
    program.load(9, 7, _EMPTY_AT, width=8)
    program.compute(9, "-", register=8)
    program.move_wide(1, ns.longest)
    program.jump_if(9, ">", "full", register=1)
    program.load(2, 6, _WIRE_LENGTH, width=4)
    program.move_wide(1, ns.per_byte)
    program.compute(2, "*", register=1)
    program.compute(2, ">>", value=_FIXED_POINT_BITS)
    program.move(9, register=2)
    program.atomic_fetch_add(7, _EMPTY_AT, 2)
    program.compute(9, "+", register=2)
    program.compute(9, "-", register=8)
    program.label("full")


def _choose(program: Assembler, ns: _Times) -> None:
    """Jump to "done" below kmin, to "mark" above kmax, between them by chance."""
    program.move_wide(1, ns.kmin)
    program.jump_if(9, "<=", "done", register=1)
    program.move_wide(2, ns.kmax)
    program.jump_if(9, ">=", "mark", register=2)
    program.compute(9, "-", register=1)
    program.move_wide(1, ns.slope)
    program.compute(9, "*", register=1)
    program.compute(9, ">>", value=8)
    program.call(_RANDOM_32)
    program.jump_if(0, ">=", "done", register=9)


def _count(program: Assembler, offset: int) -> None:
    """Add one to a counter of the entry."""
    program.move(1, value=1)
    program.atomic_add(7, offset, 1)
