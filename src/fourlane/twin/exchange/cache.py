"""A folder of what took long to work out, kept from run to run: JSON files named by all that went into them.

`FOURLANE_CACHE` names the folder; without it `$XDG_CACHE_HOME/fourlane`, or `~/.cache/fourlane`. A file appears whole
or not at all, so that processes can share the folder. One that cannot be read is told of and made anew. The oldest go
when a kind takes more than `MOST_BYTES`. A folder that cannot be written is told of once a process, and done without.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MOST_BYTES", "CacheWarning", "cache_folder", "keep", "kept", "key_of"]

S = TypeVar("S", bound=msgspec.Struct)

MOST_BYTES = 64 << 20
"""Of one kind."""


class CacheWarning(UserWarning):
    """Something of the cache cannot be read or written; what it would have held is worked out anew."""


def cache_folder() -> Path:
    """Return the folder."""
    if named := os.environ.get("FOURLANE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fourlane"


def key_of(parts: Iterable[Any]) -> str:
    """Return a name for what was made of these: arrays, or anything JSON can hold."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            plain = msgspec.to_builtins(part, enc_hook=int, str_keys=True)
            found.update(msgspec.json.encode(plain, order="deterministic"))
        found.update(b"\0")
    return found.hexdigest()[:32]


def kept(kind: str, key: str, form: type[S]) -> S | None:
    """Return what the cache holds under a key; None if there is nothing, or nothing that can be read.

    Args:
        kind: what it is, a folder of its own.
        key: of `key_of`.
        form: a msgspec struct class with a `key`, as which it was kept.
    """
    path = cache_folder() / kind / f"{key}.json"
    try:
        held = msgspec.json.decode(path.read_bytes(), type=form)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        warnings.warn(f"{path}: {error}; it is worked out anew", CacheWarning, stacklevel=2)
        return None
    with suppress(OSError):
        path.touch()
    return held


def keep(kind: str, key: str, value: Any) -> None:
    """Keep something under a key."""
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{key}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(value), indent=1))
            Path(name).replace(folder / f"{key}.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _bound(folder)
    except OSError as error:
        warnings.warn(f"{folder}: {error}; nothing is kept (FOURLANE_CACHE names a folder)", CacheWarning, stacklevel=2)


def _bound(folder: Path) -> None:
    """Remove the files that were not used for longest, until what is left is small enough."""
    held = []
    for path in folder.glob("*.json"):
        with suppress(OSError):
            state = path.stat()
            held.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in held)
    for _, size, path in sorted(held):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
