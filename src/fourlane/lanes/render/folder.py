"""Put rendered files into a folder: all of them, or none."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["strangers", "write_files"]

_SCRIPT = "#!"
_MODE, _SCRIPT_MODE = 0o644, 0o755


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write texts by relative path into a folder, which is made if need be.

    Everything is first written beside the folder, on the same file system, then moved into place; if
    that fails, what was there before is put back. Scripts (texts that begin with "#!") can be run.

    Returns:
        The files written, in order of paths.

    Raises:
        SpecError: the folder cannot be written; nothing has changed.
    """
    for name in files:
        path = PurePosixPath(name)
        assert not path.is_absolute(), name
        assert ".." not in path.parts, name
    try:
        base = _nearest_folder(folder)
        with tempfile.TemporaryDirectory(dir=base, prefix=".fourlane-render-") as staging:
            fresh, former = Path(staging, "fresh"), Path(staging, "former")
            for name, text in files.items():
                _write(fresh / name, text)
            _move_in(sorted(files), fresh, former, folder)
    except OSError as error:
        raise SpecError(f"{folder}: cannot be written: {error.strerror or error}; nothing was changed") from error
    return [folder / name for name in sorted(files)]


def strangers(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Return files below the targets' folders that are not among `files`: of an earlier plan, or a person's own."""
    targets = {PurePosixPath(name).parts[0] for name in files}
    there = (path for target in sorted(targets) for path in sorted((folder / target).rglob("*")) if path.is_file())
    return [path for path in there if path.relative_to(folder).as_posix() not in files]


def _nearest_folder(folder: Path) -> Path:
    """Return the folder itself or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.is_dir())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(_SCRIPT_MODE if text.startswith(_SCRIPT) else _MODE)


def _move_in(names: list[str], fresh: Path, former: Path, folder: Path) -> None:
    """Move fresh files into place, keeping what they replace until all are there."""
    made: list[Path] = []
    done: list[str] = []
    try:
        for name in names:
            _make_folder((folder / name).parent, made)
            if (folder / name).is_file():
                (former / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / name, former / name)
            (fresh / name).replace(folder / name)
            done.append(name)
    except OSError:
        for name in done:
            _put_back(former / name, folder / name)
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _make_folder(path: Path, made: list[Path]) -> None:
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        made.append(parent)


def _put_back(former: Path, place: Path) -> None:
    if former.exists():
        former.replace(place)
    else:
        place.unlink(missing_ok=True)
