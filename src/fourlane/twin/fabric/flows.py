"""Flows as a value: who sends how much to whom, when, in which class, and after which other flows.

Arrays, not objects, so that millions of flows fit: what is the same for all flows is held once. Patterns are in
`fourlane.twin.fabric.workloads`; what classes mean is settled by the scenario.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.quantities import bytes_of, ps_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from fourlane.units import Duration, Size

    Array = npt.NDArray[Any]
    Ints = npt.NDArray[np.int32]
    Longs = npt.NDArray[np.int64]

__all__ = ["Flows", "Steps", "concatenated", "in_turn"]

MOST_KINDS = 16


def _zero() -> Longs:
    return np.zeros(1, np.int64)


def _no_edges() -> Ints:
    return np.zeros((2, 0), np.int32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flows:
    """F flows.

    A flow of size 0 is a gate: no packets, source and destination -1, done as soon as all flows it waits for
    are delivered and its delay is over. Gates let n flows wait for n others by 2n edges instead of n * n.

    Attributes:
        source: i32 [F], endpoints: ports of hosts, as `Topology.endpoint_of` holds them.
        destination: i32 [F].
        size: i64 [F] or [1], bytes.
        message: i64 [F] or [1], bytes of each message within a flow; 0: the flow is one message.
        start: i64 [F] or [1], ps; not before this.
        delay: i64 [F] or [1], ps from there, or from when the last awaited flow was delivered.
        kinds: names of classes; none where all flows are gates, which belong to no class.
        kind: u8 [F] or [1], which of `kinds`.
        qp: u32 [F], destination queue pairs, which tell connections of the same hosts apart; None: each its own.
        pin: u32 [F] or [1], the path of a class routed statically, a byte a tier.
        edges: i32 [2, E]: flow edges[1, e] waits until flow edges[0, e] is delivered.
        groups: names of runs of flows, and the first flow of each.
    """

    source: Ints
    destination: Ints
    size: Longs
    message: Longs = field(default_factory=_zero)
    start: Longs = field(default_factory=_zero)
    delay: Longs = field(default_factory=_zero)
    kinds: tuple[str, ...] = ("expert",)
    kind: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1, np.uint8))
    qp: npt.NDArray[np.uint32] | None = None
    pin: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(1, np.uint32))
    edges: Ints = field(default_factory=_no_edges)
    groups: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def gates(cls, count: int, *, delay: Longs | Duration | str = "0ns", name: str = "gate") -> Flows:
        """Return flows without bytes, for others to wait for."""
        none = np.full(count, -1, np.int32)
        held = _held("delay", delay)
        return cls(source=none, destination=none, size=_zero(), delay=held, kinds=(), groups=((name, 0),))

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all flows."""
        return int(np.broadcast_to(self.size, len(self)).sum())

    def named(self, name: str) -> Flows:
        """Return the same flows as one group of this name."""
        return replace(self, groups=((name, 0),))

    def of_class(self, kind: str) -> Flows:
        """Return the same flows, all in one class."""
        return replace(self, kinds=(kind,), kind=np.zeros(1, np.uint8))

    def starting(self, start: Longs | Duration | str) -> Flows:
        """Return the same flows, none of which starts before `start`: one time for all, or ps as an array."""
        return replace(self, start=_held("start", start, len(self)))

    def delayed(self, delay: Longs | Duration | str) -> Flows:
        """Return the same flows, each waiting `delay` longer once it could start."""
        return replace(self, delay=_held("delay", delay, len(self)))

    def in_messages(self, size: Size | str) -> Flows:
        """Return the same flows, cut into messages of this size, each beginning a packet of its own."""
        return replace(self, message=np.full(1, bytes_of("message", size), np.int64))

    def pinned(self, pin: Array) -> Flows:
        """Return the same flows with a path each (or one for all), for a class routed statically: a byte a tier."""
        held = np.atleast_1d(np.asarray(pin)).astype(np.uint32)
        return replace(self, pin=_fitting("pin", held, len(self)))

    def waiting(self, before: Array, after: Array) -> Flows:
        """Return the same flows, where flow after[e] also waits until flow before[e] is delivered.

        Raises:
            SpecError: there is no such flow, or the arrays differ in length.
        """
        if np.shape(before) != np.shape(after):
            raise SpecError(f"flows: expected as many flows before as after, got {np.shape(before)}, {np.shape(after)}")
        added = np.stack([np.asarray(before), np.asarray(after)]).astype(np.int32).reshape(2, -1)
        if added.size and (added.min() < 0 or added.max() >= len(self)):
            raise SpecError(f"flows: waiting: expected flows 0 to {len(self) - 1}, got {added.min()} to {added.max()}")
        return replace(self, edges=np.concatenate([self.edges, added], axis=1))

    def awaited(self) -> tuple[Longs, Ints]:
        """Return who waits for each flow in compressed rows: offsets [F + 1] ([1] if nobody waits), and flows."""
        if not self.edges.size:
            return _zero(), np.zeros(0, np.int32)
        before, after = self.edges
        first = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(before, minlength=len(self)), out=first[1:])
        ordered = after if (before[1:] >= before[:-1]).all() else after[np.argsort(before, kind="stable")]
        return first, np.ascontiguousarray(ordered)

    def first_and_last(self) -> tuple[Ints, Ints]:
        """Return the flows that wait for no other, and those for which no other waits."""
        waits = np.zeros((2, len(self)), bool)
        waits[0, self.edges[1]] = True
        waits[1, self.edges[0]] = True
        first, last = (np.flatnonzero(~row).astype(np.int32) for row in waits)
        return first, last

    def check(self) -> None:
        """See that there are flows, that their arrays fit each other, and that no flow waits for itself in a circle.

        Raises:
            SpecError: naming the field.
        """
        if not len(self):
            raise SpecError("flows: expected at least one flow, got none")
        if not self.kinds:
            raise SpecError("flows: expected at least one flow with bytes, got gates only")
        if len(self.kinds) > MOST_KINDS:
            raise SpecError(f"flows: kinds: expected at most {MOST_KINDS} classes, got {len(self.kinds)}")
        for name in ("size", "message", "start", "delay", "kind", "pin"):
            _fitting(name, getattr(self, name), len(self))
        if len(self.destination) != len(self):
            raise SpecError(f"flows: destination: expected {len(self)} entries, got {len(self.destination)}")
        if self.edges.size and (self.edges[0] >= self.edges[1]).any():
            _refuse_circles(len(self), self.edges)


