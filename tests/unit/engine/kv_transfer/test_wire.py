"""What a receiver makes of bytes that no sender of ours would send, and of damaged connections."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kv_lanes import GEOMETRY, SECRET, Ending, Lane, eventually, make_kv, missing, send_all

from fourlane.engine.kv_transfer.frames import HEADER_BYTES, Header, Kind, Opening, checksum, pack, unpack
from fourlane.engine.kv_transfer.handshake import shake_hands
from fourlane.engine.kv_transfer.tcp import places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGES = [5, 6]
OTHERS = [block for block in range(GEOMETRY.blocks) if block not in PAGES]
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Wire:
    """A connection to a receiver that has shaken hands and can send anything."""

    def __init__(self, lane: Lane, *, greet: bool = True) -> None:
        endpoint = lane.receiver.endpoint
        if lane.transport != "shared_memory":
            self.sock = socket.create_connection(places_of(endpoint)[0], timeout=10)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(endpoint.removeprefix("shm://"))
        if greet:
            opening = Opening.of(GEOMETRY, name="prefill-9", transport=lane.receiver._mine.transport)
            _, memfd = shake_hands(self.sock, SECRET, opening, timeout_s=10)
            if memfd is not None:
                os.close(memfd)
        self.sock.settimeout(10)

    def send(self, header: Header, payload: bytes = b"") -> None:
        self.sock.sendall(pack(header) + payload)

    def answer(self) -> tuple[Header, bytes]:
        header = unpack(self._read(HEADER_BYTES))
        return header, self._read(header.payload_bytes)

    def wait_for_end(self) -> None:
        """Read until the receiver has hung up."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            pass

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.sock.recv(size - len(data))
            assert chunk, "the receiver hung up"
            data += chunk
        return data

    def close(self) -> None:
        self.sock.close()


def data(**changes: int) -> tuple[Header, bytes]:
    """Return a DATA frame of 8 tokens of the first layer of sequence 1."""
    payload = make_kv(8)[0].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    fields = {"layer": 0, "first_token": 0, "tokens": 8, "payload_bytes": len(payload)} | changes
    return Header(Kind.DATA, 1, checksum=checksum([memoryview(payload)]), **fields), payload


@pytest.fixture
def tcp_lane(make_lane: Callable[..., Lane]) -> Lane:
    lane = make_lane("tcp")
    lane.storage.tensor.fill_(-1.0)
    return lane


def test_a_frame_of_our_own_making_lands(tcp_lane: Lane) -> None:
    arrived = tcp_lane.expect(1, PAGES, 8)
    with closing(Wire(tcp_lane)) as wire:
        for layer in range(GEOMETRY.layers):
            wire.send(*data(layer=layer))
        wire.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
        answers = [wire.answer()[0].kind for _ in range(GEOMETRY.layers + 1)]
        assert answers == [*[Kind.CHECKED] * GEOMETRY.layers, Kind.ACK]
    assert arrived.wait() == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": 3},
        {"layer": 2**32 - 1},
        {"first_token": 1},
        {"first_token": 2**32 - 1},
        {"tokens": 9},
        {"tokens": 0},
        {"tokens": 2**32 - 1},
        {"payload_bytes": 1},
        {"payload_bytes": 2**63},
        {"payload_bytes": 0},
    ],
)
def test_lengths_and_ranges_that_cannot_be_end_the_connection_and_write_nothing(
    tcp_lane: Lane, changes: dict[str, int]
) -> None:
    arrived = tcp_lane.expect(1, PAGES, 8)
    with closing(Wire(tcp_lane)) as wire:
        wire.send(Header(Kind.OPEN, 1))
        wire.send(data(**changes)[0])
        header, reason = wire.answer()
        assert header.kind == Kind.NACK
        assert b"payload of" in reason or b"expected at most 8 tokens of 3 layers" in reason
        wire.wait_for_end()
    assert "prefill-9" in arrived.failure()
    assert (tcp_lane.storage.tensor == -1).all()


@pytest.mark.parametrize("kind", [0, 15, Kind.ACK, Kind.NACK, Kind.GRANT, 255])
def test_frames_a_sender_never_sends_end_the_connection(lane: Lane, kind: int) -> None:
    arrived = lane.expect(1, PAGES, 8)
    with closing(Wire(lane)) as wire:
        wire.send(Header(Kind.OPEN, 1))
        wire.send(Header(kind, 1))
        wire.wait_for_end()
    assert f"unexpected frame of kind {int(kind)}" in arrived.failure()


