"""What can be set of a scenario: classes, queues, packets, pauses, hashing, adaptive routing, DCQCN, failures, limits.

Structs as a scenario file holds them; a field that is None is settled by the lane plan, or else by the defaults in
`fourlane.twin.fabric.lane_queues`. Not for topologies and workloads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fourlane.lanes.plan import Ecn
from fourlane.spec.reading import Fault
from fourlane.twin.fabric.compiled import Dcqcn
from fourlane.units import Duration, Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Adaptive",
    "ClassSettings",
    "DcqcnSettings",
    "Failure",
    "Flowlets",
    "Limits",
    "Packets",
    "Pauses",
    "QueueSettings",
    "Sampling",
    "Settings",
    "settings_faults",
]

LONGEST_PACKET = 1 << 16

Routing = Literal["ecmp", "qp-hash", "flowlet", "spray", "spray-random", "adaptive", "static"]
Transport = Literal["go-back-n", "out-of-order", "reorder-buffer"]
Congestion = Literal["none", "dcqcn", "clear-to-send"]


class ClassSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How flows of a class are sent and find their way.

    `queue`, `ack_queue`, `cnp_queue` are names of queues. `routing`: "ecmp" hashes addresses and UDP ports,
    "qp-hash" the destination queue pair as well; "spray" takes paths packet by packet in turn, "spray-random" by
    lot; "static" takes the path pinned to each flow. `source_port` "fixed": senders write the same UDP source
    port for all connections. `window` bounds the bytes under way ("0B": no bound), or `window_bdp` does in
    bandwidth-delay products of the longest path. `rto`: repeat after so long without progress ("0ns": never).
    `ack_every`: packets an acknowledgement. `grants`: senders a receiver lets send at once (clear-to-send).
    `ecn`: packets say that they can be marked. `dscp`: what senders write, if not the lane's own.
    """

    queue: str | None = None
    ack_queue: str | None = None
    cnp_queue: str | None = None
    routing: Routing | None = None
    transport: Transport | None = None
    congestion: Congestion | None = None
    source_port: Literal["per-connection", "fixed"] | None = None
    window: Size | None = None
    window_bdp: float | None = None
    rto: Duration | None = None
    ack_every: int | None = None
    grants: int | None = None
    trim: bool | None = None
    ecn: bool | None = None
    dscp: int | None = None


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How every port treats a queue; see `fourlane.lanes.plan.Lane` for what the fields mean.

    `service`: how a host takes turns among its flows in the queue, packet by packet or flow after flow.
    """

    scheduler: Literal["strict", "dwrr"] | None = None
    weight: int | None = None
    cap: int | None = None
    alpha: float | None = None
    reserved: Size | None = None
    lossless: bool | None = None
    ecn: Literal["off"] | Ecn | None = None
    service: Literal["round-robin", "in-order"] | None = None


class Packets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes on the wire: the most payload of a packet, what comes on top, an acknowledgement, what trimming leaves."""

    payload: Size = Size(4096)
    header: Size = Size(64)
    ack: Size = Size(64)
    trimmed: Size | None = None


