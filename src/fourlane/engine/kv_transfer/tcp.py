"""KV over TCP connections of their own: bound to the KV address, marked as KV traffic.

The payload leaves from the model's tensors and arrives in the reserved pages; on neither side is
there a copy in between.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind, Opening
from fourlane.engine.kv_transfer.handshake import shake_hands
from fourlane.engine.kv_transfer.receiver import Receiver
from fourlane.engine.kv_transfer.staging import Staging
from fourlane.errors import ProtocolError, SpecError, TransferError
from fourlane.lanes.marking import mark_socket
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.kv_transfer.stream import Chunk
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.seal import Secret

__all__ = ["TcpOutlet", "TcpReceiver", "tcp_receiver"]

_log = logging.getLogger(__name__)
_BACKLOG = 128
_CONNECT_TIMEOUT_S = 10.0


class TcpReceiver(Receiver):
    """A receiver whose connections are marked as KV traffic."""

    transport = "tcp"
    shares = False

    def prepare(self, sock: socket.socket) -> None:
        """Mark an accepted socket."""
        _prepare(sock)


def tcp_receiver(
    storage: KvStorage, *, address: str, ports: tuple[int, int] | None, name: str, secret: Secret, timeout_s: float
) -> TcpReceiver:
    """Start a receiver that listens on a local IP address.

    Args:
        storage: the cache whose pages are filled.
        address: of the interface that KV shall use.
        ports: first and last port to try; None: any free one.
        name, secret, timeout_s: see `Receiver`.

    Raises:
        SpecError: no such address here, or it is none that senders could connect to.
        TransferError: every port of the range is taken.
    """
    listener = _listen(address, ports)
    host, port = listener.getsockname()[:2]
    endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    return TcpReceiver(listener, endpoint, storage, name=name, secret=secret, timeout_s=timeout_s)


class TcpOutlet:
    """A sender's TCP connection. See `sender.Outlet`."""

    needs_grant = False

    def __init__(
        self,
        target: KvAddress,
        *,
        geometry: KvGeometry,
        address: str,
        name: str,
        secret: Secret,
        timeout_s: float,
    ) -> None:
        self._target = target
        self._opening = Opening.of(geometry, name=name, transport="tcp")
        self._address = address
        self._secret = secret
        self._timeout_s = min(timeout_s, _CONNECT_TIMEOUT_S)
        self._staging = Staging()
        self._sock = socket.socket(_family(address), socket.SOCK_STREAM)

    def connect(self) -> socket.socket:
        """Connect from the KV address, shake hands and return the socket."""
        url = urlsplit(self._target.endpoint)
        try:
            _prepare(self._sock)
            self._sock.bind((self._address, 0))
            self._sock.settimeout(self._timeout_s)
            self._sock.connect((url.hostname, url.port))
            shake_hands(self._sock, self._secret, self._opening, timeout_s=self._timeout_s)
        except OSError as error:
            raise TransferError(
                f"no connection from {self._address} to {self._target.endpoint}: {error or type(error).__name__}"
            ) from error
        return self._sock

    def grant(self, blocks: list[int]) -> SequencePages:
        """Refuse: over TCP the receiver puts what comes into its pages itself."""
        raise ProtocolError(f"{self._target.owner} granted {len(blocks)} pages to a TCP connection")

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:  # noqa: ARG002
        """Return header, K and V, to be written to the socket from where they are."""
        parts = [self._staging.host_bytes(tensor, chunk.ready).data for tensor in (chunk.k_THd, chunk.v_THd)]
        header = Header(
            Kind.DATA,
            sequence_id,
            layer=chunk.layer,
            first_token=chunk.first_token,
            tokens=chunk.k_THd.shape[0],
            payload_bytes=parts[0].nbytes + parts[1].nbytes,
            checksum=frames.checksum(parts),
        )
        return [memoryview(frames.pack(header)), *parts]

    def interrupt(self) -> None:
        """Make a `connect` under way in another thread fail."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            _log.debug("nothing to interrupt at %s", self._target.endpoint)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


def _prepare(sock: socket.socket) -> None:
    """Mark a socket as KV traffic, and let small frames leave at once."""
    mark = mark_socket(sock, TrafficClass.KV)
    if not mark.complete:
        _log.warning("KV socket not marked as asked: %s", mark)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _family(address: str) -> socket.AddressFamily:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise SpecError(f'kv_transfer.address: expected an IP address such as "10.0.0.5", got "{address}"') from None
    if parsed.is_unspecified:
        raise SpecError(
            f'kv_transfer.address: "{address}" names no interface; give the IP address of the one KV shall use'
        )
    return socket.AF_INET6 if parsed.version == 6 else socket.AF_INET


def _listen(address: str, ports: tuple[int, int] | None) -> socket.socket:
    family = _family(address)
    first, last = ports if ports is not None else (0, 0)
    fault: OSError | None = None
    for port in range(first, last + 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mark_socket(sock, TrafficClass.KV)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            fault = error
        else:
            return sock
    where = f"ports {first}-{last}" if ports is not None else "any port"
    raise TransferError(f"kv_transfer: cannot listen at {address}, {where}: {fault}") from fault
