"""Transports whose library reads: what becomes of reads that fail, stall, or outlive their sequence."""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
import torch
from kv_lanes import ADDRESSES, GEOMETRY, SECRET, Ending, Lane, eventually, make_kv, send_all
from memory_library import MemoryLibrary
from test_wire import Wire

from fourlane.engine.kv_transfer.frames import OFFSET, Header, Kind
from fourlane.engine.kv_transfer.library import Exposure
from fourlane.engine.kv_transfer.reader import Reader, library_receiver
from fourlane.engine.kv_transfer.ring import Ring
from fourlane.engine.kv_transfer.storage import KvStorage, allocate_kv
from fourlane.engine.kv_transfer.tcp import listen_at

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = [5, 6]


@pytest.fixture
def reads(make_lane: Callable[..., Lane]) -> Lane:
    return make_lane("memory")


def library_of(lane: Lane) -> MemoryLibrary:
    assert isinstance(lane.receiver, Reader)
    assert isinstance(lane.receiver.library, MemoryLibrary)
    return lane.receiver.library


@pytest.mark.parametrize(("when", "said"), [("at once", "it broke at once"), ("later", "it broke later")])
def test_a_read_that_fails_ends_its_sequence_on_both_sides_and_no_other(reads: Lane, when: str, said: str) -> None:
    library_of(reads).fails = when
    sender = reads.sender()
    arrived = reads.expect(1, PAGES, 8)
    stream, sent = reads.open(sender, 1)
    send_all(stream, make_kv(8))
    assert "could not be read from prefill-0 (127.0.0.1" in arrived.failure()
    assert said in arrived.failure()
    assert said in sent.failure()
    library_of(reads).fails = ""
    again = reads.expect(2, PAGES, 8)
    send_all(reads.open(sender, 2)[0], make_kv(8, seed=2))
    assert again.wait() == 7
    assert torch.equal(reads.landed(PAGES, 8), make_kv(8, seed=2))


def test_pages_are_released_only_when_no_read_fills_them_any_more(reads: Lane) -> None:
    library_of(reads).held = True
    arrived, released = reads.expect(1, PAGES, 8), Ending()
    send_all(reads.open(reads.sender(), 1)[0], make_kv(8))
    eventually(lambda: len(library_of(reads).reads) == 3)
    reads.receiver.forget(1, released)
    time.sleep(0.1)
    assert not released.came
    library_of(reads).held = False
    released.wait()
    reads.storage.tensor.fill_(-1.0)
    time.sleep(0.05)
    assert (reads.storage.tensor == -1).all()
    assert not arrived.came


def test_a_read_that_never_ends_is_stopped_and_its_sequence_fails_within_the_timeout(
    make_lane: Callable[..., Lane],
) -> None:
    lane = make_lane("memory", timeout_s=0.4)
    library_of(lane).held = True
    arrived = lane.expect(1, PAGES, 8)
    began = time.monotonic()
    send_all(lane.open(lane.sender(), 1)[0], make_kv(8))
    assert re.search(r"prefill-0 .*0 of 3 layers", arrived.failure())
    assert 0.4 <= time.monotonic() - began < 2
    assert library_of(lane).stops == 1