def test_frames_of_the_other_transport_end_the_connection(lane: Lane) -> None:
    arrived = lane.expect(1, PAGES, 8)
    with closing(Wire(lane)) as wire:
        wire.send(Header(Kind.OPEN, 1))
        header = data()[0]
        foreign = header._replace(kind=Kind.LANDED, payload_bytes=0)
        wire.send(foreign if lane.transport.startswith("tcp") else header)
        wire.wait_for_end()
    assert "broke the protocol" in arrived.failure()


def test_data_for_a_sequence_nobody_expects_is_drained_and_answered_once(tcp_lane: Lane) -> None:
    arrived = tcp_lane.expect(1, PAGES, 8)
    with closing(Wire(tcp_lane)) as wire:
        for _ in range(3):
            header, payload = data()
            wire.send(header._replace(sequence_id=2), payload)
        wire.send(Header(Kind.STOPPED, 2))
        for layer in range(GEOMETRY.layers):
            wire.send(*data(layer=layer))
        wire.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
        answers = [wire.answer()[0] for _ in range(2 + GEOMETRY.layers)]
        checked = [(Kind.CHECKED, 1)] * GEOMETRY.layers
        assert [(answer.kind, answer.sequence_id) for answer in answers] == [(Kind.NACK, 2), *checked, (Kind.ACK, 1)]
    assert arrived.wait() == 3
    assert (tcp_lane.storage.tensor[:, :, OTHERS] == -1).all()


def test_a_sequence_forgotten_in_the_middle_of_a_frame_is_written_no_more(tcp_lane: Lane) -> None:
    arrived, released = tcp_lane.expect(1, PAGES, 8), Ending()
    header, payload = data()
    with closing(Wire(tcp_lane)) as wire:
        wire.sock.sendall(pack(header) + payload[:100])
        eventually(lambda: bool((tcp_lane.storage.tensor != -1).any()))
        tcp_lane.receiver.forget(1, released)
        assert released.came
        tcp_lane.storage.tensor.fill_(-1.0)
        wire.sock.sendall(payload[100:])
        wire.send(Header(Kind.FINISH, 1, tokens=8))
        assert wire.answer()[0].kind == Kind.NACK
        wire.send(Header(Kind.OPEN, 99))
        assert wire.answer()[0].sequence_id == 99
    assert (tcp_lane.storage.tensor == -1).all()
    assert not arrived.came


def test_a_text_that_is_too_long_ends_the_connection(lane: Lane) -> None:
    arrived = lane.expect(1, PAGES, 8)
    with closing(Wire(lane)) as wire:
        wire.send(Header(Kind.OPEN, 1))
        wire.send(Header(Kind.ABORT, 1, payload_bytes=1 << 30))
        wire.wait_for_end()
    assert "a text of 1073741824 bytes" in arrived.failure()


@fuzz
@given(garbage=st.binary(min_size=1, max_size=400), greet=st.booleans(), part=st.integers(0, HEADER_BYTES))
def test_garbage_ends_the_connection_and_never_touches_other_pages(
    lane: Lane, garbage: bytes, *, greet: bool, part: int
) -> None:
    lane.storage.tensor.fill_(-1.0)
    arrived, released = lane.expect(1, PAGES, 8), Ending()
    with closing(Wire(lane, greet=greet)) as wire:
        with suppress(OSError):  # it may have hung up already
            wire.sock.sendall(pack(Header(Kind.OPEN, 1))[:part] * greet + garbage)
            wire.sock.shutdown(socket.SHUT_WR)
        wire.wait_for_end()
    lane.receiver.forget(1, released)
    released.wait()
    assert (lane.storage.tensor == -1).all()
    assert all(isinstance(value, str) for value in arrived.values)


