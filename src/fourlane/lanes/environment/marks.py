"""Lint the marks of an environment: the ToS bytes and service levels that connections end up with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.environment.effects import read_number
from fourlane.lanes.environment.finding import FORCED, Finding
from fourlane.lanes.environment.libraries import KNOBS, STREAMS
from fourlane.spec.traffic import tos_to_dscp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.environment.effects import Effect, Setting
    from fourlane.lanes.environment.finding import Severity, Subject
    from fourlane.lanes.environment.libraries import Home
    from fourlane.lanes.plan import Lane

__all__ = ["lint_marks", "lint_numbers"]

_ECN = {0: "not ECN-capable", 1: "ECT(1)", 2: "ECT(0)", 3: "CE"}
_NUMBERS = ("ToS byte", "service level", "GID index")


def lint_numbers(subject: Subject) -> Iterator[Finding]:
    """Yield the values that are no numbers, or are read as others than they look."""
    for name, text in subject.env.items():
        if KNOBS[name].unit in _NUMBERS:
            fault = read_number(name, text).fault
            if fault:
                yield Finding(severity="error", place=name, does=fault, mend=_correct(subject, name))


def _correct(subject: Subject, name: str) -> str:
    return subject.setting(name) if name in subject.wanted else f"set {name} to a plain decimal number, or unset it"


def lint_marks(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong, or surprising, about what each stream's connections carry."""
    yield from _forced(subject)
    for stream in subject.streams():
        effect = subject.effect(stream)
        if effect.fabric == "infiniband":
            yield from _on_infiniband(subject, effect)
        elif effect.tos is not None:
            yield from _on_ethernet(subject, effect, effect.tos)
        else:
            yield from _without_rdma(subject, effect)
    yield from _precedence(subject)


def _without_rdma(subject: Subject, effect: Effect) -> Iterator[Finding]:
    if effect.stream == "NVSHMEM":
        return  # does not run at all; said of where it is to travel
    for name in (STREAMS[effect.stream].tos, STREAMS[effect.stream].sl):
        if name and name in subject.env:
            yield Finding(
                severity="warning",
                place=name,
                does="does nothing: this network has no RDMA, and sockets are marked by the host",
                mend=f"unset {name}; mark sockets by fourlane lanes render --target host",
            )


def _forced(subject: Subject) -> Iterator[Finding]:
    for device, tos in subject.forced.items():
        path = FORCED.format(device=device)
        lands = _lands(subject, tos)
        yield Finding(
            severity="error" if subject.plan is not None else "warning",
            place=path,
            does=f"ToS byte {tos}, DSCP {tos >> 2}{lands}, is forced on every queue pair of {device} that the kernel "
            "sets up (NCCL, Mooncake, UCX over verbs), whatever variables say, and not on those of NVSHMEM IBGDA and "
            "NCCL GIN: classes are mixed up",
            mend=f"echo -1 > {path}, and take it out of what sets it at boot",
        )


def _lands(subject: Subject, tos: int) -> str:
    kind = subject.class_of_dscp.get(tos_to_dscp(tos & 0xFF))
    return f" ({kind.value})" if kind is not None else ""


def _place(effect: Effect, setting: Setting) -> str:
    """Return the variable to name: the one that decided, or the stream's own where that is only not set."""
    fell_back = setting.decided_by in ("default", "NCCL_IB_TC")
    return STREAMS[effect.stream].tos if fell_back else setting.decided_by


def _on_ethernet(subject: Subject, effect: Effect, tos: Setting) -> Iterator[Finding]:
    home = subject.homes.get(effect.stream)
    value = tos.value
    if value is None or tos.decided_by.startswith("/sys"):
        return  # not known; or said once, of the device
    if value & 1 and not STREAMS[effect.stream].dscp_only:
        yield from _odd(subject, effect, tos, value)
    if home is None:
        yield from _without_home(effect, tos, value)
        return
    if effect.stream == "NCCL" and home.only is None:
        yield from _several_classes(home, tos)
        return
    wanted = [lane for kind, lane in home.lanes.items() if kind is subject.class_of_dscp.get(value >> 2)]
    if not wanted:
        yield from _stray(subject, effect, home, tos)
    elif not value & 1 and not STREAMS[effect.stream].dscp_only:
        yield from _ecn_bits(subject, effect, tos, wanted[0])
    yield from _ethernet_priority(subject, effect, home)


def _odd(subject: Subject, effect: Effect, tos: Setting, value: int) -> Iterator[Finding]:
    ecn = value & 3
    does = "switches and receivers take it for congestion already met" if ecn == 3 else "a code point RoCE does not use"
    place = _place(effect, tos)
    yield Finding(
        severity="error",
        place=place,
        does=f"{effect.stream}: ToS byte {value} is DSCP {value >> 2} with ECN bits {ecn:02b}, {_ECN[ecn]}: {does} "
        f"({tos.because})",
        mend=_mend(subject, place, effect, value),
    )


