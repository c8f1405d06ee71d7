"""The run folder of one service: its sockets, rendezvous files, secret and logs; gone when it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fourlane.errors import SpecError

__all__ = ["RunDir"]

LONGEST_NAME = 40
"""Bytes kept for names of sockets in the folder."""
LONGEST_SOCKET_PATH = 107
"""Bytes of a UNIX socket's path: 108 with the zero at its end."""


class RunDir:
    """A folder that only its owner can enter.

    Args:
        path: where; None: a new one in the folder for temporary files. It must not exist, or be empty.

    Raises:
        SpecError: the path is taken, cannot be made, or is too long for UNIX sockets in it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = _make_named(path.absolute()) if path is not None else _make_temporary()

    @property
    def logs(self) -> Path:
        """Return the folder of the ranks' logs."""
        return self.path / "logs"

    def log_of(self, name: str) -> Path:
        """Return the log of a process: a rank's name or "nursery"."""
        return self.logs / f"{name}.log"

    def tail_of(self, name: str, *, lines: int = 15) -> str:
        """Return the last lines of a process's log; empty if it wrote none."""
        try:
            with self.log_of(name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 16384))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def remove(self) -> None:
        """Remove the folder and all in it. May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)


def _make_temporary() -> Path:
    path = Path(tempfile.mkdtemp(prefix="fourlane-"))
    if not _short_enough(path):  # macOS, or a deep TMPDIR
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="fourlane-", dir="/tmp"))
    (path / "logs").mkdir(mode=0o700)
    return path


def _make_named(path: Path) -> Path:
    if not _short_enough(path):
        longest = LONGEST_SOCKET_PATH - LONGEST_NAME
        raise SpecError(
            f"run folder {path}: its path has {len(os.fsencode(path))} bytes; at most {longest} are allowed, as UNIX "
            "sockets in it need short paths; choose a shorter one"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise SpecError(f"run folder {path}: expected a new or empty folder, but it holds files; choose another")
        path.chmod(0o700)
        (path / "logs").mkdir(mode=0o700)
    except OSError as error:
        raise SpecError(f"run folder {path}: cannot be made: {error.strerror}") from error
    return path


def _short_enough(path: Path) -> bool:
    return len(os.fsencode(path)) + LONGEST_NAME <= LONGEST_SOCKET_PATH