class Pauses(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Priority flow control. None: as the lane plan says, or as computed.

    `response`: from a pause's arrival to silence. `headroom`: of one lossless queue on every switch port.
    `xon_offset`: how far below its threshold a queue must fall before its sender may go on.
    """

    response: Duration = Duration(0)
    headroom: Size | None = None
    xon_offset: Size | None = None
    watchdog: bool | None = None
    detection: Duration | None = None
    restoration: Duration | None = None
    action: Literal["drop", "forward"] | None = None


class Flowlets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flowlet routing: a gap that lets a flow change its path, and entries of each switch's table."""

    gap: Duration = Duration.parse("5us")
    entries: int = 4096


class Adaptive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What adaptive routing sees of a queue: its depth in steps of `quantum`, up to `levels`, and how old.

    The default step is a packet. A signal exact to the byte is worse: it shuns a port for an acknowledgement that
    waits there, so that packets of all leaves meet at the same spines (P128_2MB: 65 to 76 us against 49 to 51).
    """

    quantum: Size = Size(4160)
    levels: int | None = None
    staleness: Duration = Duration(0)


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ports whose queues and counters are noted every `interval` ("0ns": never): those of `nodes`, or all."""

    interval: Duration = Duration(0)
    nodes: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ends a run that does not end by itself. None: far more events than the flows' packets can need."""

    time: Duration = Duration.parse("60s")
    events: int | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link ("leaf0-spine1"; `cable` says which of several) or a switch ("spine3") that fails.

    Ports go down `at` once, and neighbours use what is left; routing tables follow `reroute` later, at the
    failure and at the repair.
    """

    link: str | None = None
    cable: int | None = None
    switch: str | None = None
    at: Duration = Duration(0)
    repaired: Duration | None = None
    reroute: Duration = Duration.parse("100us")

    @property
    def what(self) -> str:
        """Return what fails."""
        return self.link or self.switch or "nothing"


class DcqcnSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """DCQCN's parameters: a published set, and what differs from it.

    Sets: "paper" (Zhu et al., SIGCOMM 2015, for 40G; hyper increase as in QCN, ten times the additive),
    "nic" (defaults of ConnectX-4 and later: NVIDIA DOCA "DCQCN CC Parameters"; rpg_byte_reset taken as bytes),
    "simulations" (those of the HPCC and SimAI simulators for 400G: a notification for every mark, no byte counter).
    """

    preset: Literal["paper", "nic", "simulations"] = "nic"
    g: float | None = None
    alpha0: float | None = None
    alpha_period: Duration | None = None
    cnp_interval: Duration | None = None
    decrease_gate: Duration | None = None
    max_decrease: float | None = None
    timer: Duration | None = None
    byte_counter: Size | None = None
    fast_rounds: int | None = None
    rate_ai: Rate | None = None
    rate_hai: Rate | None = None
    min_rate: Rate | None = None
    clamp: bool | None = None

    def compiled(self) -> Dcqcn:
        """Return the parameters as a simulator reads them."""
        found: dict[str, Any] = dict(_PRESETS[self.preset])
        for name, value in msgspec.structs.asdict(self).items():
            if name != "preset" and value is not None:
                found[name] = float(value) if name in _FLOATS else int(value)
        return Dcqcn(**found)


_FLOATS = frozenset({"g", "alpha0", "max_decrease", "rate_ai", "rate_hai", "min_rate"})
_US = 10**6
_PRESETS: dict[str, dict[str, float]] = {
    "paper": {},
    "nic": {
        "g": 5 / 1024,
        "alpha0": 1023 / 1024,
        "alpha_period": _US,
        "cnp_interval": 4 * _US,
        "decrease_gate": 4 * _US,
        "timer": 300 * _US,
        "byte_counter": 32767,
        "fast_rounds": 1,
        "rate_ai": 5e6,
        "rate_hai": 50e6,
        "min_rate": 1e6,
        "clamp": 0,
    },
    "simulations": {
        "alpha_period": _US,
        "cnp_interval": 0,
        "decrease_gate": 4 * _US,
        "timer": 900 * _US,
        "byte_counter": 1 << 44,
        "fast_rounds": 1,
        "rate_ai": 50e6,
        "rate_hai": 100e6,
        "min_rate": 100e6,
        "clamp": 0,
    },
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a scenario.

    `every` holds for each class that `classes` does not say otherwise of. Without a lane plan, `lanes` says
    whether all classes share one queue or have their own. `hash_seeds` "same": all tiers hash alike, so that
    what collided once collides again.
    """

    seed: int = 1
    lanes: Literal["shared", "own"] = "shared"
    every: ClassSettings = ClassSettings()
    classes: dict[str, ClassSettings] = {}
    queues: dict[str, QueueSettings] = {}
    packets: Packets = Packets()
    pauses: Pauses = Pauses()
    hash_seeds: Literal["per-tier", "same"] = "per-tier"
    flowlets: Flowlets = Flowlets()
    adaptive: Adaptive = Adaptive()
    dcqcn: DcqcnSettings = DcqcnSettings()
    failures: tuple[Failure, ...] = ()
    sampling: Sampling = Sampling()
    limits: Limits = Limits()


def settings_faults(settings: Settings) -> Iterator[Fault]:
    """Yield what is out of range, whatever the topology and the flows."""
    packets, limits = settings.packets, settings.limits
    longest = Size(LONGEST_PACKET - int(packets.header))
    if not 1 <= packets.payload <= longest:
        yield Fault("packets.payload", f"expected 1B to {longest}, with its header, got {packets.payload}")
    for name in ("ack", "trimmed"):
        size = getattr(packets, name)
        if size is not None and not 1 <= size <= LONGEST_PACKET:
            yield Fault(f"packets.{name}", f"expected 1B to {Size(LONGEST_PACKET)}, got {size}")
    for place, value, least, most in (
        ("seed", settings.seed, 0, (1 << 64) - 1),
        ("flowlets.entries", settings.flowlets.entries, 1, 1 << 24),
        ("adaptive.quantum", settings.adaptive.quantum, 1, 1 << 40),
        ("adaptive.levels", settings.adaptive.levels, 1, 1 << 40),
        ("limits.events", limits.events, 1, 1 << 62),
        ("limits.time", limits.time, 1, 1 << 60),
    ):
        if value is not None and not least <= value <= most:
            kind = type(value)
            yield Fault(place, f"expected {kind(least)} to {kind(most)}, got {value}")
