"""Labs that are up: a file for each says who holds it and how to enter it.

The files are in a folder of this user's; a lab whose holding process has ended is not up, whatever a file says.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import LabError, SpecError
from fourlane.lab.namespaces import enter_arguments

if TYPE_CHECKING:
    from fourlane.lab.network import Lab

__all__ = ["LabState", "end_lab", "enter_command", "forget", "labs_up", "note", "read_state"]

END_S = 10.0


class LabState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One lab that is up.

    Args:
        pid, began: the holding process and when it began, in the kernel's ticks: together they name it for good.
        holders: by namespace the process that holds it.
        addresses: by host its address on each network.
    """

    name: str
    pid: int
    began: int
    user: bool
    holders: dict[str, int]
    addresses: dict[str, dict[str, str]]


def note(name: str, lab: Lab) -> LabState:
    """Write down that this process holds a lab.

    Raises:
        SpecError: one of that name is up already, or the name is no name.
    """
    path = _path(name)
    if name in {state.name for state in labs_up()}:
        raise SpecError(f"lab {name!r} is up already: end it with fourlane lab down {name}, or take another --name")
    state = LabState(
        name=name,
        pid=os.getpid(),
        began=_began(os.getpid()) or 0,
        user=lab.spaces.user,
        holders=lab.spaces.holders,
        addresses={
            host: {network.name: lab.address(host, network.name) for network in lab.topology.networks}
            for host in lab.topology.hosts
        },
    )
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(state))
    fresh.rename(path)
    return state


def forget(name: str) -> None:
    """Remove what `note` wrote."""
    _path(name).unlink(missing_ok=True)


def labs_up() -> list[LabState]:
    """Return the labs of this user that are up; files of others that have ended are removed."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            state = msgspec.json.decode(path.read_bytes(), type=LabState)
            if _began(state.pid) == state.began:
                found.append(state)
            else:
                path.unlink(missing_ok=True)
    return found


def read_state(name: str) -> LabState:
    """Return a lab that is up.

    Raises:
        SpecError: there is none of that name.
    """
    there = {state.name: state for state in labs_up()}
    if name not in there:
        names = ", ".join(there) or "none"
        raise SpecError(
            f"lab {name!r} is not up (up: {names}); bring it up with fourlane lab up --detach --name {name}"
        )
    return there[name]


def enter_command(state: LabState, host: str) -> list[str]:
    """Return the `nsenter` command that enters a host or switch.

    Raises:
        SpecError: there is none of that name.
    """
    if host not in state.holders:
        raise SpecError(f"lab {state.name!r} has no host {host!r}; it has {', '.join(state.holders)}")
    return enter_arguments(state.holders[host], user=state.user)


def end_lab(name: str) -> None:
    """End a lab and wait until it is gone.

    Raises:
        SpecError: there is none of that name.
        LabError: it does not end.
    """
    state = read_state(name)
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while _began(state.pid) == state.began:
        if time.monotonic() > deadline:
            raise LabError(f"lab {name!r}: process {state.pid} has not ended {END_S:.0f} s after SIGTERM")
        time.sleep(0.02)
    forget(name)


def _path(name: str) -> Path:
    if re.fullmatch(r"[a-z0-9-]{1,32}", name) is None:
        raise SpecError(f"--name: expected up to 32 of a-z, 0-9 and -, got {name!r}")
    return _folder() / f"{name}.json"


def _folder() -> Path:
    """Return this user's folder for the files, which nobody else may write to."""
    root = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(root) / f"fourlane-labs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LabError(f"{folder}: belongs to another user; set XDG_RUNTIME_DIR to a folder of your own")
    return folder


def _began(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; None if there is none, or it only waits to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
