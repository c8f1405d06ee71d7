"""The deployment's secret, and the seal it puts on frames between processes.

A sealed frame is a header (version, kind, counter, echo) with a keyed BLAKE2b MAC, then the
payload. The MAC also covers the address the frame is from or for, which travels outside.
Sealing proves who wrote a frame; it does not hide it. Used by `channel`, `doorbell`, `kv_transfer`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from fourlane.errors import ProtocolError, SpecError

__all__ = ["SECRET_FILE_VARIABLE", "Kind", "Opened", "Replays", "Secret", "open_seal", "seal"]

SECRET_FILE_VARIABLE = "FOURLANE_SECRET_FILE"  # noqa: S105 - a variable's name, not a secret
VERSION = 1
_MAGIC = b"FL"
_HEADER = struct.Struct("!2sBBQ16s")
_MAC_BYTES = 16
_KEY_BYTES = 32
SEAL_BYTES = _HEADER.size + _MAC_BYTES
NO_ECHO = bytes(16)


class Secret:
    """A deployment's key: 32 bytes, in a file of 64 hexadecimal digits that only its owner reads."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"secret: expected {_KEY_BYTES} bytes, got {len(key)}")
        self._key = key

    @classmethod
    def create(cls, path: Path) -> Secret:
        """Draw a secret and write it to a new file with mode 0600.

        Raises:
            FileExistsError: there is a file already; it is left as it was.
        """
        key = secrets.token_bytes(_KEY_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
        return cls(key)

    @classmethod
    def read(cls, path: Path) -> Secret:
        """Read a secret from its file.

        Raises:
            SpecError: no such file, not 64 hexadecimal digits, or anybody may read it.
        """
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
            key = bytes.fromhex(text)
        except (OSError, ValueError) as error:
            raise SpecError(f"secret file {path}: expected 64 hexadecimal digits: {error}") from error
        if len(key) != _KEY_BYTES:
            raise SpecError(f"secret file {path}: expected {2 * _KEY_BYTES} hexadecimal digits, got {len(text)}")
        if mode & stat.S_IRWXO:
            raise SpecError(f"secret file {path}: every user may read it (mode {mode & 0o777:o}); chmod 600 it")
        return cls(key)

    @classmethod
    def from_environment(cls) -> Secret:
        """Read the secret from the file that FOURLANE_SECRET_FILE names.

        Raises:
            SpecError: the variable is not set, or its file is no good.
        """
        path = os.environ.get(SECRET_FILE_VARIABLE)
        if not path:
            raise SpecError(f"{SECRET_FILE_VARIABLE}: not set; it must name the file of the deployment's secret")
        return cls.read(Path(path))

    def mac(self, *parts: bytes) -> bytes:
        """Return the 16-byte MAC of parts; their boundaries count."""
        digest = hashlib.blake2b(key=self._key, digest_size=_MAC_BYTES, person=b"fourlane")
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()

    def agrees(self, mac: bytes, *parts: bytes) -> bool:
        """Tell, in constant time, whether a MAC is that of the parts."""
        return hmac.compare_digest(mac, self.mac(*parts))

    def __repr__(self) -> str:
        """Return a text without the key."""
        return "Secret(...)"


class Kind(IntEnum):
    """What a sealed frame is, and with that which way it goes."""

    KNOCK = 1
    """Rank to hub: here I am; say who you are."""
    WELCOME = 2
    """Hub to rank: this is me; echo it in what you send."""
    UP = 3
    """Rank to hub: a message."""
    DOWN = 4
    """Hub to rank: a message."""
    RING = 5
    """Rank to rank: a doorbell."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A frame whose seal was good."""

    kind: Kind
    counter: int
    echo: bytes
    payload: bytes


def seal(
    secret: Secret, address: bytes, kind: Kind, *, counter: int, echo: bytes = NO_ECHO, payload: bytes = b""
) -> list[bytes]:
    """Return the two frames of a sealed payload: seal, payload.

    Args:
        secret: the deployment's key.
        address: whom it is from or for; both ends know it.
        kind: what it is.
        counter: greater than that of any frame sealed before for this address.
        echo: 16 bytes drawn by the other end, which prove that the frame is not from another time.
        payload: what is sealed.
    """
    header = _HEADER.pack(_MAGIC, VERSION, kind, counter, echo)
    return [header + secret.mac(address, header, payload), payload]


def open_seal(secret: Secret, address: bytes, frames: list[bytes]) -> Opened:
    """Check a sealed payload and return what was in it.

    Raises:
        ProtocolError: truncated, of another version, of an unknown kind, or not sealed with this
            secret for this address.
    """
    if len(frames) != 2 or len(frames[0]) != SEAL_BYTES:
        raise ProtocolError(f"sealed frame: expected 2 parts, the first of {SEAL_BYTES} bytes, got {_sizes(frames)}")
    header, mac = frames[0][: _HEADER.size], frames[0][_HEADER.size :]
    magic, version, kind, counter, echo = _HEADER.unpack(header)
    if magic != _MAGIC or version != VERSION:
        raise ProtocolError(
            f"sealed frame: expected {_MAGIC!r} version {VERSION}, got {magic!r} version {version}; "
            "run one version of fourlane everywhere"
        )
    if not secret.agrees(mac, address, header, frames[1]):
        raise ProtocolError("sealed frame: forged, damaged, or sealed with another deployment's secret")
    if kind not in list(Kind):
        raise ProtocolError(f"sealed frame: unknown kind {kind}")
    return Opened(Kind(kind), counter, echo, frames[1])


class Replays:
    """Refuse counters that do not grow."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = -1

    def check(self, counter: int) -> None:
        """Take a counter.

        Raises:
            ProtocolError: it is not greater than the last one.
        """
        if counter <= self._last:
            raise ProtocolError(f"sealed frame: replayed (counter {counter}, last was {self._last})")
        self._last = counter


def _sizes(frames: list[bytes]) -> str:
    return f"{len(frames)} of {[len(frame) for frame in frames[:4]]} bytes"
