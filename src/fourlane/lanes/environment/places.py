"""Lint where an environment lets traffic travel: devices, interfaces, addresses, and switches that change that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fourlane.lanes.environment.effects import read_number
from fourlane.lanes.environment.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fourlane.lanes.environment.finding import Severity, Subject
    from fourlane.lanes.environment.libraries import Home, StreamName

__all__ = ["lint_places"]

_YES = frozenset({"1", "y", "yes", "t", "true", "on"})


def lint_places(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong, or surprising, about devices, interfaces, GID indexes and switches."""
    yield from _nccl_devices(subject)
    yield from _nccl_interfaces(subject)
    yield from _nccl_switches(subject)
    yield from _nvshmem(subject)
    yield from _ucx_devices(subject)
    yield from _gloo(subject)
    for name, stream in (
        ("NCCL_IB_GID_INDEX", "NCCL"),
        ("NVSHMEM_IB_GID_INDEX", "NVSHMEM"),
        ("UCX_IB_GID_INDEX", "UCX"),
        ("MC_GID_INDEX", "Mooncake"),
    ):
        yield from _gid(subject, name, stream)


def _chosen(text: str, names: Iterable[str], *, exact: bool) -> set[str]:
    """Return which names a list such as "=mlx5_0:1,mlx5_1" or "^eth" lets through.

    Args:
        exact: whether the library matches whole names even without =.
    """
    mark = re.match(r"\^?=?", text)
    prefix = mark[0] if mark is not None else ""
    entries = [entry.partition(":")[0] for entry in text[len(prefix) :].split(",") if entry]
    whole = exact or "=" in prefix
    matched = {name for name in names if any(name == e if whole else name.startswith(e) for e in entries)}
    return set(names) - matched if "^" in prefix else matched


def _all(subject: Subject, field: str) -> list[str]:
    networks = subject.cluster.networks().values() if subject.cluster is not None else ()
    return [name for network in networks for name in getattr(network, field)]


def _homes(subject: Subject, *streams: StreamName) -> list[Home]:
    return [subject.homes[stream] for stream in streams if stream in subject.homes]


def _set_of_devices(subject: Subject, name: str, homes: list[Home], *, exact: bool) -> Iterator[Finding]:
    """Judge a list of devices, set or not: none but those of its homes, and all of them."""
    mine = {device for home in homes for device in home.devices()}
    everything = _all(subject, "devices")
    if not mine:
        return
    chosen = _chosen(subject.env[name], everything, exact=exact) if name in subject.env else set(everything)
    if subject.env.get(name) == "all":
        chosen = set(everything)
    yield from _wrong_set(subject, name, mine, chosen, classes=", ".join(home.names() for home in homes))


def _wrong_set(subject: Subject, name: str, mine: set[str], chosen: set[str], *, classes: str) -> Iterator[Finding]:
    how = "unset: every" if name not in subject.env else "a"
    strange, missing = sorted(chosen - mine), sorted(mine - chosen)
    if not chosen:
        yield _finding("error", name, "matches nothing that the cluster file knows", subject.setting(name))
    elif strange:
        does = f"{how} device may be used, and {', '.join(strange)} {_is(strange)} not on the network of {classes}"
        if name in subject.env:
            does = f"lets {', '.join(strange)} through, not on the network of {classes}"
        yield _finding("error", name, does, subject.setting(name))
    elif missing:
        does = f"leaves out {', '.join(missing)}: their bandwidth is not used for {classes}"
        yield _finding("warning", name, does, subject.setting(name))


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _finding(severity: Severity, place: str, does: str, mend: str) -> Finding:
    return Finding(severity=severity, place=place, does=does, mend=mend)