def _refuse_circles(count: int, edges: Ints) -> None:
    """Take away flows that wait for nobody, again and again; what is left waits in a circle."""
    awaited = np.bincount(edges[1], minlength=count)
    order = np.argsort(edges[0], kind="stable")
    first = np.searchsorted(edges[0][order], np.arange(count + 1))
    after = edges[1][order]
    ready = np.flatnonzero(awaited == 0)
    taken = len(ready)
    while len(ready):
        lengths = first[ready + 1] - first[ready]
        places = np.repeat(first[ready] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        freed, times = np.unique(after[places], return_counts=True)
        awaited[freed] -= times
        ready = freed[awaited[freed] == 0]
        taken += len(ready)
    if taken < count:
        raise SpecError(f"flows: flow {int(np.flatnonzero(awaited)[0])} waits in a circle of flows for itself")


def _held(name: str, value: Longs | Duration | str, count: int | None = None) -> Longs:
    """Return ps as an array: of one time for all, or as given."""
    if not isinstance(value, np.ndarray):
        return np.full(1, ps_of(name, value), np.int64)
    if not np.issubdtype(value.dtype, np.integer):
        raise SpecError(f"flows: {name}: expected whole ps as an array of integers, got dtype {value.dtype}")
    if value.size and value.min() < 0:
        raise SpecError(f"flows: {name}[{int(np.argmin(value))}]: expected at least 0 ps, got {value.min()}")
    held = value.astype(np.int64)
    return held if count is None else _fitting(name, held, count)


def _fitting(name: str, array: Array, count: int) -> Any:
    if array.shape not in ((count,), (1,)):
        raise SpecError(f"flows: {name}: expected one entry or {count}, got {list(array.shape)}")
    return array


def concatenated(parts: Sequence[Flows]) -> Flows:
    """Return the flows of all parts, each part as it is, none waiting for another."""
    if len(parts) == 1:
        return parts[0]
    lengths = [len(part) for part in parts]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    kinds = tuple(dict.fromkeys(kind for part in parts for kind in part.kinds))
    numbers = [np.array([kinds.index(kind) for kind in part.kinds] or [0], np.uint8)[part.kind] for part in parts]
    together = {
        name: _joined([getattr(part, name) for part in parts], lengths)
        for name in ("size", "message", "start", "delay", "pin")
    }
    return Flows(
        source=_joined([part.source for part in parts], lengths, whole=True),
        destination=_joined([part.destination for part in parts], lengths, whole=True),
        **together,
        kinds=kinds,
        kind=_joined(numbers, lengths),
        qp=_qps(parts, offsets),
        edges=np.concatenate([part.edges + np.int32(at) for part, at in zip(parts, offsets, strict=False)], axis=1),
        groups=tuple(
            (name, at + first) for part, at in zip(parts, offsets, strict=False) for name, first in part.groups
        ),
    )


def _joined(arrays: Sequence[Array], lengths: Sequence[int], *, whole: bool = False) -> Any:
    """Concatenate; arrays that all hold the same one value stay one value."""
    constant = not whole and all(len(array) == 1 for array in arrays)
    if constant and all(array[0] == arrays[0][0] for array in arrays):
        return arrays[0]
    full = [np.broadcast_to(array, count) for array, count in zip(arrays, lengths, strict=True)]
    return np.concatenate(full) if full else np.zeros(0, np.int32)


def _qps(parts: Sequence[Flows], offsets: Sequence[int]) -> npt.NDArray[np.uint32] | None:
    """Return queue pairs: as given, and for parts without any, numbers no other part has."""
    given = [part.qp for part in parts if part.qp is not None]
    if not given:
        return None
    free = int(max(qp.max(initial=0) for qp in given)) + 1
    own = [np.arange(at, at + len(part), dtype=np.uint32) for part, at in zip(parts, offsets, strict=False)]
    return np.concatenate(
        [part.qp if part.qp is not None else qp + np.uint32(free) for part, qp in zip(parts, own, strict=True)]
    )


class Steps:
    """Workloads some of which begin only when others have been delivered: layers, phases of a collective.

    A step that is waited for ends in a gate, and a step that waits begins with one, so that waiting costs as
    many edges as there are flows.
    """

    def __init__(self) -> None:
        self._parts: list[Flows] = []
        self._length = 0
        self._span: list[tuple[int, Flows]] = []
        self._end: dict[int, int] = {}
        self._edges: list[tuple[Array, Array]] = []

    def add(
        self, flows: Flows, *, after: Iterable[int] = (), delay: Duration | str = "0ns", name: str | None = None
    ) -> int:
        """Add a step and return its number.

        Args:
            flows: what the step sends; its own order of flows stays.
            after: numbers of the steps that must be delivered first.
            delay: from then until the step's first flows start.
            name: what its flows are called; None: as they are.

        Raises:
            SpecError: no such step.
        """
        before = sorted(set(after))
        for step in before:
            if not 0 <= step < len(self._span):
                raise SpecError(f"steps: after: expected steps added before, 0 to {len(self._span) - 1}, got {step}")
        part = flows if name is None else flows.named(name)
        first, _ = part.first_and_last()
        ends = [self._end_of(step) for step in before]
        gate = self._append(Flows.gates(1, delay=delay, name="begin")) if ends or ps_of("delay", delay) else None
        at = self._append(part)
        if gate is not None:
            self._edges.append((np.array(ends, np.int32), np.full(len(ends), gate, np.int32)))
            self._edges.append((np.full(len(first), gate, np.int32), first + np.int32(at)))
        self._span.append((at, part))
        return len(self._span) - 1

    def flows(self) -> Flows:
        """Return all steps as one value.

        Raises:
            SpecError: there is no step.
        """
        if not self._parts:
            raise SpecError("steps: expected at least one step, got none")
        together = concatenated(self._parts)
        if not self._edges:
            return together
        before, after = (np.concatenate(column) for column in zip(*self._edges, strict=True))
        return together.waiting(before, after)

    def _append(self, part: Flows) -> int:
        at = self._length
        self._parts.append(part)
        self._length += len(part)
        return at

    def _end_of(self, step: int) -> int:
        """Return the gate that opens when a step has been delivered."""
        if step not in self._end:
            at, part = self._span[step]
            _, last = part.first_and_last()
            gate = self._append(Flows.gates(1, name="end"))
            self._edges.append((last + np.int32(at), np.full(len(last), gate, np.int32)))
            self._end[step] = gate
        return self._end[step]


def in_turn(parts: Sequence[Flows], *, gap: Duration | str = "0ns") -> Flows:
    """Return flows where each part begins once the one before has been delivered, `gap` later.

    Raises:
        SpecError: no part.
    """
    steps = Steps()
    for number, part in enumerate(parts):
        steps.add(part, after=[number - 1] if number else [], delay=gap if number else "0ns")
    return steps.flows()
