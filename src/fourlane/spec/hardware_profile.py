"""What a machine was measured to take: passes part by part, exchange, KV path, and all that is done beside passes.

Written by `fourlane twin calibrate`, read back by the twin in place of a GPU of the catalog. It holds for the model and
the number of ranks it was measured with. Not for data sheets (`fourlane.spec.hardware`), nor for how the twin computes
by it (`fourlane.twin.measured_times`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.spec.architecture import Architecture
from fourlane.spec.load import load
from fourlane.spec.reading import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "Crowding",
    "HardwareProfile",
    "MeasuredKv",
    "MeasuredOverheads",
    "MeasuredPart",
    "MeasuredPhase",
    "load_profile",
    "profile_faults",
]


class MeasuredPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What something took, by how much there was: straight lines between the numbers measured, the last one goes on.

    `rows`: of what, says who holds it. `attended_s`: more for each position attended to (attention alone).

    Units:
        seconds, attended_s: seconds; of a part, in one layer.
    """

    rows: tuple[float, ...]
    seconds: tuple[float, ...]
    attended_s: float = 0.0


class MeasuredPhase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A unit's steps of one phase.

    `parts`: of passes with nothing else on the machine, by the names of `policy.stages.Part`; of the rank that took
    longest. Rows are tokens of a rank; of "experts" (token, expert) pairs of the mean rank, of "output" logits. Parts
    between the same two points of handing over are measured together, under the name of the first. `exchange`:
    "dispatch" and "combine", from when the last rank has posted until rows are there; rows are tokens of the mean rank.
    `beside`: what steps of the running service take beyond their passes (scheduling, choosing and telling tokens, and
    what gateway, client and KV transfer take from the ranks meanwhile); rows are tokens of the whole unit.
    """

    parts: dict[str, MeasuredPart]
    exchange: dict[Literal["dispatch", "combine"], MeasuredPart]
    beside: MeasuredPart


class MeasuredKv(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way of KV from a prefill rank to a decode rank.

    Units:
        bytes_per_s: bytes a second of one sender; latency_s: seconds from the last byte until decoding may begin.
    """

    transport: str
    bytes_per_s: float
    latency_s: float


class Crowding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens when more processes want cores than there are.

    How many times as long a unit's step takes while a unit of the other phase steps, too: `prefill` and `decode` where
    all ranks of the prefill unit have prompts to compute, `prefill_lone` and `decode_lone` where one has.
    """

    prefill: float
    decode: float
    prefill_lone: float
    decode_lone: float

    def factor(self, phase: Literal["prefill", "decode"], evenness: float, ranks: int) -> float:
        """Return how many times as long a step of a phase takes.

        Args:
            phase: whose step.
            evenness: of the prefill unit's, what its mean rank computes as a share of what the fullest does.
            ranks: of the prefill unit.
        """
        alone = 1 / ranks
        share = 1.0 if ranks == 1 else min(1.0, max(0.0, (evenness - alone) / (1 - alone)))
        lone, all_s = (self.prefill_lone, self.prefill) if phase == "prefill" else (self.decode_lone, self.decode)
        return lone + (all_s - lone) * share


class MeasuredOverheads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request waits for beside steps and KV; nothing by default.

    Units:
        arrive_s: seconds from sending a request until a prefill rank may compute it, pages reserved, and from its first
        token until the client has it; request_host_s: of that, how long gateway and client are busy with it;
        wake_s: of that, from when an idle prefill unit gets a prompt until its step begins with all that have come;
        join_s: by how much a decode unit's next step is later for each sequence that joins; cold_prefill_s,
        cold_decode_s: by how much the first step is later of a unit that did nothing for half a second or longer.
    """

    arrive_s: float = 0.0
    request_host_s: float = 0.0
    wake_s: float = 0.0
    join_s: float = 0.0
    cold_prefill_s: float = 0.0
    cold_decode_s: float = 0.0


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine as it was measured.

    `cores`: shared by all ranks, the gateway and whoever loads it; None: every rank has a device of its own.
    `ranks`: of a unit, when passes were measured. `architecture`: the model's, which `model` names. `versions`: of what
    ran. `source`: the command that measured. `fitted`: what was not measured on its own but adjusted, and on what.
    """

    name: str
    machine: str
    device: str
    cores: int | None = None
    date: str
    source: str
    fitted: str = ""
    versions: dict[str, str] = {}
    model: str
    architecture: Architecture
    ranks: int
    exchange: str
    prefill: MeasuredPhase
    decode: MeasuredPhase
    kv: MeasuredKv
    overheads: MeasuredOverheads = MeasuredOverheads()
    crowding: Crowding | None = None

    @property
    def label(self) -> str:
        """Return what sources of figures call it."""
        return f"measured on {self.machine}, {self.date}"


def load_profile(path: str | Path) -> HardwareProfile:
    """Read a hardware profile.

    Raises:
        SpecError: with every fault of the file.
    """
    return load(path, HardwareProfile, rules=profile_faults)


def profile_faults(profile: HardwareProfile) -> Iterator[Fault]:
    """Yield what is wrong with a profile whose fields are well-formed."""
    if profile.ranks < 1:
        yield Fault("ranks", f"expected 1 or more, got {profile.ranks}")
    if profile.cores is not None and profile.cores < 1:
        yield Fault("cores", f"expected 1 or more, or no such field, got {profile.cores}")
    if not profile.kv.bytes_per_s > 0:
        yield Fault("kv.bytes_per_s", f"expected more than 0, got {profile.kv.bytes_per_s:g}")
    for name, phase in (("prefill", profile.prefill), ("decode", profile.decode)):
        yield from _phase_faults(name, phase, exchanges=profile.ranks > 1)
    if profile.crowding is not None:
        for name, factor in msgspec.structs.asdict(profile.crowding).items():
            if not factor >= 1:
                yield Fault(f"crowding.{name}", f"expected 1 or more, got {factor:g}")


def _phase_faults(name: str, phase: MeasuredPhase, *, exchanges: bool) -> Iterator[Fault]:
    for place, part in _measured(name, phase):
        yield from _part_faults(place, part)
    missing = [operation for operation in ("dispatch", "combine") if operation not in phase.exchange]
    if exchanges and missing:
        yield Fault(f"{name}.exchange", f"expected {' and '.join(missing)}, too: units of several ranks exchange")


def _measured(name: str, phase: MeasuredPhase) -> Iterator[tuple[str, MeasuredPart]]:
    yield from ((f"{name}.parts.{part}", found) for part, found in phase.parts.items())
    yield from ((f"{name}.exchange.{operation}", found) for operation, found in phase.exchange.items())
    yield f"{name}.beside", phase.beside


def _part_faults(place: str, part: MeasuredPart) -> Iterator[Fault]:
    if not part.rows or len(part.rows) != len(part.seconds):
        yield Fault(place, f"expected as many seconds as rows, at least one, got {len(part.seconds)}, {len(part.rows)}")
    elif part.rows[0] < 0 or any(after <= before for before, after in pairwise(part.rows)):
        yield Fault(f"{place}.rows", f"expected numbers from 0 that ascend, got {list(part.rows)}")
    if any(not seconds >= 0 for seconds in (*part.seconds, part.attended_s)):
        yield Fault(place, "expected times of 0 or more seconds")