def _mend(subject: Subject, place: str, effect: Effect, value: int) -> str:
    """Return what sets the stream right: its own variable, where the plan wants one."""
    own = STREAMS[effect.stream].tos
    if own in subject.wanted:
        return f"export {own}={subject.wanted[own]}"
    if subject.plan is not None:
        return f"unset {place}"
    return f"export {own}=<DSCP x 4>, such as {(value >> 2) * 4}"


def _without_home(effect: Effect, tos: Setting, value: int) -> Iterator[Finding]:
    """Judge a stream no plan speaks of: only what looks like a mistake all the same."""
    if tos.decided_by != "default" and 0 < value < 64 and value & 3 == 2 and tos.decided_by != "EP_OVERRIDE_RDMA_SL":
        yield Finding(
            severity="warning",
            place=tos.decided_by,
            does=f"{effect.stream}: ToS byte {value} is DSCP {value >> 2} with ECN bits 10; it looks like the DSCP "
            f"{value} itself",
            mend=f"if DSCP {value} is meant, export {tos.decided_by}={value * 4} (or {value * 4 + 2} with ECT(0))",
        )


def _several_classes(home: Home, tos: Setting) -> Iterator[Finding]:
    each = ", ".join(f"{kind.value} {lane.tos}" for kind, lane in home.lanes.items())
    if tos.decided_by == "NCCL_IB_TC":
        yield Finding(
            severity="error",
            place="NCCL_IB_TC",
            does=f"ToS byte {tos.value} for all of {home.names()}: it beats the trafficClass of every communicator",
            mend=f"unset NCCL_IB_TC, and give each communicator its trafficClass: {each}",
        )
    else:
        yield Finding(
            severity="note",
            place="NCCL_IB_TC",
            does=f"unset, so that communicators of {home.names()} can differ; one without a trafficClass sends ToS 0",
            mend=f"give each communicator its trafficClass: {each}",
        )


def _stray(subject: Subject, effect: Effect, home: Home, tos: Setting) -> Iterator[Finding]:
    value = tos.value or 0
    kind = subject.class_of_dscp.get(value >> 2)
    where = f"the class {kind.value}" if kind is not None else "no class of the plan"
    place = _place(effect, tos)
    yield Finding(
        severity="error",
        place=place,
        does=f"{effect.stream}: ToS byte {value} is DSCP {value >> 2} with ECN bits {value & 3:02b}: it lands in "
        f"{where}, not in {home.names()} ({tos.because}){_looks_like_dscp(subject, value)}",
        mend=_mend(subject, place, effect, value),
    )


def _looks_like_dscp(subject: Subject, value: int) -> str:
    lanes = subject.plan.classes.items() if subject.plan is not None and value else ()
    owner = next((kind.value for kind, lane in lanes if lane.dscp == value), None)
    return f"; {value} is the DSCP of {owner}, and a ToS byte is four times the DSCP" if owner is not None else ""


def _ecn_bits(subject: Subject, effect: Effect, tos: Setting, lane: Lane) -> Iterator[Finding]:
    value = tos.value or 0
    if value & 3 == lane.tos & 3:
        return
    if value & 3:
        does = "declared ECN-capable: switches may mark it and senders slow down, though the plan has ECN off for it"
    else:
        does = "not declared ECN-capable: where the plan means switches to mark it they drop it, or mark nothing"
    place = _place(effect, tos)
    yield Finding(
        severity="error",
        place=place,
        does=f"{effect.stream}: ToS byte {value} has DSCP {value >> 2} as planned, but it is {does}",
        mend=_mend(subject, place, effect, value),
    )


def _ethernet_priority(subject: Subject, effect: Effect, home: Home) -> Iterator[Finding]:
    sl = effect.sl
    if effect.fabric != "roce" or sl is None or sl.decided_by == "default":
        return
    if sl.value not in {lane.priority for lane in home.lanes.values()}:
        yield Finding(
            severity="warning",
            place=sl.decided_by,
            does=f"{effect.stream}: Ethernet priority {sl.value}, not that of {home.names()}: wrong where a NIC goes "
            "by priority (PCP) instead of DSCP",
            mend=subject.setting(sl.decided_by),
        )