@fuzz
@given(
    headers=st.lists(
        st.builds(
            Header,
            kind=st.integers(0, 20),
            sequence_id=st.integers(1, 2),
            layer=st.integers(0, 4),
            first_token=st.integers(0, 10),
            tokens=st.integers(0, 10),
            payload_bytes=st.sampled_from([0, 1, 128, 256, 512, 1024, 1500]),
            checksum=st.integers(0, 2**32 - 1),
            again=st.integers(0, 1),
        ),
        max_size=6,
    ),
    filler=st.integers(0, 255),
)
def test_well_formed_nonsense_never_completes_nor_touches_other_pages(
    lane: Lane, headers: list[Header], filler: int
) -> None:
    lane.storage.tensor.fill_(-1.0)
    arrived, released = lane.expect(1, PAGES, 8), Ending()
    with closing(Wire(lane)) as wire:
        with suppress(OSError):  # it may have hung up already
            for header in headers:
                wire.send(header, bytes([filler]) * header.payload_bytes)
            wire.sock.shutdown(socket.SHUT_WR)
        wire.wait_for_end()
    lane.receiver.forget(1, released)
    released.wait()
    assert (lane.storage.tensor[:, :, OTHERS] == -1).all()
    assert all(isinstance(value, str) for value in arrived.values)


class Proxy:
    """A TCP relay that flips one bit, or cuts the connection, at a byte of what the sender sends."""

    def __init__(self, target: str, *, flip_bit: int | None = None, cut_at: int | None = None) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._flip_bit, self._cut_at = flip_bit, cut_at
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        try:
            near, _ = self._server.accept()
        except OSError:
            return
        far = socket.create_connection(self._target)
        self._socks += [near, far]
        back = threading.Thread(target=self._relay, args=(far, near, None, None))
        self._threads.append(back)
        back.start()
        self._relay(near, far, self._flip_bit, self._cut_at)

    def _relay(self, source: socket.socket, sink: socket.socket, flip_bit: int | None, cut_at: int | None) -> None:
        passed = 0
        try:
            while chunk := bytearray(source.recv(1 << 16)):
                if flip_bit is not None and passed <= flip_bit // 8 < passed + len(chunk):
                    chunk[flip_bit // 8 - passed] ^= 1 << flip_bit % 8
                if cut_at is not None and passed + len(chunk) > cut_at:
                    sink.sendall(chunk[: cut_at - passed])
                    break
                sink.sendall(chunk)
                passed += len(chunk)
        except OSError:
            pass
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in self._socks:
            sock.close()


KV_ON_THE_WIRE = 3 * (HEADER_BYTES + 8 * GEOMETRY.token_bytes * 2)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, (KV_ON_THE_WIRE + 100) * 8 - 1))
def test_a_bit_flipped_on_the_wire_is_never_taken_for_kv(make_lane: Callable[..., Lane], bit: int) -> None:
    tcp_lane = make_lane("tcp", timeout_s=1.0)
    arrived, released = tcp_lane.expect(1, PAGES, 8), Ending()
    sender = tcp_lane.sender()
    with closing(Proxy(tcp_lane.receiver.endpoint, flip_bit=bit)) as proxy:
        stream, sent = tcp_lane.open(sender, 1, endpoint=proxy.endpoint)
        send_all(stream, make_kv(8))
        eventually(lambda: sent.came)
        sender.close()
    tcp_lane.receiver.forget(1, released)
    released.wait()
    tcp_lane.receiver.close()
    if 7 in arrived.values:
        assert torch.equal(tcp_lane.landed(PAGES, 8), make_kv(8)), "complete but wrong"
        assert bit // 8 > KV_ON_THE_WIRE, "a changed byte of a header or of KV was not noticed"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_connection_cut_on_the_way_fails_both_sides(tcp_lane: Lane, share: float) -> None:
    arrived = tcp_lane.expect(1, PAGES, 8)
    cut = 150 + HEADER_BYTES + int(share * KV_ON_THE_WIRE)
    with closing(Proxy(tcp_lane.receiver.endpoint, cut_at=cut)) as proxy:
        stream, sent = tcp_lane.open(tcp_lane.sender(), 1, endpoint=proxy.endpoint)
        send_all(stream, make_kv(8))
        assert "KV to decode-0" in sent.failure()
        assert "prefill-0" in arrived.failure()


def test_the_next_stream_after_a_cut_connects_anew(tcp_lane: Lane) -> None:
    sender = tcp_lane.sender()
    with closing(Proxy(tcp_lane.receiver.endpoint, cut_at=300)) as proxy:
        first = tcp_lane.expect(1, PAGES, 8)
        stream, sent = tcp_lane.open(sender, 1, endpoint=proxy.endpoint)
        send_all(stream, make_kv(8))
        first.failure()
        sent.failure()
    second = tcp_lane.expect(2, PAGES, 8)
    stream, sent = tcp_lane.open(sender, 2)
    send_all(stream, make_kv(8))
    assert second.wait() == 7


