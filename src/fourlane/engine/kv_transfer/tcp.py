"""KV over TCP connections of their own: bound to the KV address, marked as KV traffic.

The payload leaves from the model's tensors and arrives in the reserved pages; on neither side is
there a copy in between. With several addresses or streams chunks are striped over the connections.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind, Opening
from fourlane.engine.kv_transfer.handshake import shake_hands
from fourlane.engine.kv_transfer.outlet import DirectOutlet
from fourlane.engine.kv_transfer.receiver import Receiver
from fourlane.engine.kv_transfer.staging import Staging
from fourlane.errors import ProtocolError, SpecError, TransferError
from fourlane.lanes.connections import LaneEnd
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.kv_transfer.stream import Chunk
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.seal import Secret

__all__ = ["TcpOutlet", "TcpReceiver", "endpoint_of", "listen_at", "places_of", "tcp_receiver"]

_BACKLOG = 128
_CONNECT_TIMEOUT_S = 10.0


class TcpReceiver(Receiver):
    """A receiver whose connections are marked as KV traffic."""

    transport = "tcp"
    shares = False
    lane: LaneEnd
    """Set before `start`."""

    def prepare(self, sock: socket.socket) -> None:
        """Mark an accepted socket, and let small frames leave at once."""
        self.lane.opened(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tcp_receiver(
    storage: KvStorage,
    *,
    addresses: Sequence[str],
    ports: tuple[int, int] | None,
    name: str,
    secret: Secret,
    timeout_s: float,
    lane: LaneEnd | None = None,
) -> TcpReceiver:
    """Start a receiver that listens on local IP addresses.

    Args:
        storage: the cache whose pages are filled.
        addresses: of the interfaces that KV shall use.
        ports: first and last port to try; None: any free one.
        name, secret, timeout_s: see `Receiver`.
        lane: marks its connections; None: by the default.

    Raises:
        SpecError: no such address here, or it is none that senders could connect to.
        TransferError: every port of the range is taken.
    """
    lane = lane or LaneEnd.default(TrafficClass.KV)
    listeners = listen_at(addresses, ports, lane)
    endpoint = f"tcp://{endpoint_of(listeners)}"
    receiver = TcpReceiver(listeners, endpoint, storage, name=name, secret=secret, timeout_s=timeout_s)
    receiver.lane = lane
    receiver.start()
    return receiver


class TcpOutlet(DirectOutlet):
    """A sender's TCP connections. See `outlet.Outlet`.

    Args:
        target: where to.
        geometry: the shape of the sender's cache.
        addresses: of the interfaces that KV shall use here; the first goes with the receiver's first, and so on.
        streams: connections between each pair of addresses.
        name, secret: who we are.
        timeout_s: for connecting, ten seconds at most.
        lane: marks the connections; None: by the default.
    """

    needs_grant = False
    transport = "tcp"

    def __init__(  # noqa: PLR0913 - what identifies us, and how we connect
        self,
        target: KvAddress,
        *,
        geometry: KvGeometry,
        addresses: Sequence[str],
        name: str,
        secret: Secret,
        timeout_s: float,
        streams: int = 1,
        lane: LaneEnd | None = None,
    ) -> None:
        self._lane = lane or LaneEnd.default(TrafficClass.KV)
        self._target = target
        self._theirs = places_of(target.endpoint)
        self._addresses = addresses
        self.paths = max(len(addresses), len(self._theirs)) * streams
        session = secrets.token_hex(8) if self.paths > 1 else ""
        self._opening = Opening.of(geometry, name=name, transport=self.transport, session=session)
        self._secret = secret
        self._timeout_s = min(timeout_s, _CONNECT_TIMEOUT_S)
        self._staging = Staging()
        self._gate = threading.Lock()
        self._closed = False
        self._socks: list[socket.socket] = []

    def connect(self, path: int) -> socket.socket:
        """Connect from a KV address, shake hands and return the socket."""
        mine, theirs = self._addresses[path % len(self._addresses)], self._theirs[path % len(self._theirs)]
        sock = socket.socket(_family(mine), socket.SOCK_STREAM)
        try:
            self._keep(sock)
            self._lane.mark(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((mine, 0))
            sock.settimeout(self._timeout_s)
            sock.connect(theirs)
            self._lane.opened(sock)
            shake_hands(sock, self._secret, self._opening, timeout_s=self._timeout_s)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise TransferError(
                    f"no connection from {mine} to {self._target.endpoint}: {error or type(error).__name__}"
                ) from error
            raise
        return sock

    def _keep(self, sock: socket.socket) -> None:
        """Remember a socket, so that it can be interrupted."""
        with self._gate:
            self._socks = [kept for kept in self._socks if kept.fileno() >= 0]
            if self._closed:
                raise TransferError("the sender was closed")
            self._socks.append(sock)

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
        """Make every `connect` under way fail."""
        with self._gate:
            self._closed = True
            for sock in self._socks:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections."""
        with self._gate:
            self._closed = True
            for sock in self._socks:
                sock.close()


def endpoint_of(listeners: Sequence[socket.socket]) -> str:
    """Return where sockets listen, as "ip:port,ip:port"."""
    names = [listener.getsockname()[:2] for listener in listeners]
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names)


def places_of(endpoint: str) -> list[tuple[str, int]]:
    """Return the addresses and ports in an endpoint.

    Raises:
        TransferError: it is none.
    """
    found = []
    for place in endpoint.partition("://")[2].split(","):
        url = urlsplit(f"tcp://{place}")
        if url.hostname is None or url.port is None:
            raise TransferError(f"KV endpoint {endpoint!r}: expected scheme://ip:port")
        found.append((url.hostname, url.port))
    return found


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


def listen_at(
    addresses: Sequence[str], ports: tuple[int, int] | None, lane: LaneEnd | None = None
) -> list[socket.socket]:
    """Listen on each address, on the first port of the range that is free there.

    Raises:
        SpecError: an address is none of this host.
        TransferError: every port of the range is taken.
    """
    lane = lane or LaneEnd.default(TrafficClass.KV)
    listeners: list[socket.socket] = []
    try:
        listeners += [_listen(address, ports, lane) for address in addresses]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(address: str, ports: tuple[int, int] | None, lane: LaneEnd) -> socket.socket:
    family = _family(address)
    first, last = ports if ports is not None else (0, 0)
    fault: OSError | None = None
    for port in range(first, last + 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            lane.mark(sock)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            fault = error
        else:
            return sock
    where = f"ports {first}-{last}" if ports is not None else "any port"
    raise TransferError(f"kv_transfer: cannot listen at {address}, {where}: {fault}") from fault
