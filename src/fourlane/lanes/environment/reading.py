"""Read environments: files to source, `env` and `env -0`, a process's own. Only known variables are kept.

Whatever else is in an environment - tokens, passwords - is dropped while reading and never printed.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from fourlane.errors import SpecError
from fourlane.lanes.environment.libraries import KNOBS

__all__ = ["known_variables", "read_forced_tos", "read_process"]

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_BEFORE = frozenset({"export", "declare", "typeset", "readonly", "local", "env", "-x", "-gx", "-e", "--env"})
_TCLASS = re.compile(r"Global tclass=(\d+)")


def known_variables(raw: bytes, *, source: str) -> dict[str, str]:
    """Return the known variables of an environment in any of its spellings; of several values the last counts.

    Args:
        raw: `NAME=value` separated by NUL; or lines, with `export`, `unset`, quotes and comments as in a shell.
        source: what to call it in messages.

    Raises:
        SpecError: a line with a known variable is not a shell's: its quotes do not close.
    """
    text = raw.decode("utf-8", "replace")
    if "\0" in text:
        pairs = (entry.partition("=") for entry in text.split("\0"))
        return {name: value for name, _, value in pairs if name in KNOBS}
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if any(name in line for name in KNOBS):
            _read_line(line, found, place=f"{source}:{number}")
    return found


def _read_line(line: str, found: dict[str, str], *, place: str) -> None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise SpecError(f"{place}: expected a line a shell can read, got one with {str(error).lower()}") from error
    if words[:1] == ["unset"]:
        for name in words[1:]:
            found.pop(name, None)
        return
    for word in words:
        match = _ASSIGNMENT.fullmatch(word.rstrip(";"))
        if match is None and word not in _BEFORE:
            return  # a command, or its arguments: what follows is no assignment
        if match is not None and match[1] in KNOBS:
            found[match[1]] = match[2]


def read_process(pid: int) -> dict[str, str]:
    """Return the known variables a process was started with.

    Raises:
        SpecError: there is no such process, or its environment is not ours to read.
    """
    path = Path(f"/proc/{pid}/environ")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: the environment of process {pid} cannot be read: {error.strerror}") from error
    return known_variables(raw + b"\0", source=str(path))


def read_forced_tos() -> dict[str, int]:
    """Return the ToS byte that each RDMA device of this host forces on its queue pairs, of those that do."""
    forced: dict[str, int] = {}
    devices = Path(os.environ.get("FOURLANE_SYSFS", "/sys")) / "class/infiniband"
    for file in sorted(devices.glob("*/tc/1/traffic_class")):
        try:
            match = _TCLASS.search(file.read_text())
        except OSError:
            continue
        if match is not None:
            forced[file.parts[-4]] = int(match[1])
    return forced