def test_both_ends_of_a_kv_connection_are_marked(tcp_lane: Lane) -> None:
    arrived = tcp_lane.expect(1, PAGES, 8)
    sender = tcp_lane.sender()
    send_all(tcp_lane.open(sender, 1)[0], make_kv(8))
    arrived.wait()
    ours = sender._links[tcp_lane.receiver.endpoint]._wires[0].sock
    theirs = next(iter(tcp_lane.receiver._inlets.values())).sock
    for sock in (ours, theirs, *tcp_lane.receiver._listeners.values()):
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 18 * 4
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 2


def test_a_stranger_who_says_nothing_is_shown_out(tcp_lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourlane.engine.kv_transfer.receiver._HANDSHAKE_TIMEOUT_S", 0.1)
    with closing(Wire(tcp_lane, greet=False)) as wire:
        wire.wait_for_end()
    assert not tcp_lane.receiver._inlets


def test_another_version_is_refused_by_name(tcp_lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Wire(tcp_lane, greet=False)) as wire:
        wire.sock.sendall(struct.pack("!4sHH32s", b"FLKV", 9, 0, bytes(32)))
        wire.wait_for_end()
    eventually(lambda: "expected version 2, got 9; run one version of fourlane everywhere" in caplog.text)


KILLED_SENDER = """
import sys, time, torch
sys.path.insert(0, sys.argv[3])
from kv_lanes import GEOMETRY, SECRET, missing, outlet_for
from fourlane.engine.kv_transfer.sender import Sender
from fourlane.engine.messages import KvAddress

def outlet(target):
    return outlet_for(sys.argv[2], target, GEOMETRY, name="prefill-0", secret=SECRET, timeout_s=9)

assert not missing(sys.argv[2])
sender = Sender(GEOMETRY, make_outlet=outlet, timeout_s=9)
target = KvAddress(endpoint=sys.argv[1], blocks=[], owner="decode-0")
stream = sender.open(1, target, on_delivered=print, on_failed=print)
stream.send(0, 0, torch.ones(8, 2, 8), torch.ones(8, 2, 8))
while sender.bytes_sent() == 0:
    time.sleep(0.01)
print("sent", flush=True)
time.sleep(60)
"""


def stopped(pid: int) -> bool:
    """Tell whether every thread of a process is stopped."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


@pytest.mark.parametrize("transport", ["tcp", "nixl", "mooncake"])
def test_a_sender_that_hangs_is_given_up_within_the_timeout(make_lane: Callable[..., Lane], transport: str) -> None:
    if missing(transport):
        pytest.skip(missing(transport))
    lane = make_lane(transport, timeout_s=2.0)
    arrived = lane.expect(1, PAGES, 8)
    with hanging_sender(lane) as process:
        process.send_signal(signal.SIGSTOP)
        assert re.search("nothing came from prefill-0|be read from prefill-0", arrived.failure())
        again = lane.expect(2, PAGES, 8)
        send_all(lane.open(lane.sender(), 2)[0], make_kv(8))
        assert again.wait() == 7


@contextmanager
def hanging_sender(lane: Lane) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that sends one layer and then nothing more; killed at the end."""
    words = [sys.executable, "-c", KILLED_SENDER, lane.receiver.endpoint, lane.transport, str(Path(__file__).parent)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_sender_is_noticed_at_once_and_its_pages_come_back(lane: Lane) -> None:
    if lane.transport == "memory":
        pytest.skip("it reads within one process only")
    arrived = lane.expect(1, PAGES, 8)
    with hanging_sender(lane) as process:
        released = Ending()
        if lane.transport == "shared_memory":
            process.send_signal(signal.SIGSTOP)
            eventually(lambda: stopped(process.pid))
            lane.receiver.forget(1, released)
            time.sleep(0.1)
            assert not released.came, "a stopped process may go on writing"
        process.kill()
        if lane.transport == "shared_memory":
            released.wait()
            assert not arrived.came
        else:
            assert re.search("lost the connection to prefill-0|be read from prefill-0", arrived.failure())
