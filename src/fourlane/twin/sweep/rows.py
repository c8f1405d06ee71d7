"""What came of points, as lines of JSON in a file that a sweep goes on from.

The first line says what is swept: the twin, the files it names, what varies and how points are worked out. A line that
a crash cut off is left out, and its point done again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "RowFile", "SweepHead", "SweepRow"]

FORMAT = 1


class SweepHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is swept.

    `version`: of fourlane, whose models make the figures. `twin` is TOML, `files` hashes of what it names.
    """

    sweep: int = FORMAT
    version: str
    twin: str
    files: dict[str, str]
    vary: dict[str, list[str]]
    requests: bool


class SweepRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a point: figures, or the error that ended it.

    `figures` are those of `fourlane.twin.sweep.FIGURES` and `gpus`, `slo_met`, `binds`, `sources`; None where there is
    no such figure or it is infinite. `seconds`: it took.
    """

    point: int
    values: dict[str, str]
    figures: dict[str, Any] = {}
    error: str = ""
    seconds: float = 0.0


class RowFile:
    """The file of a sweep.

    Args:
        path: of it; made if it is not there.
        head: of the sweep that writes to it.

    Raises:
        SpecError: it is another sweep's, no such file, or cannot be read or written.
    """

    def __init__(self, path: Path, head: SweepHead) -> None:
        self._path = path
        self.rows: dict[int, SweepRow] = {}
        try:
            held = path.read_bytes() if path.exists() else b""
            kept = self._read(held, head)
            if kept < len(held):
                os.truncate(path, kept)
            self._file = path.open("ab")
            if not kept:
                self._write(head)
        except OSError as error:
            raise SpecError(f"{path}: expected a file that can be read and written: {error.strerror}") from error

    def add(self, row: SweepRow) -> None:
        """Write a row down, for good."""
        self.rows[row.point] = row
        self._write(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: SweepHead | SweepRow) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def _read(self, held: bytes, head: SweepHead) -> int:
        """Take over rows; return how many bytes are whole lines."""
        lines = held.splitlines(keepends=True)
        if not lines or not lines[0].endswith(b"\n"):
            return 0
        self._check(lines[0], head)
        kept = len(lines[0])
        for number, line in enumerate(lines[1:], 2):
            if not line.endswith(b"\n"):
                break
            try:
                row = msgspec.json.decode(line, type=SweepRow)
            except msgspec.DecodeError as error:
                text = f"{self._path}:{number}: expected a row of a sweep: {error}; delete the file to begin anew"
                raise SpecError(text) from error
            self.rows[row.point] = row
            kept += len(line)
        return kept

    def _check(self, line: bytes, head: SweepHead) -> None:
        try:
            found = msgspec.json.decode(line, type=SweepHead)
        except msgspec.DecodeError as error:
            text = f"{self._path}: expected a sweep's rows: {error}; name another folder, or delete the file"
            raise SpecError(text) from error
        differ = [name for name in head.__struct_fields__ if getattr(found, name) != getattr(head, name)]
        if differ:
            said = ", ".join(_DIFFER.get(name, name) for name in differ)
            raise SpecError(
                f"{self._path}: begun with other inputs ({said}): its rows and new ones cannot stand side by side; "
                "name another folder, or delete the file to begin anew"
            )


_DIFFER = {
    "sweep": "the file's format",
    "version": "fourlane's version",
    "twin": "the twin",
    "files": "contents of files that the twin names",
    "vary": "what varies",
    "requests": "whether requests are simulated",
}