def test_a_sender_that_dies_under_a_read_gives_the_pages_back_after_a_moment(
    reads: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourlane.engine.kv_transfer.reader._GRACE_S", 0.2)
    library_of(reads).held = True
    arrived = reads.expect(1, PAGES, 8)
    sender = reads.sender()
    send_all(reads.open(sender, 1)[0], make_kv(8))
    eventually(lambda: len(library_of(reads).reads) == 3)
    sender.close()
    assert "lost the connection to prefill-0" in arrived.failure()
    assert library_of(reads).stops == 1
    eventually(lambda: library_of(reads).peers == 0)


def test_a_closed_receiver_stops_its_reads_and_closes_the_library(reads: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourlane.engine.kv_transfer.reader._GRACE_S", 0.1)
    library = library_of(reads)
    library.held = True
    arrived = reads.expect(1, PAGES, 8)
    send_all(reads.open(reads.sender(), 1)[0], make_kv(8))
    eventually(lambda: len(library.reads) == 3)
    reads.receiver.close()
    assert "decode-0 closed its KV receiver" in arrived.failure()
    assert library.closed


def test_more_chunks_than_slots_wait_for_room_and_all_arrive(make_lane: Callable[..., Lane]) -> None:
    geometry = replace(GEOMETRY, blocks=64)
    lane = make_lane("memory", geometry)
    kv = make_kv(200, geometry)
    arrived = lane.expect(1, list(range(50)), 200)
    stream, sent = lane.open(lane.sender(geometry=geometry), 1)
    send_all(stream, kv, cuts=tuple(range(1, 200, 3)))
    assert arrived.wait() == 7
    sent.wait()
    assert torch.equal(lane.landed(list(range(50)), 200), kv)


def test_a_sender_advances_its_library_while_chunks_are_offered_and_never_else(reads: Lane) -> None:
    sender = reads.sender()
    for number in range(2):
        arrived = reads.expect(number, PAGES, 8)
        stream, sent = reads.open(sender, number)
        send_all(stream, make_kv(8))
        arrived.wait()
        sent.wait()
    (link,) = sender._links.values()
    theirs = link._outlet._library
    before = (theirs.advanced, library_of(reads).advanced)
    assert before > (0, 0)
    time.sleep(0.1)
    assert (theirs.advanced, library_of(reads).advanced) == before


def greeted(lane: Lane, *, size: int = 4096, description: bytes = b"here") -> tuple[Wire, Ring]:
    """Return a connection over which a ring's memory has been described."""
    ring = Ring(slots=1, slot_bytes=size)
    wire = Wire(lane)
    memory = msgspec.msgpack.encode(
        Exposure(library="memory", description=description, address=ring.address, size=ring.size)
    )
    wire.send(Header(Kind.MEMORY, 0, payload_bytes=len(memory)), memory)
    return wire, ring


def offer(offset: int, **changes: int) -> tuple[Header, bytes]:
    fields = {"layer": 0, "first_token": 0, "tokens": 8} | changes
    return Header(Kind.OFFERED, 1, payload_bytes=8, **fields), OFFSET.pack(offset)


@pytest.mark.parametrize("offset", [4096, 3073, 2**64 - 1])
def test_an_offer_outside_of_the_senders_memory_ends_the_connection_and_nothing_is_read(
    reads: Lane, offset: int
) -> None:
    arrived = reads.expect(1, PAGES, 8)
    wire, ring = greeted(reads)
    with closing(wire):
        wire.send(*offer(offset))
        wire.wait_for_end()
    arrived_or_waiting = arrived.values or ["broke the protocol"]
    assert "the sender's memory has" in str(arrived_or_waiting[0]) or not arrived.came
    assert library_of(reads).reads == []
    del ring


@pytest.mark.parametrize("memory", [b"\xff\xff", b""])
def test_a_malformed_description_of_memory_ends_the_connection(
    reads: Lane, memory: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Wire(reads)) as wire:
        wire.send(Header(Kind.MEMORY, 0, payload_bytes=len(memory)), memory)
        wire.wait_for_end()
    assert "malformed description of memory" in caplog.text


def test_an_offer_without_a_description_ends_the_connection(reads: Lane) -> None:
    arrived = reads.expect(1, PAGES, 8)
    with closing(Wire(reads)) as wire:
        wire.send(Header(Kind.OPEN, 1))
        wire.send(*offer(0))
        wire.wait_for_end()
    assert "offered without saying where it is" in arrived.failure()


def test_a_process_that_cannot_be_reached_fails_its_sequences_with_the_reason(reads: Lane) -> None:
    arrived = reads.expect(1, PAGES, 8)
    wire, _ = greeted(reads, description=b"elsewhere")
    with closing(wire):
        wire.send(*offer(0))
        kinds = {wire.answer()[0].kind, wire.answer()[0].kind}
    assert kinds == {Kind.NACK, Kind.UNREAD}
    assert "nothing can be read from prefill-9" in arrived.failure()
    assert "no such process" in arrived.failure()


def test_a_receiver_of_either_kind_takes_senders_with_and_without_the_library() -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    receiver = library_receiver(
        storage,
        MemoryLibrary(),
        listeners=listen_at(ADDRESSES[:1], None),
        name="decode-0",
        secret=SECRET,
        timeout_s=10,
        also_tcp=True,
    )
    assert receiver.endpoint.startswith("memory+tcp://127.0.0.1:")
    for number, transport in enumerate(("memory", "tcp")):
        lane = Lane(transport, storage, receiver)
        kv = make_kv(8, seed=number)
        arrived = lane.expect(number, PAGES, 8)
        with closing(lane.sender()) as sender:
            send_all(lane.open(sender, number)[0], kv)
            assert arrived.wait() == 7
        assert torch.equal(lane.landed(PAGES, 8), kv)
    receiver.close()
    storage.close()


def test_kv_for_a_device_lands_in_an_arena_and_settles_in_its_pages() -> None:
    tensor = torch.full((3, 2, 12, 4, 2, 8), -1.0)
    storage = KvStorage(GEOMETRY, tensor, None, None)
    library = MemoryLibrary()
    receiver = library_receiver(
        storage, library, listeners=listen_at(ADDRESSES[:1], None), name="decode-0", secret=SECRET, timeout_s=10
    )
    ((_, size),) = library.used
    assert size == GEOMETRY.total_bytes
    lane = Lane("memory", storage, receiver)
    kv = make_kv(8)
    arrived = lane.expect(1, [7, 2], 8)
    send_all(lane.open(lane.sender(), 1)[0], kv)
    assert arrived.wait() == 7
    assert torch.equal(lane.landed([7, 2], 8), kv)
    others = [block for block in range(12) if block not in (7, 2)]
    assert (tensor[:, :, others] == -1).all()
    lane.close()


def test_a_ring_hands_out_each_slot_once_and_takes_them_back_in_order() -> None:
    ring = Ring(slots=3, slot_bytes=5000)
    assert ring.slot_bytes == 8192
    assert ring.idle
    assert [ring.take(1), ring.take(2), ring.take(1)] == [0, 8192, 16384]
    assert not ring.has_room
    ring.give_back(1)
    assert ring.take(3) == 0
    ring.give_back(9)
    assert not ring.has_room
    for sequence in (1, 2, 3):
        ring.give_back(sequence)
    assert ring.idle
