"""What of a lab this machine can do, found out by doing it; and how to get what is missing."""

from __future__ import annotations

import shutil
from typing import Literal

import msgspec

from fourlane.errors import EnvironmentMissing, LabError
from fourlane.lab.bpf import why_not_loadable
from fourlane.lab.namespaces import Namespaces, needs_user_namespace, program_path

__all__ = ["Capability", "examine"]

A, B = "a", "b"


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a lab needs ("missing" ends in exit status 3) or may use ("absent" does not)."""

    name: str
    status: Literal["ok", "missing", "absent"]
    found: str
    mend: str = ""


def examine() -> list[Capability]:
    """Try every capability, in a namespace of its own that is gone afterwards."""
    programs = [_program(name) for name in ("ip", "tc", "nsenter", "setpriv")]
    if any(each.status != "ok" for each in programs):
        return programs
    try:
        spaces = Namespaces((A, B))
    except (EnvironmentMissing, LabError) as error:
        what, _, mend = str(error).partition("; ")
        return [*programs, Capability(name="network namespaces", status="missing", found=what, mend=mend)]
    with spaces:
        found = "in a user namespace of one's own" if spaces.user else "as root of this machine"
        made = Capability(name="network namespaces", status="ok", found=found)
        return [*programs, made, *_kernel(spaces), _nft(), _bpf()]


def _program(name: str) -> Capability:
    try:
        return Capability(name=name, status="ok", found=program_path(name))
    except EnvironmentMissing as error:
        found, _, mend = str(error).removeprefix("lab: ").partition(": ")
        return Capability(name=name, status="missing", found=found, mend=mend)


def _kernel(spaces: Namespaces) -> list[Capability]:
    """Try links and queues; each later one needs those before it."""
    manner = "congctl cubic rto_min 5ms features ecn"
    tries = (
        ("veth", "ip", "VETH", f"link add name x type veth peer name x netns {spaces.holders[B]}\nlink set x up"),
        ("segments one by one", "ip", "VETH", "link set x gso_max_segs 1"),
        ("bridge", "ip", "BRIDGE", "link add name bridged type bridge\nlink set x master bridged\nlink set bridged up"),
        ("routes with cubic", "ip", "TCP_CONG_CUBIC", f"route replace 10.201.9.0/24 dev bridged {manner}"),
        ("htb", "tc", "NET_SCH_HTB", "qdisc add dev x root handle 1: htb default 0x10"),
        (
            "htb classes",
            "tc",
            "NET_SCH_HTB",
            "class add dev x parent 1: classid 1:10 htb rate 1mbit burst 16k cburst 16k quantum 1514",
        ),
        ("bfifo", "tc", "NET_SCH_FIFO", "qdisc add dev x parent 1:10 handle 10: bfifo limit 65536"),
        (
            "u32",
            "tc",
            "NET_CLS_U32",
            "filter add dev x parent 1: protocol ip prio 10 u32 match ip dsfield 0xb8 0xfc flowid 1:10",
        ),
        ("clsact", "tc", "NET_SCH_INGRESS", "qdisc add dev x clsact"),
        (
            "mirred",
            "tc",
            "NET_ACT_MIRRED",
            "filter add dev x ingress protocol ip u32 match u16 0 1 at 4 action mirred egress redirect dev bridged",
        ),
    )
    return [_try(spaces, name, program, option, lines) for name, program, option, lines in tries]


def _try(spaces: Namespaces, name: str, program: str, option: str, lines: str) -> Capability:
    try:
        spaces.run(A, [program_path(program), "-batch", "-"], text=lines + "\n")
    except LabError as error:
        mend = f"take a kernel with CONFIG_{option}, or load that module as root"
        return Capability(name=name, status="missing", found=str(error).partition(": ")[2], mend=mend)
    return Capability(name=name, status="ok", found="works")


def _nft() -> Capability:
    found = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if found is not None:
        return Capability(name="nft", status="ok", found=found)
    mend = "only the marks of `fourlane lanes render --target host` use it: install the package nftables"
    return Capability(name="nft", status="absent", found="not installed", mend=mend)


def _bpf() -> Capability:
    why = "this user may not load programs" if needs_user_namespace() else why_not_loadable()
    if not why:
        return Capability(name="eBPF", status="ok", found="a program can be loaded")
    mend = "only ECN marks use it (step 4 of the ladder): run as root, on a kernel with CONFIG_BPF_SYSCALL"
    return Capability(name="eBPF", status="absent", found=why, mend=mend)