def _prefixes(subject: Subject, name: str, known: list[str]) -> Iterator[Finding]:
    """Yield the trap of NCCL's lists: without = an entry stands for every name that begins with it."""
    text = subject.env.get(name, "")
    if not text or text.lstrip("^").startswith("="):
        return
    entries = [entry.partition(":")[0] for entry in text.lstrip("^").split(",") if entry]
    # An entry that is no name itself is meant as a prefix; whether it lets the right ones through is judged elsewhere.
    names = [entry for entry in entries if entry in known]
    longer = sorted({name for entry in names for name in known if name.startswith(entry) and name != entry})
    mend = f"export {name}={'^=' if text.startswith('^') else '='}{text.lstrip('^')}"
    if longer:
        does = f'is a list of prefixes: "{text}" means {", ".join(longer)} too'
        yield _finding("warning", name, does, mend)
    elif not known and any(entry[-1:].isdigit() for entry in entries):
        does = f"is a list of prefixes: {entries[0]} means {entries[0]}0 and the like too, where there are such"
        yield _finding("warning", name, does, mend)


def _nccl_devices(subject: Subject) -> Iterator[Finding]:
    yield from _prefixes(subject, "NCCL_IB_HCA", _all(subject, "devices"))
    yield from _set_of_devices(subject, "NCCL_IB_HCA", _homes(subject, "NCCL", "NCCL GIN"), exact=False)


def _nccl_interfaces(subject: Subject) -> Iterator[Finding]:
    name = "NCCL_SOCKET_IFNAME"
    known = _all(subject, "interfaces")
    yield from _prefixes(subject, name, known)
    data = subject.homes.get("NCCL")
    if data is not None and data.fabric == "ethernet":
        chosen = _chosen(subject.env[name], known, exact=False) if name in subject.env else set(known)
        yield from _wrong_set(subject, name, set(data.interfaces()), chosen, classes=data.names())
    elif name in subject.env and known and not _chosen(subject.env[name], known, exact=False):
        does = "matches no interface of the cluster file; start-up messages go over another network"
        yield _finding("warning", name, does, subject.setting(name))


def _nccl_switches(subject: Subject) -> Iterator[Finding]:
    fabric = subject.fabric("NCCL")
    if subject.env.get("NCCL_IB_DISABLE", "0") not in ("", "0") and fabric != "ethernet":
        does = "NCCL goes over TCP sockets: no ToS byte or service level of its variables holds"
        severity: Severity = "error" if subject.homes.keys() & {"NCCL", "NCCL GIN"} else "warning"
        yield _finding(severity, "NCCL_IB_DISABLE", does, "unset NCCL_IB_DISABLE")
    data, name = subject.homes.get("NCCL"), "NCCL_IB_ADAPTIVE_ROUTING"
    if data is None or fabric not in ("roce", "infiniband"):
        return
    usual = 1 if fabric == "infiniband" else 0
    found = read_number(name, subject.env[name]).value if name in subject.env else usual
    adaptive = any(lane.routing == "adaptive" for lane in data.lanes.values())
    if adaptive and not found:
        does = f"{'0' if name in subject.env else f'unset: 0 on {fabric}'}: NCCL takes packets to arrive in order, and "
        does += f"the plan routes {data.names()} adaptively"
        yield _finding("warning", name, does, subject.setting(name))
    elif found and not adaptive and fabric == "roce":
        does = "data and completion are separate writes, though the plan keeps packets in order: slower, and no harm"
        yield _finding("note", name, does, subject.setting(name))