def _on_infiniband(subject: Subject, effect: Effect) -> Iterator[Finding]:
    facts, home = STREAMS[effect.stream], subject.homes.get(effect.stream)
    if facts.tos in subject.env and effect.stream != "NCCL clear-to-send":
        crashes = effect.stream == "NVSHMEM"
        yield Finding(
            severity="error" if crashes else "warning",
            place=facts.tos,
            does="IBGDA fails to start with it on InfiniBand (NVSHMEM issue 45)"
            if crashes
            else "does nothing on InfiniBand: the service level chooses the virtual lane",
            mend=f"unset {facts.tos}",
        )
    sl = effect.sl
    if home is None or sl is None:
        return
    shared = effect.stream == "NCCL" and (home.only is None or "NCCL GIN" in subject.homes)
    if shared and sl.decided_by == "default":
        each = ", ".join(f"{kind.value} {lane.priority}" for kind, lane in home.lanes.items())
        yield Finding(
            severity="note",
            place="NCCL_IB_SL",
            does="unset, so that NCCL's communicators and DeepEP can differ; a communicator without a trafficClass "
            "has service level 0",
            mend=f"give each communicator its trafficClass: {each}",
        )
    elif sl.value not in {lane.priority for lane in home.lanes.values()}:
        place = facts.sl or "NCCL_IB_SL"
        yield Finding(
            severity="error",
            place=place if sl.decided_by == "default" else sl.decided_by,
            does=f"{effect.stream}: service level {sl.value}, not that of {home.names()} ({sl.because})",
            mend=subject.setting(place if sl.decided_by == "default" else sl.decided_by),
        )


def _precedence(subject: Subject) -> Iterator[Finding]:
    """Yield what beats what among the variables that are set."""
    env = subject.env
    nccl = subject.fabric("NCCL")
    if nccl in ("roce", "erdma") and _is_set(subject, "NCCL_IB_TC"):
        yield _note("NCCL_IB_TC", "beats the trafficClass of every communicator", "unset it where communicators differ")
    elif nccl == "roce" and subject.uses("nccl") and not _is_set(subject, "NCCL_IB_SL"):
        does = "unset: a communicator's trafficClass becomes its service level as well"
        yield _note("NCCL_IB_SL", does, "set it where NICs go by priority (PCP)")
    gin = subject.fabric("NCCL GIN")
    if gin in ("roce", "erdma") and _is_set(subject, "NCCL_GIN_IB_TC"):
        does = "works from NCCL 2.30.7 on; before, NCCL_IB_TC holds for DeepEP as well"
        yield _note("NCCL_GIN_IB_TC", does, "see that PyTorch and DeepEP load such an NCCL")
    if gin in ("roce", "erdma") and "EP_OVERRIDE_RDMA_SL" in env:
        yield _deepep_service_level(subject)
    yield from _others(subject)
    if "UCX_IB_TRAFFIC_CLASS" in env and subject.fabric("UCX") in ("roce", "erdma"):
        does = "is the ToS byte, though UCX's help calls it a DSCP; some versions mark one direction only"
        yield _note("UCX_IB_TRAFFIC_CLASS", does, "set it on both ends (UCX issue 10325)")


def _others(subject: Subject) -> Iterator[Finding]:
    if "HYBRID_EP_IB_TC" in subject.env:
        does = "is read by builds of DeepEP with pull request 611 alone; merged ones read NCCL_IB_TC"
        yield _note("HYBRID_EP_IB_TC", does, "set NCCL_IB_TC")
    tos = read_number("HCCL_RDMA_TC", subject.env.get("HCCL_RDMA_TC", "0")).value
    if tos is not None and tos % 4:
        does = f"{tos} is no multiple of 4, as HCCL asks for: a ToS byte without ECN bits"
        mend = f"export HCCL_RDMA_TC={tos * 4 if tos < 64 else tos // 4 * 4}"
        yield Finding(severity="error", place="HCCL_RDMA_TC", does=does, mend=mend)


def _deepep_service_level(subject: Subject) -> Finding:
    decides = subject.effect("NCCL GIN").tos
    name = "EP_OVERRIDE_RDMA_SL"
    if decides is not None and decides.decided_by == name:
        # With a plan, where that lands has been judged already.
        severity: Severity = "note" if "NCCL GIN" in subject.homes else "warning"
        return Finding(
            severity=severity,
            place=name,
            does=f"no service level on Ethernet: DeepEP V2 hands {decides.value} to NCCL GIN as the ToS byte, DSCP "
            f"{(decides.value or 0) >> 2} with ECN bits {(decides.value or 0) & 3:02b}",
            mend=f"unset {name}; {subject.setting('NCCL_GIN_IB_TC')}"
            if "NCCL_GIN_IB_TC" in subject.wanted
            else f"unset {name}; export NCCL_GIN_IB_TC=<DSCP x 4>",
        )
    by = decides.decided_by if decides is not None else "NCCL_IB_TC"
    return _note(name, f"does nothing: {by} beats it", f"unset {name}")


def _is_set(subject: Subject, name: str) -> bool:
    return name in subject.env and read_number(name, subject.env[name]).value is not None


def _note(place: str, does: str, mend: str) -> Finding:
    return Finding(severity="note", place=place, does=does, mend=mend)