def _nvshmem(subject: Subject) -> Iterator[Finding]:
    env, home = subject.env, subject.homes.get("NVSHMEM")
    mapping = "NVSHMEM_ENABLE_NIC_PE_MAPPING"
    if "NVSHMEM_HCA_LIST" in env and env.get(mapping, "0").strip().lower() not in _YES:
        does = f"does nothing: {mapping} is not 1; all ranks can end up on one NIC (DeepEP issue 336)"
        yield _finding("error", "NVSHMEM_HCA_LIST", does, f"export {mapping}=1")
    if home is None:
        return
    if home.fabric in ("erdma", "ethernet"):
        does = f"NVSHMEM's IBGDA needs a ConnectX NIC, and {home.names()} is on {home.fabric}: DeepEP V1 does not run"
        severity: Severity = "error" if subject.uses("nvshmem") else "note"
        yield _finding(severity, "NVSHMEM_IB_TRAFFIC_CLASS", does, "give the class another carrier in the plan")
        return
    yield from _set_of_devices(subject, "NVSHMEM_HCA_LIST", [home], exact=True)
    if home.fabric == "roce" and all(lane.routing == "ecmp" for lane in home.lanes.values()):
        does = (
            f"all queue pairs send from one UDP port, and the plan routes {home.names()} by hash: one path a NIC pair"
        )
        mend = "route the class adaptively in the plan (NVSHMEM issue 27)"
        yield _finding("note", "NVSHMEM_IB_TRAFFIC_CLASS", does, mend)
    if any(lane.routing == "adaptive" and "deepep-v1" in lane.carriers for lane in home.lanes.values()):
        does = "the plan routes its class adaptively, and DeepEP V1's first kernels took packets to arrive in order"
        yield _finding("note", "NVSHMEM_IB_TRAFFIC_CLASS", does, "see that yours do not (DeepEP README)")


def _ucx_devices(subject: Subject) -> Iterator[Finding]:
    home, name = subject.homes.get("UCX"), "UCX_NET_DEVICES"
    if home is None:
        return
    if home.fabric == "ethernet":
        known = _all(subject, "interfaces")
        chosen = _chosen(subject.env[name], known, exact=True) if name in subject.env else set(known)
        yield from _wrong_set(subject, name, set(home.interfaces()), chosen, classes=home.names())
    else:
        yield from _set_of_devices(subject, name, [home], exact=True)


def _gloo(subject: Subject) -> Iterator[Finding]:
    home, name = subject.homes.get("Gloo"), "GLOO_SOCKET_IFNAME"
    if name in subject.env:
        does = "chooses the network, no class: Gloo cannot mark its sockets"
        yield _finding("note", name, does, "mark them on the host: fourlane lanes render --target host")
    if home is None:
        return
    known = _all(subject, "interfaces")
    if name in subject.env:
        chosen = _chosen(subject.env[name], known, exact=True)
        yield from _wrong_set(subject, name, set(home.interfaces()), chosen, classes=home.names())
    elif set(known) - set(home.interfaces()):
        does = f"unset: Gloo takes the interface of the host's name, which need not be on the network of {home.names()}"
        yield _finding("error", name, does, subject.setting(name))


_USUAL_GID = {"MC_GID_INDEX": 3}


def _gid(subject: Subject, name: str, stream: StreamName) -> Iterator[Finding]:
    wanted = subject.wanted.get(name)
    if wanted is None:
        if stream == "NVSHMEM" and subject.uses("nvshmem") and name not in subject.env and subject.plan is None:
            yield _unset_nvshmem_gid(subject)
        return
    if name not in subject.env:
        usual = _USUAL_GID.get(name)
        if usual is not None and str(usual) != wanted:
            does = f"unset: {usual}, where the cluster file says {wanted}"
            yield _finding("error", name, does, subject.setting(name))
        elif stream == "NVSHMEM":
            yield _unset_nvshmem_gid(subject)
        return
    found = read_number(name, subject.env[name]).value
    if found is not None and str(found) != wanted:
        does = f"GID index {found}, where the cluster file says {wanted}: another address, perhaps of RoCE v1"
        yield _finding("error", name, does, subject.setting(name))


def _unset_nvshmem_gid(subject: Subject) -> Finding:
    name = "NVSHMEM_IB_GID_INDEX"
    mend = subject.setting(name) if name in subject.wanted else f"export {name}=<index of the RoCE v2 address>"
    return _finding("warning", name, "unset: older versions take index 0, an address of RoCE v1", mend)
